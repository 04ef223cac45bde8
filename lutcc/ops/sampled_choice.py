"""Which of two ways computes a sampled product: a kernel that selects as it loads, or torch.

The way is chosen once per signature, by timing both on a call's own operands.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from lutcc.errors import DependencyError
from lutcc.lookup_options import check_name
from lutcc.ops.kernels import Plan, input_kernel, spent_without
from lutcc.ops.library import launcher
from lutcc.ops.sampled_pairs import is_captured

BACKENDS = ("auto", "fused", "index_select")

#: Signatures whose choice is kept; the least recently used goes first.
MAX_CHOICES = 1024
#: Runs of each way, of which the fastest counts.
ROUNDS = 3


@dataclass
class _Choice:
    """What is known of a signature: the way that is kept, once both were timed."""

    kept: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class _State:
    backend: str = "auto"
    choices: OrderedDict[Any, _Choice] = field(default_factory=OrderedDict)


_state = _State()
_lock = threading.Lock()


def set_sampled_backend(name: str) -> None:
    """Say what computes sampled products.

    Parameters
    ----------
    name
        "fused": a kernel that selects as it loads: TVM's on the CPU (float32, and bfloat16 for
        products; gradients of what is sampled in the forward pass have none), Triton's on a GPU
        (for products). Where there is none, as "index_select": torch selects, then multiplies.
        "auto": both are timed once per device, dtypes and sizes, and the faster is kept; on the
        CPU when compiling pays, see :func:`lutcc.ops.set_compilation`. Earlier choices are
        forgotten.

    Raises
    ------
    InputError
        For another name.

    Notes
    -----
    Both ways round differently, so under "auto" the last bits depend on timing. After
    ``torch.use_deterministic_algorithms(True)``, "auto" is "index_select".

    On a GPU, torch's way of a bernoulli sample waits for the GPU to tell how many pairs it has; the
    fused kernel does not.

    Examples
    --------
    >>> import lutcc
    >>> lutcc.ops.set_sampled_backend("auto")
    >>> lutcc.ops.get_sampled_backend()
    'auto'
    """
    check_name("lutcc.ops.set_sampled_backend", "name", name, BACKENDS)
    with _lock:
        _state.backend = name
        _state.choices.clear()


def get_sampled_backend() -> str:
    """Return the name set by :func:`set_sampled_backend`."""
    return _state.backend


@dataclass(frozen=True, slots=True)
class Product:
    """A call of an operator, and both ways to compute it.

    Parameters
    ----------
    op
        Its name, also of the launcher in :mod:`lutcc.ops.cuda`.
    operands
        Its arguments.
    index_select
        Computes it with torch's operators.
    cpu_plan
        Of the CPU's kernel; None where there is none.
    cpu_operands
        Returns what that kernel takes.
    """

    op: str
    operands: tuple[Any, ...]
    index_select: Callable[..., torch.Tensor]
    cpu_plan: Plan | None = None
    cpu_operands: Callable[..., tuple[torch.Tensor, ...]] | None = None

    @property
    def first(self) -> torch.Tensor:
        """The first operand, which tells the device."""
        return self.operands[0]

    def by_torch(self) -> torch.Tensor:
        """Compute it with torch's operators."""
        return self.index_select(*self.operands)

    def fused(self, *, at_once: bool) -> Callable[[], torch.Tensor] | None:
        """Return what runs the kernel, or None if there is none, or none yet."""
        if self.first.is_cuda:
            try:
                launch = launcher(self.op)
            except DependencyError:
                if at_once:
                    raise
                return None
            return lambda: launch(*self.operands)
        if self.cpu_plan is None or self.cpu_operands is None:
            return None
        kernel, prepare = input_kernel(self.cpu_plan, at_once=at_once), self.cpu_operands
        if kernel is None:
            return None
        return lambda: kernel(*prepare(*self.operands))

    def signature(self) -> tuple[Any, ...]:
        """Return what the speed of both ways depends on; rows in powers of two."""
        parts: list[Any] = [self.op, self.first.device]
        for value in self.operands:
            if isinstance(value, torch.Tensor):
                shape = [*value.shape]
                if value is self.first:
                    shape[0] = shape[0].bit_length()
                transposed = value.ndim == 2 and value.stride(0) < value.stride(1)
                parts += [value.dtype, *shape, transposed]
            else:
                parts.append(tuple(value) if isinstance(value, list) else value)
        return tuple(parts)


def choose(product: Product) -> torch.Tensor:
    """Return the product, computed the way that :func:`set_sampled_backend` says."""
    backend = _state.backend
    if backend == "auto" and torch.are_deterministic_algorithms_enabled():
        backend = "index_select"
    if backend == "index_select" or not product.first.numel():
        return product.by_torch()
    if backend == "fused":
        fused = product.fused(at_once=True)
        return product.by_torch() if fused is None else fused()
    choice = _choice(product.signature())
    if choice.kept == "index_select":
        return product.by_torch()
    fused = product.fused(at_once=False)
    if fused is None:
        return _counted(product)
    if choice.kept == "fused":
        return fused()
    # nothing can be timed while a graph is captured, or by two threads at once
    if is_captured(product.first) or not choice.lock.acquire(blocking=False):
        return product.by_torch()
    try:
        if choice.kept is None:
            choice.kept = _faster(fused, product.by_torch, product.first)
    finally:
        choice.lock.release()
    return fused() if choice.kept == "fused" else product.by_torch()


def _choice(signature: tuple[Any, ...]) -> _Choice:
    with _lock:
        choice = _state.choices.setdefault(signature, _Choice())
        _state.choices.move_to_end(signature)
        while len(_state.choices) > MAX_CHOICES:
            _state.choices.popitem(last=False)
        return choice


def _counted(product: Product) -> torch.Tensor:
    if product.cpu_plan is None or product.first.is_cuda:
        return product.by_torch()
    start = time.perf_counter()
    result = product.by_torch()
    spent_without(product.cpu_plan, time.perf_counter() - start)
    return result


def _faster(fused: Callable[[], Any], by_torch: Callable[[], Any], like: torch.Tensor) -> str:
    """Return the name of the way that is faster, timed in turns."""
    clock = _gpu_seconds if like.is_cuda else _cpu_seconds
    for run in (fused, by_torch):
        run()  # loads, and on a GPU compiles
    best = {"fused": float("inf"), "index_select": float("inf")}
    for _ in range(ROUNDS):
        for name, run in (("fused", fused), ("index_select", by_torch)):
            best[name] = min(best[name], clock(run))
    return min(best, key=lambda name: best[name])


def _cpu_seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _gpu_seconds(run: Callable[[], Any]) -> float:
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000
