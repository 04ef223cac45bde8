"""Where a built kernel runs: on this machine, or on another through TVM's RPC."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import UsageError
from lutcc.schedules.x86.pack import aligned_empty

#: Name of the packed function that empties the caches; known here and on RPC servers of lutcc.
FLUSH = "lutcc.tuning.flush_caches"
#: Written over to push code and page-table entries out of the first two cache levels.
_SWEEP_BYTES = 8 << 20


def facts() -> dict[str, Any]:
    """Return what decides whether kernels run on this machine, and how fast.

    Returns
    -------
    dict
        ``place``: fields of :class:`lutcc.tuning.records.Place` (``isa`` is empty); ``levels``:
        instruction-set levels it can run; ``cores``: the ones that this process may use.
    """
    from lutcc.runtime import cpu
    from lutcc.tuning.host import place

    return {
        "place": asdict(place("")),
        "levels": list(cpu.supported_isas()),
        "cores": usable_cores(),
    }


def usable_cores() -> list[int]:
    """Return the logical processors that this process may use."""
    return sorted(os.sched_getaffinity(0))


def choose_cores(core: int | None, threads: int) -> list[int]:
    """Return the cores to measure on: the last usable ones, or those from ``core`` on.

    Raises
    ------
    UsageError
        If there are too few, or this process may not use them.
    """
    usable = usable_cores()
    if threads < 1 or threads > len(usable):
        raise UsageError(
            f"{threads} threads need as many cores, this process may use {len(usable)}",
            where="threads",
            fix=f"choose 1 to {len(usable)}",
        )
    if core is None:
        return usable[-threads:]
    chosen = usable[usable.index(core) :][:threads] if core in usable else []
    if len(chosen) < threads:
        raise UsageError(
            f"core {core} cannot be measured on with {threads} threads",
            where="core",
            fix=f"choose one of {usable[: len(usable) - threads + 1]}",
        )
    return chosen


@functools.cache
def register_flush() -> None:
    """Register :data:`FLUSH`: evicts a call's arguments from all caches, then sweeps L1 and L2.

    TVM's own ``cache_flush_cpu_non_first_arg`` leaves the first argument where it is and fails on
    arguments that are no arrays.
    """
    tvm = import_tvm()
    evict = tvm.get_global_func("cache_flush_cpu_non_first_arg")
    sweep = np.zeros(_SWEEP_BYTES, np.uint8)

    def flush(*arguments: Any) -> None:
        evict(None, *(a for a in arguments if not isinstance(a, int)))
        sweep[::64] += 1

    tvm.register_global_func(FLUSH, flush, override=True)


class Device(Protocol):
    """What the measuring process does with kernels and arrays."""

    def ping(self) -> None:
        """Return if the device still answers; raise if not."""
        ...

    def load(self, library: Path) -> Any:
        """Return the module in a shared library."""
        ...

    def put(self, array: np.ndarray) -> Any:
        """Return the array as an argument for kernels, at an address of its own."""
        ...

    def write(self, argument: Any, array: np.ndarray) -> None:
        """Overwrite an argument."""
        ...

    def fetch(self, argument: Any) -> np.ndarray:
        """Return an argument's values."""
        ...

    def evaluate(
        self,
        module: Any,
        symbol: str,
        arguments: Sequence[Any],
        number: int,
        repeat: int,
        cold: bool,
    ) -> list[float]:
        """Return ``repeat`` times the mean seconds of ``number`` calls."""
        ...


class LocalDevice:
    """Runs kernels in the process that asks."""

    def __init__(self) -> None:
        self._tvm = import_tvm()
        self._host: dict[int, np.ndarray] = {}
        register_flush()

    def ping(self) -> None:
        """Return: this process answers."""

    def load(self, library: Path) -> Any:
        """Return the module in a shared library."""
        return self._tvm.runtime.load_module(str(library))

    def put(self, array: np.ndarray) -> Any:
        """Return a copy, 64-byte aligned."""
        import tvm_ffi

        memory = aligned_empty(array.nbytes).view(array.dtype).reshape(array.shape)
        memory[...] = array
        return tvm_ffi.from_dlpack(memory)

    def write(self, argument: Any, array: np.ndarray) -> None:
        """Overwrite an argument."""
        np.from_dlpack(argument)[...] = array

    def fetch(self, argument: Any) -> np.ndarray:
        """Return an argument's values, not copied."""
        return np.from_dlpack(argument)

    def evaluate(
        self,
        module: Any,
        symbol: str,
        arguments: Sequence[Any],
        number: int,
        repeat: int,
        cold: bool,
    ) -> list[float]:
        """Return ``repeat`` times the mean seconds of ``number`` calls."""
        return _evaluate(module, symbol, self._tvm.cpu(), arguments, number, repeat, cold)


class RemoteDevice:
    """A machine that runs ``lutcc serve-rpc``; the library goes there, results come back.

    Parameters
    ----------
    session
        TVM's RPC session.
    """

    def __init__(self, session: Any) -> None:
        self._tvm = import_tvm()
        self._session = session
        self._cpu = session.cpu()

    def ping(self) -> None:
        """Return if the server still answers; raise if not."""
        self._session.get_function("tvm.rpc.server.workpath")(".")

    def load(self, library: Path) -> Any:
        """Send a shared library over and return its module."""
        self._session.upload(str(library))
        module = self._session.load_module(library.name)
        self._session.remove(library.name)  # it is mapped
        return module

    def put(self, array: np.ndarray) -> Any:
        """Send an array over."""
        return self._tvm.runtime.tensor(np.ascontiguousarray(array), self._cpu)

    def write(self, argument: Any, array: np.ndarray) -> None:
        """Overwrite an argument."""
        argument.copyfrom(array)

    def fetch(self, argument: Any) -> np.ndarray:
        """Return an argument's values."""
        return argument.numpy()

    def evaluate(
        self,
        module: Any,
        symbol: str,
        arguments: Sequence[Any],
        number: int,
        repeat: int,
        cold: bool,
    ) -> list[float]:
        """Return ``repeat`` times the mean seconds of ``number`` calls, timed over there."""
        return _evaluate(module, symbol, self._cpu, arguments, number, repeat, cold)


def _evaluate(
    module: Any,
    symbol: str,
    device: Any,
    arguments: Sequence[Any],
    number: int,
    repeat: int,
    cold: bool,
) -> list[float]:
    timer = module.time_evaluator(
        symbol, device, number=number, repeat=repeat, f_preproc=FLUSH if cold else ""
    )
    return list(timer(*arguments).results)
