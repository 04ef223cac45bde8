"""Small, real data sets: digits (in scikit-learn), MNIST and CIFAR (from files of the user)."""

from __future__ import annotations

from lutcc.data import cifar, digits, mnist
from lutcc.data.split import ImageSplit

__all__ = ["ImageSplit", "cifar", "digits", "mnist"]
