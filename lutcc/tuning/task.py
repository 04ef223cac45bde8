"""One thing to tune: a workload, its space, and the subject that builds and judges candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lutcc.schedules.space import Config, Space
from lutcc.tuning.workload import Workload


@dataclass(frozen=True)
class Candidate:
    """A built kernel with everything that a call needs.

    Attributes
    ----------
    module
        TVM runtime module, compiled in this process and exportable.
    symbol
        Its function.
    arguments
        In call order: arrays (64-byte aligned where the kernel wants it) and plain ints.
    outputs
        Positions of the results among the arguments.
    scratch
        Positions of workspaces: arrays whose contents do not matter before a call or after it.
    """

    module: Any
    symbol: str
    arguments: Sequence[Any]
    outputs: tuple[int, ...]
    scratch: tuple[int, ...] = ()


class Subject(Protocol):
    """Builds candidates and knows the right answer; runs in the measuring process.

    Implementations hold texts, numbers and arrays only, so that they can be sent there (pickled,
    over a private pipe).
    """

    def inputs(self, seed: int) -> list[np.ndarray]:
        """Return the data that every candidate is run on."""
        ...

    def reference(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return what the outputs must be, from the interpreter (or from unscheduled loops)."""
        ...

    def candidate(
        self, config: Config, isa: str, mcpu: str | None, inputs: Sequence[np.ndarray]
    ) -> Candidate:
        """Build the kernel under a config."""
        ...

    def compare(self, got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> str | None:
        """Return None if the outputs are right, else how they differ."""
        ...


@dataclass(frozen=True)
class Task:
    """A workload to tune for one target.

    Attributes
    ----------
    name
        For people: where in the model, which ops, which shapes.
    workload, space, subject
        See there.
    isa, mcpu
        Target: instruction-set level and, if the code is for one CPU, its LLVM name.
    calls
        How often one run of the model calls it; with the time of a call, its share.
    batch, model
        The model's batch size (its rows may be a multiple of it), and which of several models it
        is: tasks that agree in both share the time of one run.
    """

    name: str
    workload: Workload
    space: Space
    subject: Subject
    isa: str
    mcpu: str | None = None
    calls: float = 1.0
    batch: int = 1
    model: str = ""

    @property
    def run(self) -> tuple[str, int]:
        """The run of a model that the task is a part of."""
        return self.model, self.batch
