"""One ISA variant of look-up kernels, ready to run: packed tables, workspaces, the entry."""

from __future__ import annotations

import math
import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from lutcc.errors import ArtifactError, BackendError, DependencyError, InputError, LutccError
from lutcc.runtime import bfloat16, ffi, threads
from lutcc.runtime.arguments import STRIDED_DTYPES, admit, torch_module
from lutcc.runtime.manifest import packed_nbytes
from lutcc.runtime.signature import TensorSpec

#: In place of an argument that is not given.
_NOTHING = object()
#: Shapes of inputs that the short way remembers.
_KNOWN_SHAPES = 256
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
        self.call = _fast_call(self)

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


def _fast_call(kernel: LookupKernel) -> Callable[..., Any]:
    """Return the function behind ``artifact(...)``: a short way for the usual call.

    The short way is for one contiguous, writable, aligned array of the exact type, rows or images
    of one size, one result, and one thread, or few enough rows for one. It only ever decides that a
    call is fine; whatever it is not sure of goes to :meth:`LookupKernel.checked_call`, which
    explains. Everything it touches is a local of this closure: attribute look-ups would cost as
    much as the rest, and where weights come from memory so does the code that is called: the long
    way then takes a tenth of the time of reading 32 MB.
    """
    checked = kernel.checked_call
    if len(kernel.inputs) != 1 or len(kernel.outputs) != 1:
        return checked
    source, target = kernel.inputs[0], kernel.outputs[0]
    tail, tail_out = source.shape[1:], target.shape[1:]
    fits = (
        len(tail) > 0
        and len(tail_out) > 0
        and source.shape[0] == target.shape[0]
        and (isinstance(source.shape[0], int) or source.shape[0][1] == 1)
        and all(isinstance(d, int) and d > 0 for d in (*tail, *tail_out))
    )
    if not fits:
        return checked
    dtype, dtype_out = source.numpy_dtype(), target.numpy_dtype()
    rank, from_dlpack = len(source.shape), ffi.tvm_ffi().from_dlpack
    strided = rank == 2 and source.dtype in STRIDED_DTYPES
    mask, first, alone, threads_in_force = (
        dtype.itemsize - 1,
        source.shape[0],
        kernel.serial_rows,
        kernel.choice.count,
    )
    least, most = (max(first, 1), first) if isinstance(first, int) else (1, 2**62)
    half_in, half_out = (spec.dtype == "bfloat16" for spec in (source, target))
    to_tensor = bfloat16.to_tensor
    ndarray, empty = np.ndarray, np.empty
    sizes_out = target.resolve({symbol: 1 for symbol in target.symbols})[1:]
    large = -(-ffi.LARGE // max(math.prod(sizes_out) * dtype_out.itemsize, 1))
    function, blob = kernel.serial, kernel.blob_tensor
    pop, push, workspace, failed = (
        kernel.spaces.pop,
        kernel.spaces.append,
        kernel.workspace,
        kernel.failed,
    )
    torch_type = torch_dtype = torch_dtype_out = torch_strided = None

    shapes: dict[tuple[int, ...], tuple[int, tuple[int, ...]]] = {}
    known = shapes.get

    def learn_shape(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
        """Return the rows of an input of this shape and the result's shape, if that is right."""
        if len(shape) != rank or shape[1:] != tail or not least <= shape[0] <= most:
            return None
        if len(shapes) >= _KNOWN_SHAPES:
            shapes.clear()
        shapes[tuple(shape)] = found = int(shape[0]), (int(shape[0]), *sizes_out)
        return found

    def learn_torch() -> None:
        nonlocal torch_type, torch_dtype, torch_dtype_out, torch_strided
        torch = torch_module()
        if torch is not None:
            torch_dtype, torch_dtype_out = (
                getattr(torch, source.dtype),
                getattr(torch, target.dtype),
            )
            torch_strided, torch_type = torch.strided, torch.Tensor

    def call(x: Any = _NOTHING, *more: Any) -> Any:
        kind = type(x)
        if kind is ndarray and not more:
            if x.dtype is not dtype and x.dtype != dtype:
                return checked(x)
            found = known(x.shape) or learn_shape(x.shape)
            if found is None:
                return checked(x)
            rows, shape_out = found
            if rows > alone and threads_in_force() > 1:
                return checked(x)
            flags = x.flags
            if not flags.carray:
                if not flags.aligned:
                    return checked(x)
                if not flags.c_contiguous and (not strided or min(x.strides) <= 0):
                    return checked(x)
                if not flags.writeable and not half_in:
                    x = from_dlpack(x.__dlpack__(max_version=(1, 0)))
            if half_in:
                x = to_tensor(x)
            if rows < large:
                out = empty(shape_out, dtype_out)
            else:
                out = ffi.empty_array(shape_out, dtype_out)
            taken = to_tensor(out) if half_out else out
        elif kind is torch_type and not more:
            if (
                x.dtype is not torch_dtype
                or x.layout is not torch_strided
                or not x.is_cpu
                or x.requires_grad
                or x.is_neg()
                or x.data_ptr() & mask
            ):
                return checked(x)
            found = known(x.shape) or learn_shape(x.shape)
            if found is None:
                return checked(x)
            rows, shape_out = found
            if rows > alone and threads_in_force() > 1:
                return checked(x)
            if not x.is_contiguous() and (not strided or 0 in x.stride()):
                return checked(x)
            taken = out = x.new_empty(shape_out, dtype=torch_dtype_out)
        else:
            if torch_type is None:
                learn_torch()
            return checked(*(() if x is _NOTHING else (x, *more)))
        try:
            space = pop()
        except IndexError:
            space = workspace(rows, 1)
        try:
            if space[0] < rows:
                space = workspace(rows, space[1])
            function(x, blob, space[2], taken, 1)
        except Exception as error:
            raise failed(error) from error
        finally:
            push(space)
        return out

    return call
