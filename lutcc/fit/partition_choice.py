"""Which partition errs least on rows that were held out: what ``partition="auto"`` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.base import clone

from lutcc.fit.inputs import exact_product
from lutcc.fit.options import PARTITIONS
from lutcc.fit.table_learning import FEW_ROWS, ROWS, Objective, held_out_rows

if TYPE_CHECKING:
    from lutcc.fit.maddness import Maddness


def choose_partition(
    estimator: Maddness,
    X: np.ndarray,
    weights: np.ndarray | None,
    shift: np.ndarray,
    wanted: np.ndarray,
    random: np.random.RandomState,
) -> str:
    """Return the partition, "contiguous", "opq" or "r2", that errs least on held-out rows.

    Parameters
    ----------
    estimator
        Not fitted: its options, but for those of the partition and of eq. 3, make the candidates.
    X
        (N, D) float32 rows. Of fewer than :data:`FEW_ROWS`, or of one codebook, columns stay as
        they come; at most :data:`ROWS` rows are drawn.
    weights, shift
        B (D, M), or None for the identity, and the bias (M,).
    wanted
        (N, D) float32: what is to be given back, times B.
    random
        Draws rows, those that are held out, and the candidates' seed.

    Notes
    -----
    Rows are held out as for equation 3. The error is that of eq. 3, of the tables of eq. 2 (those
    of eq. 3 would take several times as long): of the product behind ``lut_activation``, if there
    is one, else behind ``activation``. Equal errors go to the first of the names above.
    """
    if len(X) < FEW_ROWS or estimator.ncodebooks == 1:
        return PARTITIONS[0]
    if len(X) > ROWS:
        kept = np.sort(random.choice(len(X), ROWS, replace=False))
        X, wanted = X[kept], wanted[kept]
    objective = Objective(
        "kld" if estimator.lut_objective == "kld" else "mse",
        estimator.lut_activation or estimator.activation,
    )
    exact = exact_product(wanted, weights, shift).astype(np.float32)
    aim = objective.wanted(torch.from_numpy(exact))
    folds = [*held_out_rows(len(X), random)]
    options = {"lut_objective": "ridge", "lut_activation": None, "activation": None}
    seed = int(random.randint(2**31))

    def error(partition: str) -> float:
        candidate = clone(estimator)
        candidate.set_params(partition=partition, random_state=seed, **options)
        total = 0.0
        for kept, held in folds:
            candidate.fit(X[kept], weights, shift, exact=wanted[kept])
            total += float(objective(torch.from_numpy(candidate.predict(X[held])), aim[held]))
        return total

    return min(PARTITIONS, key=error)
