"""The measuring process's side of tuning: runs kernels, judges results, times."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lutcc.tuning.device import Device
from lutcc.tuning.messages import Built, Constant, Input, Kept, Measured, Memory, Order
from lutcc.tuning.rounds import Plan, compare
from lutcc.tuning.task import Subject

_POISON = 0xA5
_KEPT_TASKS, _KEPT_KERNELS, _KEPT_CONSTANTS = 3, 8, 8


@dataclass(frozen=True)
class _Kernel:
    """A kernel with its arguments, ready to be timed."""

    device: Device
    module: Any
    symbol: str
    arguments: Sequence[Any]
    cold: bool

    def samples(self, number: int, repeat: int) -> list[float]:
        return self.device.evaluate(
            self.module, self.symbol, self.arguments, number, repeat, self.cold
        )


@dataclass
class _Loaded:
    """A task in the measuring process.

    Its kernels go when it goes: one that outlived it would work in other memory than the kernels
    it is compared with later, and where arrays lie can decide which kernel is the faster one.
    """

    subject: Subject
    reference: list[np.ndarray]
    inputs: list[Any]
    cold: bool
    memory: dict[tuple[int, Memory], Any] = field(default_factory=dict)
    kernels: Kept[Path, tuple[_Kernel, tuple[str | None, float]]] = field(
        default_factory=lambda: Kept(_KEPT_KERNELS)
    )


class Measurer:
    """Runs kernels, judges their results and times them against each other."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._tasks = Kept[Order, _Loaded](_KEPT_TASKS)
        self._constants = Kept[str, Any](_KEPT_CONSTANTS)

    def load(self, order: Order) -> None:
        """Make inputs and reference of a task, unless they are there."""
        if self._tasks.used(order) is not None:
            return
        subject: Subject = pickle.loads(order.path.read_bytes())
        inputs = subject.inputs(order.seed)
        stored = order.path.with_suffix(".npz")
        if stored.exists():  # made before this process was restarted
            with np.load(stored, allow_pickle=False) as arrays:
                reference = [arrays[name] for name in arrays.files]
        else:
            reference = [np.asarray(array) for array in subject.reference(inputs)]
            unfinished = stored.with_suffix(".part.npz")
            np.savez(unfinished, *reference)
            unfinished.rename(stored)
        on_device = [self._device.put(array) for array in inputs]
        self._tasks.keep(order, _Loaded(subject, reference, on_device, order.cold))

    def check(self, order: Order, built: Built) -> tuple[str | None, float]:
        """Run a kernel once; return how its results are wrong, or None, and the seconds it took."""
        task = self._tasks.used(order)
        assert task is not None, "load comes first"
        if (known := task.kernels.used(built.library)) is not None:
            return known[1]
        module = self._device.load(built.library)
        arguments = [self._argument(task, i, a) for i, a in enumerate(built.arguments)]
        before = {}
        for index in built.outputs:
            memory = built.arguments[index]
            assert isinstance(memory, Memory)
            before[index] = _poisoned(memory)
            self._device.write(arguments[index], before[index])
        function = module[built.symbol]
        start = time.perf_counter()
        function(*arguments)
        seconds = time.perf_counter() - start
        results = [self._device.fetch(arguments[index]) for index in built.outputs]
        wrong = task.subject.compare(results, task.reference)
        kernel = _Kernel(self._device, module, built.symbol, arguments, task.cold)
        return task.kernels.keep(built.library, (kernel, (wrong, seconds)))[1]

    def time(self, order: Order, libraries: Sequence[Path], plan: Plan) -> Measured:
        """Time kernels of a task that have been checked; ratios are against the first."""
        task = self._tasks.used(order)
        assert task is not None, "load comes first"
        checked = [task.kernels.used(library) for library in libraries]
        kernels = [one[0] for one in checked if one is not None]
        assert len(kernels) == len(libraries), "check comes first"
        start = time.perf_counter()
        comparisons = compare(kernels, plan)
        return Measured(tuple(comparisons), time.perf_counter() - start)

    def ping(self) -> None:
        """Do nothing, on the device."""
        self._device.ping()

    def _argument(self, task: _Loaded, index: int, wanted: Memory | Constant | Input | int) -> Any:
        if isinstance(wanted, Input):
            return task.inputs[wanted.index]
        if isinstance(wanted, Constant):
            known = self._constants.used(wanted.digest)
            if known is None:
                array = np.load(wanted.path, allow_pickle=False)
                known = self._constants.keep(wanted.digest, self._device.put(array))
            return known
        if isinstance(wanted, Memory):
            if (index, wanted) not in task.memory:
                task.memory[index, wanted] = self._device.put(_poisoned(wanted))
            return task.memory[index, wanted]
        return wanted


def _poisoned(memory: Memory) -> np.ndarray:
    array = np.empty(memory.shape, memory.dtype)
    array.reshape(-1).view(np.uint8).fill(_POISON)
    return array
