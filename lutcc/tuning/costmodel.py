"""The cost model: gradient-boosted trees that guess how fast a config is from its features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc.errors import DependencyError
from lutcc.tuning.features import Features, FeatureTable

#: Logarithm of the score that a failed config counts as, relative to the best of its workload;
#: slower ones count as that as well, for how slow a hopeless config is does not matter.
WORST = -1.5

_BOTH: Mapping[str, object] = {"nthread": 1, "verbosity": 0}  # few rows, and always the same trees
_OWN = {**_BOTH, "max_depth": 3, "eta": 0.3, "min_child_weight": 0.5, "tree_method": "exact"}
_OWN_ROUNDS = 60
_PRIOR = {**_BOTH, "max_depth": 7, "eta": 0.15, "subsample": 0.8, "tree_method": "hist"}
_PRIOR_ROUNDS = 150


def label(scores: Sequence[float | None]) -> np.ndarray:
    """Return what the trees learn: log(score / best), at least :data:`WORST`.

    Parameters
    ----------
    scores
        1 / time of one workload's configs; None for one that failed.

    Examples
    --------
    >>> label([2.0, 1.0, None]).round(2).tolist()
    [0.0, -0.69, -1.5]
    """
    found = np.array([s or 0.0 for s in scores], np.float64)
    best = float(found.max(initial=0.0)) or 1.0
    return np.log(np.maximum(found / best, math.exp(WORST)))


@dataclass(frozen=True)
class Known:
    """What was measured of one workload: the features and score of each config.

    Attributes
    ----------
    features
        One per config.
    scores
        1 / relative time; None where it failed.
    weight
        How much it tells about the workload to tune, up to 1.
    """

    features: Sequence[Features]
    scores: Sequence[float | None]
    weight: float = 1.0


class CostModel:
    """Predicts log(score / best score) of configs of one workload.

    What other workloads showed is learnt first, as the *prior*; the trees proper learn what this
    workload's own trials differ from it by. So records from elsewhere guide the first trials and
    never overrule the trials.

    Parameters
    ----------
    sample
        Features of configs of the space, from which the columns are taken.
    related
        Other workloads.
    seed
        Of the trees' sampling.
    """

    def __init__(
        self, sample: Sequence[Features], related: Sequence[Known] = (), seed: int = 0
    ) -> None:
        self._seed = seed
        self._table = FeatureTable.over(sample)
        self._trees = None
        self._prior = None
        if related:
            features = [f for known in related for f in known.features]
            self._prior_table = FeatureTable.over([*features, *sample])
            labels = np.concatenate([label(known.scores) for known in related])
            weights = np.concatenate([np.full(len(k.features), k.weight) for k in related])
            matrix = self._prior_table.matrix(features)
            self._prior = self._train(
                _PRIOR, _PRIOR_ROUNDS, matrix, labels, weights * np.exp(labels)
            )

    @property
    def trained(self) -> bool:
        """Whether it has learnt from anything."""
        return self._prior is not None or self._trees is not None

    def encode(self, features: Sequence[Features]) -> np.ndarray:
        """Return rows (configs, columns) float32 for :meth:`fit` and :meth:`predict`.

        The last column is what the prior predicts, 0 without one.
        """
        prior = np.zeros(len(features), np.float32)
        if self._prior is not None and features:
            prior = self._prior.inplace_predict(self._prior_table.matrix(features))
        return np.column_stack([self._table.matrix(features), prior])

    def fit(self, rows: np.ndarray, scores: Sequence[float | None]) -> None:
        """Learn the trials of this workload, all of them anew.

        Parameters
        ----------
        rows
            (trials, columns), encoded.
        scores
            1 / time of each; None where it failed.
        """
        labels = label(scores)
        margin = rows[:, -1] if self._prior is not None else None
        self._trees = self._train(_OWN, _OWN_ROUNDS, rows, labels, np.exp(labels), margin)

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return the guesses (configs,) float64, the higher the faster."""
        if self._trees is None:
            return rows[:, -1].astype(np.float64)
        margin = rows[:, -1] if self._prior is not None else None
        return self._trees.inplace_predict(rows, base_margin=margin).astype(np.float64)

    def _train(
        self,
        parameters: Mapping[str, object],
        rounds: int,
        matrix: np.ndarray,
        labels: np.ndarray,
        weights: np.ndarray,
        margin: np.ndarray | None = None,
    ) -> Any:
        xgboost = import_xgboost()
        data = xgboost.DMatrix(matrix, label=labels, weight=weights, base_margin=margin, nthread=1)
        return xgboost.train({**parameters, "seed": self._seed}, data, num_boost_round=rounds)


def import_xgboost() -> Any:
    """Import xgboost and return it.

    Raises
    ------
    DependencyError
        If it is not installed.
    """
    try:
        import xgboost
    except ImportError as error:
        raise DependencyError(
            f"xgboost cannot be imported ({error})",
            where="lutcc.tuning",
            fix="pip install 'lutcc[tune]', or search with --search random",
        ) from error
    return xgboost
