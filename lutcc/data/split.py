"""What every loader returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutcc.errors import InputError


@dataclass(frozen=True, slots=True)
class ImageSplit:
    """Training and test images with their labels.

    Parameters
    ----------
    train_x, test_x
        float32 in 0..1: (N, 64) for digits, (N, 1, 28, 28) for MNIST, (N, 3, 32, 32) for CIFAR.
    train_y, test_y
        (N,) int64 labels.
    classes
        Number of classes; labels are 0..classes-1.
    """

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    classes: int


def stratified(
    images: np.ndarray, labels: np.ndarray, test_share: float, seed: int, *, where: str
) -> ImageSplit:
    """Return ``images`` (N, ...) and ``labels`` (N,) int64 split at random, each class alike.

    Parameters
    ----------
    images, labels
        What is split; labels are 0..max.
    test_share
        Share of the images that go to the test part, 0.01..0.99.
    seed
        Seed of the split.
    where
        Who asks, for the error.

    Raises
    ------
    InputError
        If ``test_share`` is out of range.

    Examples
    --------
    >>> stratified(np.zeros((8, 2)), np.arange(8) % 2, 0.25, 0, where="here").test_y.sum()
    np.int64(1)
    """
    from sklearn.model_selection import train_test_split

    if not 0.01 <= test_share <= 0.99:
        raise InputError(
            f"test_share={test_share!r} is not in 0.01..0.99", where=where, fix="use 0.3"
        )
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels, test_size=test_share, random_state=seed, stratify=labels
    )
    return ImageSplit(train_x, train_y, test_x, test_y, classes=int(labels.max()) + 1)
