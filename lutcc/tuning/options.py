"""What a tuning session may spend."""

from __future__ import annotations

from dataclasses import dataclass

from lutcc.errors import InputError

#: Trials per kernel of each ``--effort``.
EFFORTS = {"none": 0, "quick": 16, "full": 128}


@dataclass(frozen=True)
class SessionOptions:
    """What a session may spend.

    Attributes
    ----------
    trials
        Trials per kernel on average; the sum is shared out by each kernel's part of the model's
        time. Trials that the log has already count.
    budget_s
        Seconds of wall time after which no new trial starts, or None.
    seed
        Of the search and of the data.
    resume
        Go on from what the log knows of the same workloads on the same processor.
    search
        ``metaschedule`` (evolutionary search with an XGBoost cost model), ``random`` or
        ``exhaustive``.
    transfer
        Let records of other workloads and processors seed the search.
    """

    trials: int = 64
    budget_s: float | None = None
    seed: int = 0
    resume: bool = True
    search: str = "metaschedule"
    transfer: bool = True

    def __post_init__(self) -> None:
        if self.trials < 0:
            raise InputError(f"trials is {self.trials}", where="tune", fix="use 0 or more")
        if self.budget_s is not None and self.budget_s <= 0:
            raise InputError(f"the budget is {self.budget_s} s", where="tune", fix="use more")
