"""From a torch operator to a compiled kernel; the IR's NumPy reference until compiling pays.

A kernel is made for an op, the static part of its signature and its tables, which are packed into
it. Compiling takes a second or so, which most calls do not last: a call runs on the reference until
the time spent there on these tables exceeds what compiling them would take. An operator may bring
an implementation in torch, which then stands in for the slow reference. Results do not depend
on it: bit by bit where the op is exact, else within its tolerance. Operators without tables can
have kernels whose operands all are inputs (:func:`input_kernel`), in training too.
"""

from __future__ import annotations

import hashlib
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from lutcc import ir
from lutcc.errors import BackendError, CompileError, DependencyError, InputError, VerifyError
from lutcc.ir import Attr
from lutcc.ops.kernel_builds import as_array, build, module_of
from lutcc.runtime import cpu
from lutcc.runtime.kernel import LookupKernel

#: Kernels kept; the least recently used goes first.
MAX_KERNELS = 128
MAX_PLANS = 1024

#: What the first compilation of a signature is taken to cost.
COMPILE_SECONDS = 2.0

_MODES = ("auto", "always", "never")


@dataclass
class _State:
    mode: str = "auto"
    unavailable: str | None = None
    warned: bool = False
    kernels: OrderedDict[Any, _Entry] = field(default_factory=OrderedDict)
    libraries: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    compiled: int = 0
    reference_calls: int = 0
    kernel_calls: int = 0


@dataclass
class _Entry:
    """One set of tables under one signature: time spent on the reference, then a kernel."""

    owners: tuple[StorageWeakRef, ...]
    spent: float = 0.0
    kernel: LookupKernel | None = None
    failed: bool = False


@dataclass(eq=False)  # by identity: a plan is part of the keys of its kernels
class Plan:
    """One op with fixed dtypes, static shapes and attributes."""

    opcode: str
    attrs: tuple[tuple[str, Attr], ...]
    activations: tuple[ir.TensorType, ...]
    tables: tuple[ir.TensorType, ...]
    reference: ir.Module
    cost: float = COMPILE_SECONDS

    def module(self, tables: Sequence[np.ndarray]) -> ir.Module:
        """Return the op as a module with these tables as constants, in the dtypes of the plan."""
        kept = [
            a if a.dtype.name == t.dtype else a.astype(t.dtype)
            for a, t in zip(tables, self.tables, strict=True)
        ]
        return module_of(self.opcode, self.attrs, self.activations, kept)


_state = _State()
_lock = threading.RLock()


def set_compilation(mode: str) -> None:
    """Say when the torch operators compile kernels.

    Parameters
    ----------
    mode
        "auto": when the time spent on the reference exceeds what compiling takes; "always": on the
        first call; "never".

    Raises
    ------
    InputError
        For another mode.

    Examples
    --------
    >>> import lutcc
    >>> lutcc.ops.set_compilation("auto")
    >>> lutcc.ops.get_compilation()
    'auto'
    """
    if mode not in _MODES:
        raise InputError(f"{mode!r} is no mode", fix=f"use one of {', '.join(_MODES)}")
    _state.mode = mode


def get_compilation() -> str:
    """Return the mode set by :func:`set_compilation`."""
    return _state.mode


def clear_kernels() -> None:
    """Forget all compiled kernels and the time spent."""
    with _lock:
        _state.kernels.clear()
        _state.libraries.clear()
        _state.unavailable, _state.warned = None, False
        _state.compiled = _state.reference_calls = _state.kernel_calls = 0
    plan.cache_clear()


def kernel_statistics() -> dict[str, int]:
    """Return how many kernels were compiled and are kept, and how many calls went where.

    Examples
    --------
    >>> import lutcc
    >>> sorted(lutcc.ops.kernel_statistics())
    ['compiled', 'kept', 'kernel_calls', 'reference_calls']
    """
    return {
        "compiled": _state.compiled,
        "kept": sum(entry.kernel is not None for entry in _state.kernels.values()),
        "kernel_calls": _state.kernel_calls,
        "reference_calls": _state.reference_calls,
    }


