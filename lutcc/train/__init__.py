"""Training: a masked language model with exchangeable feed-forward blocks, logged and resumable."""

from __future__ import annotations

from lutcc.train.masked_lm import DenseFFN, MaskedLM, NoFFN, Sizes
from lutcc.train.masking import Batch, MaskedBatches
from lutcc.train.recipe import Recipe
from lutcc.train.trainer import Progress, Trained, Trainer, evaluate, steps_within

__all__ = [
    "Batch",
    "DenseFFN",
    "MaskedBatches",
    "MaskedLM",
    "NoFFN",
    "Progress",
    "Recipe",
    "Sizes",
    "Trained",
    "Trainer",
    "evaluate",
    "steps_within",
]
