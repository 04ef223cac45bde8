"""The torch library ``lutcc``, and how an operator is put into it."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch

from lutcc.errors import DependencyError

_library = torch.library.Library("lutcc", "DEF")

_AUTOCAST = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}

Cast = Callable[[torch.dtype, Sequence[Any]], Sequence[Any]]
"""The autocast dtype and the arguments of a call to the arguments that are used instead."""


class _Calls(threading.local):
    recorded = 0


_calls = _Calls()


def is_recorded() -> bool:
    """Tell whether the operator at work is, or will be, differentiated: its tables are trained.

    An operator's implementation cannot see it otherwise: autograd calls it with gradients off,
    exactly as inference does.
    """
    return _calls.recorded > 0


@contextlib.contextmanager
def _recorded() -> Iterator[None]:
    _calls.recorded += 1
    try:
        yield
    finally:
        _calls.recorded -= 1


def define(
    schema: str,
    *,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup: Callable[..., None] | None = None,
    check: Callable[..., None] | None = None,
    cuda: bool | Callable[..., Any] = False,
    autocast: Cast | None = None,
    recorded: Callable[[Sequence[Any]], Sequence[Any]] | None = None,
) -> None:
    """Register an operator.

    Parameters
    ----------
    schema
        Name, arguments and results.
    cpu, fake
        The CPU implementation, and the one that only computes shapes.
    backward, setup
        The gradient, as for :func:`torch.library.register_autograd`.
    check
        Called with the arguments before the implementations (also the fake one).
    cuda
        The implementation on a GPU; True if :mod:`lutcc.ops.cuda`, imported at the first call, has
        a function of this name.
    autocast
        What autocast does to the arguments; without it they stay as they are.
    recorded
        The arguments that are used instead while gradients are recorded, also in traced graphs.

    Examples
    --------
    >>> import torch, lutcc.ops
    >>> torch.ops.lutcc.tree_encode.default.name()
    'lutcc::tree_encode'
    """
    name = schema.partition("(")[0]
    _library.define(schema)
    op = getattr(torch.ops.lutcc, name).default
    _library.impl(name, _implementation(cpu, check, "cpu"), "CPU")
    if cuda:
        on_gpu = cuda if callable(cuda) else _on_cuda(name)
        _library.impl(name, _implementation(on_gpu, check, "cuda"), "CUDA")
    torch.library.register_fake(f"lutcc::{name}", _checked(fake, check), lib=_library)
    if backward is not None:
        kernel = _differentiable(op, backward, setup, recorded)
        _library.impl(name, kernel, "Autograd", with_keyset=True)
    if autocast is not None:
        for device, key in _AUTOCAST.items():
            _library.impl(name, _casting(op, device, autocast), key)


def once(ctx: Any, *grads: torch.Tensor) -> NoReturn:
    """Refuse second derivatives: the gradient of operators that compute a gradient."""
    raise RuntimeError(
        "trying to differentiate twice: lutcc's operators have no second derivative. "
        "To mend it: leave out create_graph=True"
    )


def saves_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keep nothing for the gradient."""


def _checked(function: Callable[..., Any], check: Callable[..., None] | None) -> Callable[..., Any]:
    if check is None:
        return function

    def run(*args: Any) -> Any:
        check(*args)
        return function(*args)

    return run


def _implementation(
    function: Callable[..., Any], check: Callable[..., None] | None, device: str
) -> Callable[..., Any]:
    """Return the implementation; inside it, torch's own operators keep the dtypes they are given.

    Autocast is off while it works. Otherwise a product in float32 would be made one in bfloat16.
    """
    checked = _checked(function, check)

    def run(*args: Any) -> Any:
        if not torch.is_autocast_enabled(device):
            return checked(*args)
        with _no_autocast():
            return checked(*args)

    return run


@contextlib.contextmanager
def _no_autocast() -> Iterator[None]:
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)
    keys = keys | torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCUDA)
    with torch._C._ExcludeDispatchKeyGuard(keys):
        yield


def launcher(name: str) -> Callable[..., Any]:
    """Return the function of :mod:`lutcc.ops.cuda` that launches Triton's kernel.

    Raises
    ------
    DependencyError
        When Triton is missing.
    """
    try:
        kernels = importlib.import_module("lutcc.ops.cuda")
    except ImportError as error:
        raise DependencyError(
            f"tensors on a GPU need Triton, which cannot be imported: {error}",
            where=f"torch.ops.lutcc.{name}",
            fix="pip install 'lutcc[gpu]', or move the tensors to the CPU",
        ) from error
    return getattr(kernels, name)


def _on_cuda(name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        return launcher(name)(*args)

    return run


def _differentiable(
    op: Any,
    backward: Callable[..., Any],
    setup: Callable[..., None] | None,
    recorded: Callable[[Sequence[Any]], Sequence[Any]] | None,
) -> Callable[..., Any]:
    """Return the autograd kernel of an operator.

    It differs from that of :func:`torch.library.register_autograd` in one thing: the
    implementation learns that its call is recorded (:func:`is_recorded`).
    """
    defaults = [argument.default_value for argument in op._schema.arguments]

    def below(keyset: Any, args: Sequence[Any]) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Recorded(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            *args, keyset = inputs
            if recorded is not None:
                args = recorded(args)
            with _recorded():
                result = below(keyset, args)
            if setup is not None:
                setup(ctx, tuple(args), result)
            return result

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            with _recorded():  # the gradient is computed with the same operators
                result = backward(ctx, *grads)
            return (*(result if isinstance(result, tuple) else (result,)), None)

    Recorded.__name__ = f"lutcc_{op._opname}"

    def kernel(keyset: Any, *args: Any) -> Any:
        if torch.is_grad_enabled() and any(
            isinstance(a, torch.Tensor) and a.requires_grad for a in args
        ):
            # the dispatcher leaves out arguments that equal their default
            return Recorded.apply(*args, *defaults[len(args) :], keyset)
        return below(keyset, args)

    return kernel


def _casting(op: Any, device: str, cast: Cast) -> Callable[..., Any]:
    def kernel(*args: Any) -> Any:
        dtype = torch.get_autocast_dtype(device)
        with _no_autocast():
            return op(*cast(dtype, args))

    return kernel


def cast_to(dtype: torch.dtype, value: Any) -> Any:
    """Return a floating-point tensor in ``dtype``; float64 and all else as it is."""
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value if value.dtype is torch.float64 else value.to(dtype)
    return value
