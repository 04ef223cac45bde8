"""Small, real data sets: digits, MNIST and CIFAR; text to train language models on."""

from __future__ import annotations

from lutcc.data import cifar, digits, mnist, text, text_bpe, text_stdlib
from lutcc.data.split import ImageSplit

__all__ = ["ImageSplit", "cifar", "digits", "mnist", "text", "text_bpe", "text_stdlib"]
