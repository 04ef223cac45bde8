"""What every loader returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


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
