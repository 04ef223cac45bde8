"""What ``lutcc bench`` asks of every benchmark."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """How long and on what to measure.

    Parameters
    ----------
    seconds
        Length of one turn of one candidate; candidates take turns (see
        :func:`lutcc.bench.timing.interleave`).
    rounds
        Turns of each candidate.
    quick
        Fewer shapes and turns: seconds instead of minutes.
    full
        More and larger batches.
    isa
        Only this ISA level; None: every level that the CPU has.
    seed
        Of random inputs and tables.
    core
        The core that the process is bound to.
    cores
        All that it might use, that one first; what is timed on two cores takes the first two.
    """

    seconds: float = 0.02
    rounds: int = 10
    quick: bool = False
    full: bool = False
    isa: str | None = None
    seed: int = 0
    core: int = 0
    cores: tuple[int, ...] = ()