@lru_cache(maxsize=MAX_PLANS)
def plan(
    opcode: str,
    attrs: tuple[tuple[str, Attr], ...],
    activations: tuple[tuple[str, tuple[int, ...]], ...],
    tables: tuple[tuple[str, tuple[int, ...]], ...],
) -> Plan:
    """Return the plan of a signature; of the activations, the shapes without the rows.

    Raises
    ------
    InputError
        When dtypes or shapes break the op's rules.
    """
    try:
        rows = tuple(ir.TensorType((ir.Sym("n"), *tail), name) for name, tail in activations)
        types = tuple(ir.TensorType(shape, name) for name, shape in tables)
        return Plan(opcode, attrs, rows, types, module_of(opcode, attrs, rows, types))
    except VerifyError as error:
        raise InputError(
            error.what,
            where=f"torch.ops.lutcc.{opcode}",
            fix=error.fix or f"see the definition of {opcode} in the IR reference",
        ) from error


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def run(
    opcode: str,
    x: torch.Tensor | Sequence[torch.Tensor],
    tables: Sequence[torch.Tensor],
    attrs: Mapping[str, Attr],
    *,
    torch_way: Callable[[], Any] | None = None,
    kept_as: Mapping[int, str] | None = None,
) -> Any:
    """Run an op on CPU tensors; return its result, or the tuple of its results.

    Parameters
    ----------
    opcode
        A row-wise op of the IR whose activations are its first operands.
    x
        The activation, or all of them.
    tables
        The other operands.
    attrs
        The op's attributes.
    torch_way
        Computes the same, within the op's tolerance, where no kernel does.
    kept_as
        The dtypes of tables in the kernel, by their number, where it takes no others; only beside
        ``torch_way``.

    Raises
    ------
    InputError
        When shapes, dtypes or values break the op's rules.
    """
    rows = [x] if isinstance(x, torch.Tensor) else list(x)
    signature = plan(
        opcode,
        tuple(attrs.items()),
        tuple((_dtype(t), tuple(t.shape[1:])) for t in rows),
        tuple(
            ((kept_as or {}).get(i, _dtype(table)), tuple(table.shape))
            for i, table in enumerate(tables)
        ),
    )
    if not all(t.ndim for t in rows):
        raise InputError(
            "expected at least one dimension, got none",
            where=f"torch.ops.lutcc.{opcode}",
            fix="pass rows: x[None]",
        )
    rows = [t.detach() if t.requires_grad else t for t in rows]
    entry = _entry(signature, tables)
    quiet = torch_way is not None
    if entry.kernel is None and not entry.failed and _worth_compiling(signature, entry, quiet):
        _compile(signature, tables, entry, quiet)
    kernel = entry.kernel
    if kernel is not None and _state.mode != "never":
        _state.kernel_calls += 1
        return kernel.call(*rows)
    start = time.perf_counter()
    result = torch_way() if torch_way is not None else _reference(signature, rows, tables)
    entry.spent += time.perf_counter() - start
    _state.reference_calls += 1
    return result


@lru_cache(maxsize=MAX_PLANS)
def input_plan(
    opcode: str,
    attrs: tuple[tuple[str, Attr], ...],
    inputs: tuple[tuple[str, tuple[int | None, ...]], ...],
) -> Plan:
    """Return the plan of an op whose operands all are inputs; None stands for the rows."""
    symbol = ir.Sym("n")
    types = tuple(
        ir.TensorType(tuple(symbol if size is None else size for size in shape), name)
        for name, shape in inputs
    )
    return Plan(opcode, attrs, types, (), module_of(opcode, attrs, types, ()))


def input_kernel(signature: Plan, *, at_once: bool = False) -> Callable[..., Any] | None:
    """Return the kernel of a plan of :func:`input_plan`, or None where there is none, or not yet.

    For an op whose operands all change from call to call: nothing is packed into the kernel.

    Parameters
    ----------
    signature
        The plan; what :func:`spent_without` counts for it makes "auto" compile.
    at_once
        Compile now, unless the mode is "never", and warn where that fails.
    """
    if _state.mode == "never":
        return None
    entry = _entry(signature, ())
    if entry.kernel is None and not entry.failed:
        wanted = at_once and _state.unavailable is None
        if wanted or _worth_compiling(signature, entry, quiet=not at_once):
            _compile(signature, (), entry, quiet=not at_once)
    if entry.kernel is None:
        return None
    kernel = entry.kernel

    def call(*operands: torch.Tensor) -> Any:
        _state.kernel_calls += 1
        return kernel.call(*(t.detach() if t.requires_grad else t for t in operands))

    return call


def spent_without(signature: Plan, seconds: float) -> None:
    """Count time that a call of the plan took elsewhere, for want of its kernel."""
    _entry(signature, ()).spent += seconds
    _state.reference_calls += 1


