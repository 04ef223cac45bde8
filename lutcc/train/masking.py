"""Batches for masked language modelling: chosen and masked anew at every step, yet reproducible."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lutcc.data.text_bpe import MASK, SMALLEST, SPECIAL
from lutcc.errors import InputError

_TRAIN, _VALIDATION = 0, 1  # streams of random numbers


@dataclass(frozen=True, slots=True)
class Batch:
    """Masked sequences.

    Parameters
    ----------
    ids
        (N, L) int64: what the model sees.
    places
        (P,) int64: the tokens to predict, as indices into the N * L tokens.
    labels
        (P,) int64: what stood there.
    """

    ids: Tensor
    places: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        return Batch(
            *(t.to(device, non_blocking=True) for t in (self.ids, self.places, self.labels))
        )


class MaskedBatches:
    """Batches by number: batch ``step`` is the same for every model and after every restart.

    Parameters
    ----------
    sequences
        (S, L) token numbers; column 0 is the start token and is never masked.
    batch_size
        Sequences of a batch. Each sequence is seen once per epoch, in a new order every time.
    vocabulary
        Number of tokens.
    seed
        Decides order and masks.
    share
        Part of the tokens to predict; of these 80 % show the mask, 10 % another token, 10 % stay.

    Raises
    ------
    InputError
        If there are fewer sequences than a batch holds.

    Examples
    --------
    >>> rows = np.full((10, 21), 300)
    >>> batch = MaskedBatches(rows, batch_size=4, vocabulary=400, seed=0).at(0)
    >>> batch.ids.shape, len(batch.places), set(batch.labels.tolist())
    (torch.Size([4, 21]), 12, {300})
    """

    def __init__(
        self,
        sequences: np.ndarray,
        *,
        batch_size: int,
        vocabulary: int,
        seed: int,
        share: float = 0.15,
    ) -> None:
        if len(sequences) < batch_size or batch_size < 1:
            raise InputError(
                f"{len(sequences)} sequences do not fill a batch of {batch_size}",
                where="MaskedBatches",
                fix="give more text, shorter sequences or smaller batches",
            )
        if vocabulary < SMALLEST:
            raise InputError(
                f"vocabulary={vocabulary} is below {SMALLEST}",
                where="MaskedBatches",
                fix="give the tokenizer's vocabulary",
            )
        self.sequences, self.batch_size, self.vocabulary = sequences, batch_size, vocabulary
        self.seed = seed
        self.masked = max(1, round(share * (sequences.shape[1] - 1)))  # of each sequence
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def per_epoch(self) -> int:
        """Batches of one pass; what does not fill the last one waits for another pass."""
        return len(self.sequences) // self.batch_size

    def at(self, step: int) -> Batch:
        """Return the batch of a training step, from 0."""
        epoch, place = divmod(step, self.per_epoch)
        if self._order is None or self._order[0] != epoch:
            order = np.random.default_rng((self.seed, _TRAIN, 0, epoch))
            self._order = epoch, order.permutation(len(self.sequences))
        rows = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        return self._mask(self.sequences[rows], np.random.default_rng((self.seed, _TRAIN, 1, step)))

    def fixed(self, limit: int) -> list[Batch]:
        """Return the first ``limit`` sequences once, masked the same at every call."""
        rows = self.sequences[: max(limit, 1)]
        random = np.random.default_rng((self.seed, _VALIDATION))
        size = self.batch_size
        return [self._mask(rows[i : i + size], random) for i in range(0, len(rows), size)]

    def _mask(self, rows: np.ndarray, random: np.random.Generator) -> Batch:
        n, length = rows.shape
        drawn = random.random((n, length))
        drawn[:, 0] = 2.0  # never the start
        columns = np.sort(np.argpartition(drawn, self.masked - 1)[:, : self.masked], axis=1)
        places = (np.arange(n)[:, None] * length + columns).ravel()
        ids = rows.astype(np.int64).ravel()
        labels = ids[places].copy()
        fate = random.random(len(places))
        others = random.integers(len(SPECIAL), self.vocabulary, len(places))
        ids[places] = np.where(fate < 0.8, MASK, np.where(fate < 0.9, others, labels))
        return Batch(*map(torch.from_numpy, (ids.reshape(n, length), places, labels)))
