"""One ISA variant of look-up kernels, ready to run: packed tables, workspaces, the entry."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lutcc.errors import ArtifactError, BackendError, DependencyError, InputError, LutccError
from lutcc.runtime import bfloat16, ffi, threads
from lutcc.runtime.arguments import admit
from lutcc.runtime.manifest import packed_nbytes
from lutcc.runtime.short_way import short_way
from lutcc.runtime.signature import TensorSpec

#: A thread is worth waking for this much work.
SECONDS_PER_THREAD = 15e-6

#: Coarse speeds of one core, only good enough to say when a second thread pays.
_LOOKUPS_PER_SECOND = 150e9
_FLOPS_PER_SECOND = 40e9
_BYTES_PER_SECOND = 20e9


def open_library(data: bytes, name: str) -> Any:
    """Open a shared library from its checked bytes.

    The bytes go through a private folder (mode 0700) that is removed as soon as the library is
    mapped, so that nothing can be swapped between the check and the opening, and nothing is left
    behind.

    Raises
    ------
    ArtifactError
        When the folder cannot be written or the dynamic linker refuses the file.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="lutcc-"))
    except OSError as error:
        raise ArtifactError(
            f"no temporary folder can be made: {error.strerror}", where=name, fix="set TMPDIR"
        ) from error
    try:
        path = folder / name
        try:
            path.write_bytes(data)
        except OSError as error:
            raise ArtifactError(
                f"cannot be written to the temporary folder: {error.strerror}",
                where=name,
                fix="free some space there, or set TMPDIR",
            ) from error
        return ffi.open_module(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def pack(program: Mapping[str, Any], constants: Mapping[str, np.ndarray], where: str) -> np.ndarray:
    """Return the constants in the layout that the kernels read: uint8, on a cache line.

    Raises
    ------
    ArtifactError
        When constants are missing, or do not fit the program.
    """
    for part in program["blob"]:
        for source in part["sources"]:
            if source not in constants:
                raise ArtifactError(
                    f"the kernels need the constant {source!r}, which is missing",
                    where=where,
                    fix="compile the model again",
                )
    if not program["blob"]:
        return ffi.aligned_copy(np.zeros(packed_nbytes(program), np.uint8))
    from lutcc.schedules.x86.pack import pack_blob

    try:
        blob = pack_blob(dict(program), dict(constants))
    except (KeyError, ValueError, TypeError, IndexError, MemoryError) as error:
        raise ArtifactError(
            f"the tables cannot be packed for {program['isa']}: {error}",
            where=where,
            fix="the artifact is inconsistent; compile the model again",
        ) from error
    if blob.dtype != np.uint8 or blob.nbytes < program["blob_nbytes"]:
        raise ArtifactError(
            f"the packed tables have {blob.nbytes} bytes, not {program['blob_nbytes']} as the "
            "program says",
            where=where,
            fix="compile the model again with this lutcc",
        )
    return blob if blob.ctypes.data % ffi.ALIGNMENT == 0 else ffi.aligned_copy(blob)


def seconds_per_row(work_per_row: Mapping[str, float]) -> float:
    """Return roughly how long one core needs for one row.

    Parameters
    ----------
    work_per_row
        ``lookups``, ``flops`` and ``bytes`` per row; an unknown amount of work counts as a quarter
        of a microsecond.

    Examples
    --------
    >>> round(seconds_per_row({"lookups": 32768, "flops": 0, "bytes": 4096}) * 1e6, 2)
    0.42
    """
    seconds = (
        work_per_row.get("lookups", 0) / _LOOKUPS_PER_SECOND
        + work_per_row.get("flops", 0) / _FLOPS_PER_SECOND
        + work_per_row.get("bytes", 0) / _BYTES_PER_SECOND
    )
    return seconds if seconds > 0 else 0.25e-6


class ThreadChoice:
    """How many threads an artifact uses: its own number, or the global one."""

    __slots__ = ("own",)

    def __init__(self) -> None:
        self.own: int | None = None

    def count(self) -> int:
        """Return the number in force."""
        return self.own or threads.state.count or threads.get_num_threads()


class LookupKernel:
    """The entry function of one variant with everything that a call needs.

    Calls may come from many threads at once: each takes a workspace from a free list and gives it
    back.
    """

    def __init__(
        self,
        program: Mapping[str, Any],
        library: bytes,
        file: str,
        constants: Mapping[str, np.ndarray],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        *,
        choice: ThreadChoice,
        work_per_row: Mapping[str, float] | None = None,
        packed: bytes | None = None,
    ) -> None:
        self.program = program
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.choice = choice
        self._has_parallel = f"__tvm_ffi_{program['entry']}_mt".encode() in library
        self.threads_per_row = seconds_per_row(work_per_row or {}) / SECONDS_PER_THREAD
        self.parallel_rows = max(1, math.ceil(2 / self.threads_per_row))
        self.serial_rows = self.parallel_rows - 1 if self._has_parallel else 2**62
        first = self.inputs[0].shape[0] if self.inputs[0].shape else 1
        self._static_rows = first if isinstance(first, int) else 1
        self._library, self._file = library, file
        self._lock = threading.Lock()
        self._entry_name: str = program["entry"]
        if packed is None:
            self.blob = pack(program, constants, file)
        else:
            self.blob = ffi.aligned_copy(np.frombuffer(packed, np.uint8))
        self.blob_tensor = ffi.tvm_ffi().from_dlpack(self.blob)
        self._sizes = program["workspace"]
        self.spaces: list[tuple[int, int, Any]] = []
        if ffi.runtime_library_loaded():
            module = open_library(library, file)
            self.serial = self._function(module, self._entry_name)
            self._parallel = self._parallel_of(module)
        else:
            self.serial = self._function(open_library(library, file), self._entry_name)
            self._parallel = None
        self.call = short_way(self)

    def _function(self, module: Any, name: str) -> Any:
        try:
            return module[name]
        except (AttributeError, KeyError, RuntimeError) as error:
            raise ArtifactError(
                f"has no function {name!r}", where=self._file, fix="compile the model again"
            ) from error

    def _parallel_of(self, module: Any) -> Any:
        return self._function(module, f"{self._entry_name}_mt") if self._has_parallel else None

    def _open_parallel(self) -> Any:
        """Open the library once more, now that TVM's thread pool is there for it to find."""
        with self._lock:
            if self._parallel is None and self._has_parallel:
                try:
                    ffi.load_runtime_library("running a kernel on several threads")
                except DependencyError as error:
                    if threads.state.asked or self.choice.own:
                        raise
                    warnings.warn(
                        f"{error}\nThis process goes on with one thread.",
                        RuntimeWarning,
                        stacklevel=4,
                    )
                    self._has_parallel = False
                    return None
                self._parallel = self._parallel_of(open_library(self._library, self._file))
        return self._parallel

    def threads_for(self, rows: int) -> int:
        """Return how many threads a call with this many rows runs on."""
        return max(1, min(self.choice.count(), int(rows * self.threads_per_row)))

    def workspace(self, rows: int, count: int) -> tuple[int, int, Any]:
        """Return (rows, threads, memory) of a new workspace that is large enough for both."""
        sizes = self._sizes
        nbytes = sizes["fixed"] + sizes["per_row"] * rows + sizes["per_thread"] * count
        # The memory is referenced by the tvm_ffi tensor alone.
        return rows, count, ffi.tvm_ffi().from_dlpack(ffi.aligned_empty(nbytes + ffi.ALIGNMENT))

    def launch(self, rows: int, tensors: Sequence[Any], results: Sequence[Any]) -> None:
        """Run the entry function on checked tensors; ``rows`` is the symbol's value.

        Raises
        ------
        InputError
            When a kernel refuses the numbers that it was given.
        BackendError
            When the kernel reports another error.
        """
        count, function = 1, self.serial
        if rows >= self.parallel_rows and self._has_parallel:
            count = self.threads_for(rows)
            parallel = (self._parallel or self._open_parallel()) if count > 1 else None
            count = threads.prepare_pool(count) if parallel is not None else 1
            if parallel is not None and count > 1:
                function = parallel
        try:
            space = self.spaces.pop()
        except IndexError:
            space = self.workspace(rows, count)
        if space[0] < rows or space[1] < count:
            space = self.workspace(max(rows, space[0]), max(count, space[1]))
        try:
            function(*tensors, self.blob_tensor, space[2], *results, count)
        except Exception as error:
            raise self.failed(error) from error
        finally:
            self.spaces.append(space)

    def failed(self, error: Exception) -> LutccError:
        """Return the error to raise when the entry function reported ``error``."""
        if isinstance(error, IndexError):  # the one thing that kernels check by themselves
            return InputError(str(error), where=self._file, fix="correct the numbers passed in")
        return BackendError(
            f"the kernel {self._entry_name} failed: {error}",
            where=self._file,
            fix="this is a mistake in lutcc or a damaged artifact: compile the model again, and "
            "report it with the output of `lutcc doctor` if it stays",
        )

    def checked_call(self, *values: Any) -> Any:
        """Run on any arguments, with all checks."""
        tensors, sizes, torch = admit(values, self.inputs)
        results = allocate(self.outputs, sizes, torch)
        rows = next(iter(sizes.values()), self._static_rows)
        if rows and all(size for t in results for size in t.shape):
            taken = results if torch is not None else _taken(results, self.outputs)
            self.launch(rows, tensors, taken)
        return results[0] if len(results) == 1 else tuple(results)


def _taken(results: Sequence[np.ndarray], specs: Sequence[TensorSpec]) -> list[Any]:
    """Return arrays as the entry function takes them."""
    pairs = zip(results, specs, strict=True)
    return [bfloat16.to_tensor(r) if spec.dtype == "bfloat16" else r for r, spec in pairs]


def allocate(
    specs: Sequence[TensorSpec], sizes: Mapping[str, int], torch: ModuleType | None
) -> list[Any]:
    """Return uninitialised results, NumPy arrays or (with ``torch``) torch CPU tensors."""
    if torch is None:
        return [ffi.empty_array(spec.resolve(sizes), spec.numpy_dtype()) for spec in specs]
    return [
        torch.empty(spec.resolve(sizes), dtype=getattr(torch, spec.dtype), device="cpu")
        for spec in specs
    ]
