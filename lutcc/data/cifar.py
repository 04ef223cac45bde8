"""CIFAR-10 and CIFAR-100 in their binary version (``.bin``); the pickled one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lutcc.data.split import ImageSplit
from lutcc.errors import InputError

PIXELS = 3 * 32 * 32


def read_batch(path: str | Path, label_bytes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Read one ``.bin`` file: images (N, 3, 32, 32) uint8 and labels (N, label_bytes) uint8.

    CIFAR-10 has one label byte per image, CIFAR-100 two (coarse, fine).

    Raises
    ------
    InputError
        If the file is missing, empty, pickled, or not a whole number of records.

    Examples
    --------
    >>> read_batch("cifar-10-batches-bin/test_batch.bin")[0].shape  # doctest: +SKIP
    (10000, 3, 32, 32)
    """
    path = Path(path)
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        pickled = path.with_suffix("").is_file()
        fix = "this folder holds the Python (pickled) version; " if pickled else ""
        raise InputError(
            f"cannot read: {error}",
            where=str(path),
            fix=f"{fix}download the binary version of CIFAR",
        ) from error
    record = label_bytes + PIXELS
    if len(data) == 0 or len(data) % record:
        raise InputError(
            f"holds {len(data)} bytes, which is no multiple of {record} "
            f"({label_bytes} label and {PIXELS} pixel bytes)",
            where=str(path),
            fix="download the binary version of CIFAR again",
        )
    records = data.reshape(-1, record)
    return records[:, label_bytes:].reshape(-1, 3, 32, 32), records[:, :label_bytes]


def load_cifar10(folder: str | Path) -> ImageSplit:
    """Return CIFAR-10 from ``data_batch_{1..5}.bin`` and ``test_batch.bin``, pixels in 0..1.

    Raises
    ------
    InputError
        If a file is missing or malformed, or a label exceeds 9.

    Examples
    --------
    >>> load_cifar10("cifar-10-batches-bin").train_x.shape  # doctest: +SKIP
    (50000, 3, 32, 32)
    """
    folder = Path(folder)
    return _load(
        [folder / f"data_batch_{i}.bin" for i in range(1, 6)], folder / "test_batch.bin", 1, 0, 10
    )


def load_cifar100(folder: str | Path, labels: str = "fine") -> ImageSplit:
    """Return CIFAR-100 from ``train.bin`` and ``test.bin``, pixels in 0..1.

    ``labels`` is "fine" (100 classes) or "coarse" (20).

    Raises
    ------
    InputError
        If a file is missing or malformed, or a label is out of range.

    Examples
    --------
    >>> load_cifar100("cifar-100-binary").classes  # doctest: +SKIP
    100
    """
    if labels not in ("fine", "coarse"):
        raise InputError(f"labels={labels!r}", where="load_cifar100", fix="use 'fine' or 'coarse'")
    folder = Path(folder)
    column, classes = (1, 100) if labels == "fine" else (0, 20)
    return _load([folder / "train.bin"], folder / "test.bin", 2, column, classes)


def _load(train: list[Path], test: Path, label_bytes: int, column: int, classes: int) -> ImageSplit:
    def read(paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
        images, labels = [], []
        for path in paths:
            pixels, marks = read_batch(path, label_bytes)
            if int(marks[:, column].max()) >= classes:
                raise InputError(
                    f"label {int(marks[:, column].max())} is beyond the {classes} classes",
                    where=str(path),
                    fix="check that the folder holds this data set's binary version",
                )
            images.append(pixels.astype(np.float32) / 255)
            labels.append(marks[:, column].astype(np.int64))
        return np.concatenate(images), np.concatenate(labels)

    return ImageSplit(*read(train), *read([test]), classes)
