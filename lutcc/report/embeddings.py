"""How near the embeddings of a compressed model are to those of the exact one."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lutcc.errors import InputError

Embeddings = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class EmbeddingAgreement:
    """What two models make of the same sentences.

    Attributes
    ----------
    sentences
        How many were compared.
    cosine, cosine_p5
        Cosine of a sentence's two embeddings: mean, and the value that 5 % are below.
    top1
        Part of the sentences whose nearest other sentence is the same for both models.
    top10
        Part of the ten nearest other sentences that both models name.
    """

    sentences: int
    cosine: float
    cosine_p5: float
    top1: float
    top10: float

    def to_dict(self) -> dict[str, Any]:
        """Return the fields."""
        return asdict(self)


def agreement(exact: Embeddings, other: Embeddings) -> EmbeddingAgreement:
    """Compare embeddings (N, D) of the same N sentences, N > 10; rows need not be normalised.

    Raises
    ------
    InputError
        If the shapes differ, or there are too few rows.

    Examples
    --------
    >>> e = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    >>> agreement(e, 2 * e)
    EmbeddingAgreement(sentences=20, cosine=1.0, cosine_p5=1.0, top1=1.0, top10=1.0)
    """
    if exact.shape != other.shape or exact.ndim != 2 or len(exact) <= 10:
        raise InputError(
            f"embeddings of shapes {exact.shape} and {other.shape}",
            where="agreement",
            fix="pass two arrays (N, D) of the same more than ten sentences",
        )
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (exact, other))
    cosine = (a.astype(np.float64) * b).sum(axis=1)
    near_a, near_b = _nearest(a), _nearest(b)
    same = np.mean([len(set(x) & set(y)) for x, y in zip(near_a, near_b, strict=True)])
    return EmbeddingAgreement(
        len(a),
        round(float(cosine.mean()), 5),
        round(float(np.quantile(cosine, 0.05)), 5),
        round(float((near_a[:, 0] == near_b[:, 0]).mean()), 4),
        round(float(same) / 10, 4),
    )


def _nearest(unit: Embeddings) -> npt.NDArray[np.intp]:
    """Return (N, 10): for each row the nearest others, the nearest first."""
    similar = unit @ unit.T
    np.fill_diagonal(similar, -2)
    best = np.argpartition(-similar, 10, axis=1)[:, :10]
    order = np.argsort(-np.take_along_axis(similar, best, axis=1), axis=1, kind="stable")
    return np.take_along_axis(best, order, axis=1)
