"""What layers and models take: compiled for the target, timed in turns on this processor."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from lutcc.bench.timing import burst, interleave
from lutcc.compiler import compile as compile_model
from lutcc.convert_model import Batch
from lutcc.errors import TargetError
from lutcc.runtime import Artifact

#: Length of a turn in seconds, and turns of each candidate: many short ones, so that all meet the
#: same slow and fast moments.
SECONDS, ROUNDS = 0.003, 40
#: Seconds that all turns should take together, and the fewest rounds in any case.
TOTAL, LEAST_ROUNDS = 6.0, 5
#: Longer calls are made once a turn, without one to warm up.
SLOW = 0.01
#: Shorter calls are made several times between two looks at the clock.
SHORT = 3e-5


@dataclasses.dataclass(frozen=True, slots=True)
class Speed:
    """Best seconds of a call, and the bytes of an artifact's constants: weights and tables."""

    seconds: float
    nbytes: int

    def cost(self, objective: str) -> float:
        """Seconds or bytes."""
        return self.seconds if objective == "time" else float(self.nbytes)


def check_target(target: str) -> str:
    """Return the target's level, which must run here.

    Raises
    ------
    TargetError
        If it is unknown, several, or this processor cannot run it.
    """
    from lutcc.codegen.targets import parse_targets
    from lutcc.runtime import cpu

    levels = [choice.isa.name for choice in parse_targets(target)]
    if len(levels) > 1:
        raise TargetError(
            f"{target!r} names {len(levels)} targets, but a plan is for one",
            where="target",
            fix="make a plan for each",
        )
    if levels[0] not in cpu.supported_isas():
        raise TargetError(
            f"kernels of level {levels[0]} do not run on this processor, so they cannot be timed",
            where="target",
            fix=f"make the plan on such a machine, or use one of {', '.join(cpu.supported_isas())}",
        )
    return levels[0]


def compiled(module: torch.nn.Module, batch: Batch, target: str) -> Artifact:
    """Compile a module in eval mode for the sizes of a batch.

    Raises
    ------
    LutccError
        If it cannot be compiled.
    """
    args, kwargs = batch
    return compile_model(module.eval(), kwargs or args, target=target)


def time_in_turns(given: Mapping[str, tuple[Artifact, Batch]]) -> dict[str, Speed]:
    """Time artifacts in turns, each on the arrays of its batch: some seconds in all.

    Where no call has a second thread, seconds are those of the processor: what others had of a
    machine that is shared does not count.
    """
    alone = all(artifact.num_threads == 1 for artifact, _ in given.values())
    clock = time.thread_time_ns if alone else time.perf_counter_ns
    calls, once, repeats = {}, {}, {}
    start = time.perf_counter_ns(), clock()
    for name, (artifact, (args, kwargs)) in given.items():
        values = [kwargs[spec.name] for spec in artifact.inputs] if kwargs else args
        arrays = [v.detach().cpu().contiguous().numpy() for v in values if _tensor(v)]
        call = partial(artifact, *arrays)
        once[name] = min(burst(call, 0.0, warmup=1, least=1, clock=clock)) * 1e-9
        slow = once[name] > SLOW
        repeats[name] = math.ceil(SHORT / max(once[name], 1e-7))
        several = partial(_repeated, call, repeats[name])
        calls[name] = partial(
            burst, several, warmup=0 if slow else 2, least=1 if slow else 3, clock=clock
        )
    turns = sum(max(SECONDS, t if t > SLOW else 5 * t) for t in once.values())
    turns *= (time.perf_counter_ns() - start[0]) / max(clock() - start[1], 1)  # others' share
    rounds = round(min(max(TOTAL / turns, LEAST_ROUNDS), ROUNDS))
    times = interleave(calls, seconds=SECONDS, rounds=rounds)
    return {
        name: Speed(
            times[name].best / repeats[name], sum(a.nbytes for a in artifact.constants().values())
        )
        for name, (artifact, _) in given.items()
    }


def _repeated(call: Callable[[], object], count: int) -> None:
    for _ in range(count):
        call()


def _tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