def _reference(
    signature: Plan, rows: Sequence[torch.Tensor], tables: Sequence[torch.Tensor]
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    arrays = [as_array(tensor) for tensor in (*rows, *tables)]
    try:
        results = ir.interpret(signature.reference, arrays)
    except (InputError, VerifyError) as error:
        raise InputError(
            error.what, where=f"torch.ops.lutcc.{signature.opcode}", fix=error.fix
        ) from error
    tensors = tuple(torch.from_numpy(np.require(r, requirements=["C", "W", "O"])) for r in results)
    return tensors[0] if len(tensors) == 1 else tensors


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Return what changes when the tensor's contents may have changed.

    In-place changes through torch count the version up. A change through ``.data``, NumPy or
    another process does not show; tensors made in inference mode have no version, so their bytes
    are hashed.
    """
    if tensor.is_inference():
        contents = np.ascontiguousarray(as_array(tensor)).view(np.uint8)
        return (hashlib.blake2b(contents.data, digest_size=16).digest(), tuple(tensor.shape))
    storage = tensor.untyped_storage()
    return (
        storage._cdata,
        tensor.data_ptr(),
        tensor._version,
        tuple(tensor.shape),
        tensor.stride(),
    )


def _place(identity: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return an identity without the version, so without what in-place changes change.

    Of tensors made in inference mode it is the identity itself: it has no place.
    """
    return identity if isinstance(identity[0], bytes) else (*identity[:2], *identity[3:])


def _entry(signature: Plan, tables: Sequence[torch.Tensor]) -> _Entry:
    key = (signature, *map(_identity, tables))
    with _lock:
        entry = _state.kernels.get(key)
        if entry is not None:
            _state.kernels.move_to_end(key)
            return entry
        # A storage whose tensors are gone may give its address to another one: forget it. (While
        # its weak reference is kept, the storage's own handle is not given away, so no stale entry
        # can be taken for a new table.) An earlier version of these tables never comes back either.
        places = [_place(identity) for identity in key[1:]]
        for old, stale in list(_state.kernels.items()):
            earlier = tables and old[0] is signature and [_place(i) for i in old[1:]] == places
            if earlier or any(owner.expired() for owner in stale.owners):
                del _state.kernels[old]
        owners = tuple(StorageWeakRef(t.untyped_storage()) for t in tables if not t.is_inference())
        entry = _state.kernels[key] = _Entry(owners)
        while len(_state.kernels) > MAX_KERNELS:
            _state.kernels.popitem(last=False)
        return entry


def _worth_compiling(signature: Plan, entry: _Entry, quiet: bool) -> bool:
    if _state.mode == "never":
        return False
    if _state.mode == "auto" and entry.spent < signature.cost:
        return False
    if _state.unavailable is None:
        return True
    if not _state.warned and not quiet:
        _state.warned = True
        warnings.warn(
            f"torch.ops.lutcc runs on its NumPy reference, which is slow: {_state.unavailable}",
            RuntimeWarning,
            stacklevel=5,
        )
    return False


def _compile(
    signature: Plan, tables: Sequence[torch.Tensor], entry: _Entry, quiet: bool = False
) -> None:
    """Put a kernel into ``entry``; where that fails, say so once and leave the reference.

    ``quiet``: what runs instead is not slow, so only the mode "always" is told.
    """
    isa = cpu.best_isa()
    if isa is None:
        _state.unavailable = "this processor lacks AVX2"
        return
    with _lock:
        if entry.kernel is not None or entry.failed:
            return
        start = time.perf_counter()
        try:
            module = signature.module([as_array(table).copy() for table in tables])
            entry.kernel, built = build(module, isa, _state.libraries)
        except VerifyError as error:
            entry.failed = True
            raise InputError(
                error.what, where=f"torch.ops.lutcc.{signature.opcode}", fix=error.fix
            ) from error
        except (DependencyError, ImportError) as error:
            _state.unavailable = f"{error}"
            return
        except (CompileError, BackendError, NotImplementedError) as error:
            entry.failed = True
            if not quiet or _state.mode == "always":
                other = "torch's own operators run" if quiet else "the NumPy reference runs"
                warnings.warn(
                    f"no kernel for {signature.opcode} ({_dtype_text(signature)}), {other} "
                    f"instead: {error}",
                    RuntimeWarning,
                    stacklevel=5,
                )
            return
        _state.compiled += 1
        if not built:  # the code was there: this is what other tables of the signature will cost
            signature.cost = min(signature.cost, time.perf_counter() - start)
        else:
            signature.cost = min(signature.cost, 0.1 * COMPILE_SECONDS)


def _dtype_text(signature: Plan) -> str:
    return ", ".join(map(str, (*signature.activations, *signature.tables)))
