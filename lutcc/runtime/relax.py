"""Mixed models: a Relax virtual machine that runs exact layers beside look-up kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from lutcc.errors import ArtifactError, BackendError, InputError
from lutcc.runtime import bfloat16, ffi, threads
from lutcc.runtime.arguments import admit
from lutcc.runtime.kernel import ThreadChoice, allocate, open_library
from lutcc.runtime.signature import Bounds, TensorSpec, check_bounds

# Relax kernels move 64 bytes at a time and trust the address.
_ALIGNMENT = ffi.ALIGNMENT
_CPU, _POOLED = 1, 2


class RelaxKernel:
    """A Relax executable with its parameters; concurrent calls run on machines of their own."""

    def __init__(
        self,
        library: bytes,
        file: str,
        constants: Mapping[str, np.ndarray],
        param_order: Sequence[str],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        choice: ThreadChoice,
        bounds: Mapping[str, Bounds] | None = None,
    ) -> None:
        self.bounds = dict(bounds or {})
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.choice = choice
        self._file = file
        missing = [name for name in param_order if name not in constants]
        if missing:
            raise ArtifactError(
                f"the parameters {missing} are missing", where=file, fix="compile the model again"
            )
        ffi.load_runtime_library("a model with exact layers")
        self._module = open_library(library, file)
        try:
            self._new_machine = self._module["vm_load_executable"]
        except (AttributeError, KeyError, RuntimeError) as error:
            raise ArtifactError(
                "is no Relax executable", where=file, fix="compile the model again"
            ) from error
        from_dlpack = ffi.tvm_ffi().from_dlpack
        self._params = [from_dlpack(ffi.aligned_copy(constants[name])) for name in param_order]
        self._threads_at = [i for i, name in enumerate(param_order) if name == threads.THREADS]
        self._params_for: dict[int, list[Any]] = {}
        self._machines: list[tuple[Any, Any]] = [self._machine()]

    def _machine(self) -> tuple[Any, Any]:
        try:
            machine = self._new_machine()
            machine["vm_initialization"](_CPU, 0, _POOLED)
            return machine, machine["main"]
        except Exception as error:
            raise ArtifactError(
                f"the virtual machine does not start: {error}",
                where=self._file,
                fix="compile the model again with this lutcc",
            ) from error

    def call(self, *values: Any) -> Any:
        """Run on any arguments, with all checks."""
        tensors, sizes, torch = admit(values, self.inputs, alignment=_ALIGNMENT, strided=False)
        if any(size == 0 for size in sizes.values()):
            return self._nothing(sizes, torch)
        if self.bounds:
            check_bounds(sizes, self.bounds, self.inputs)
        count = self.choice.count()
        if threads.state.forked:
            raise BackendError(
                "this process was forked from one that ran kernels on several threads, which a "
                "fork does not copy",
                fix="start workers with multiprocessing's 'spawn' or 'forkserver' method",
            )
        threads.prepare_pool(count)
        try:
            machine = self._machines.pop()
        except IndexError:
            machine = self._machine()
        try:
            # As tvm_ffi tensors, so that results come back as such whatever the caller passed.
            from_dlpack = ffi.tvm_ffi().from_dlpack
            arguments = [from_dlpack(t) for t in tensors]
            answer = machine[1](*arguments, *self._params_of(count))
        except Exception as error:
            raise BackendError(
                f"the virtual machine failed: {error}",
                where=self._file,
                fix="compile the model again, and report it with the output of `lutcc doctor` if "
                "it stays",
            ) from error
        finally:
            self._machines.append(machine)
        return _results(answer, torch)

    def _params_of(self, count: int) -> list[Any]:
        """Return the parameters of a call on so many threads."""
        found = self._params_for.get(count)
        if found is None:
            found = list(self._params)
            for index in self._threads_at:
                number = ffi.aligned_copy(np.array([count], np.int64))
                found[index] = ffi.tvm_ffi().from_dlpack(number)
            self._params_for[count] = found
        return found

    def _nothing(self, sizes: Mapping[str, int], torch: ModuleType | None) -> Any:
        """Return the outputs of a call with an open size of 0: they have no elements either."""
        for spec in self.outputs:
            if 0 not in spec.resolve(sizes):
                empty = ", ".join(symbol for symbol, size in sizes.items() if size == 0)
                raise InputError(
                    f"{empty} is 0, and output {spec.name!r} ({spec}) is made of those elements",
                    fix="pass at least one",
                )
        results = allocate(self.outputs, sizes, torch)
        return results[0] if len(results) == 1 else tuple(results)


def _results(answer: Any, torch: ModuleType | None) -> Any:
    if hasattr(answer, "__dlpack__"):
        return _own(answer, torch)
    converted = tuple(_own(item, torch) for item in answer)
    return converted[0] if len(converted) == 1 else converted


def _own(tensor: Any, torch: ModuleType | None) -> Any:
    """Return a tensor of the virtual machine as the caller's kind, without copying."""
    if torch is not None:
        return torch.from_dlpack(tensor)
    if str(tensor.dtype) == "bfloat16":
        return bfloat16.to_array(tensor)
    array = np.from_dlpack(tensor)
    return array if array.flags.writeable else array.copy()
