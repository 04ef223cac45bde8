"""Small, real data sets: digits (bundled with scikit-learn), MNIST and CIFAR from files that the
user has."""

from __future__ import annotations

from lutcc.data import cifar, digits, mnist
from lutcc.data.split import ImageSplit

__all__ = ["ImageSplit", "cifar", "digits", "mnist"]
