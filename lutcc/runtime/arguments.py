"""Turns what a caller passes into tensors that a kernel takes, or says what is wrong with it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np

from lutcc.errors import InputError
from lutcc.runtime import bfloat16, ffi
from lutcc.runtime.signature import TensorSpec, bind, dim_text

#: Dtypes that kernels read through any pair of positive strides.
STRIDED_DTYPES = ("float32", "bfloat16", "uint8")


def torch_module() -> ModuleType | None:
    """Return torch if somebody imported it; lutcc.runtime never does."""
    torch = sys.modules.get("torch")
    return torch if hasattr(torch, "Tensor") else None


def admit(
    values: Sequence[Any], specs: Sequence[TensorSpec], *, alignment: int = 1, strided: bool = True
) -> tuple[list[Any], dict[str, int], ModuleType | None]:
    """Check the arguments of a call; return (tensors for tvm_ffi, symbols' sizes, torch or None).

    Parameters
    ----------
    values
        NumPy arrays or torch CPU tensors.
    specs
        The signature.
    alignment
        Bytes that the kernel's data must be aligned to, at least the element size.
    strided
        Whether two-dimensional inputs of :data:`STRIDED_DTYPES` may have any positive strides;
        others are copied.

    Raises
    ------
    InputError
        Naming the argument, what was expected, what was given and how to mend it.
    """
    if len(values) != len(specs):
        listed = ", ".join(map(str, specs))
        raise InputError(
            f"expected {len(specs)} tensors ({listed}), got {len(values)}",
            fix="pass one tensor per input, in this order",
        )
    torch = torch_module()
    sizes: dict[str, int] = {}
    owner: dict[str, str] = {}
    ready: list[Any] = []
    found_torch = False
    for value, spec in zip(values, specs, strict=True):
        if isinstance(value, np.ndarray):
            ready.append(_numpy(value, spec, sizes, owner, alignment, strided))
        elif torch is not None and isinstance(value, torch.Tensor):
            found_torch = True
            ready.append(_torch(torch, value, spec, sizes, owner, alignment, strided))
        else:
            raise InputError(
                f"expected a NumPy array or a torch CPU tensor, got {type(value).__name__}",
                where=f"argument {spec.name!r}",
                fix=f"convert it: numpy.asarray(x, dtype={_numpy_name(spec)})",
            )
    return ready, sizes, torch if found_torch else None


def _numpy_name(spec: TensorSpec) -> str:
    """Return how a program names the dtype."""
    return f"{'ml_dtypes' if spec.dtype == 'bfloat16' else 'numpy'}.{spec.dtype}"


def _dtype_error(spec: TensorSpec, got: str, fix: str) -> InputError:
    shape = ", ".join(map(dim_text, spec.shape))
    return InputError(
        f"expected dtype {spec.dtype} (shape ({shape})), got {got}",
        where=f"argument {spec.name!r}",
        fix=fix,
    )


def _numpy(
    x: np.ndarray,
    spec: TensorSpec,
    sizes: dict[str, int],
    owner: dict[str, str],
    alignment: int,
    strided: bool,
) -> Any:
    if type(x) is not np.ndarray:
        if isinstance(x, np.ma.MaskedArray):
            raise InputError(
                "expected a plain array, got a masked one",
                where=f"argument {spec.name!r}",
                fix="fill its holes first: x.filled(value)",
            )
        x = np.asarray(x)
    want = spec.numpy_dtype()
    if x.dtype != want and x.dtype.newbyteorder("=") != want:
        raise _dtype_error(spec, str(x.dtype), f"x.astype({_numpy_name(spec)})")
    bind(spec, x.shape, sizes, owner=owner)
    if x.dtype != want:  # bytes swapped
        x = x.astype(want)
    flags = x.flags
    usable = flags.aligned and (
        flags.c_contiguous or (strided and _positive(spec, x.shape, x.strides, x.itemsize))
    )
    if alignment > 1 and usable:
        usable = x.__array_interface__["data"][0] % alignment == 0
    if not usable:
        x = ffi.aligned_copy(x)
    if spec.dtype == "bfloat16":
        return bfloat16.to_tensor(x)
    if not x.flags.writeable:
        return ffi.tvm_ffi().from_dlpack(x.__dlpack__(max_version=(1, 0)))
    return x


def _positive(
    spec: TensorSpec, shape: Sequence[int], strides: Sequence[int], itemsize: int
) -> bool:
    """Tell whether a 2-D tensor can be read in place: all strides are positive whole steps."""
    if len(shape) != 2 or spec.dtype not in STRIDED_DTYPES:
        return False
    return all(
        size == 1 or (stride > 0 and stride % itemsize == 0)
        for size, stride in zip(shape, strides, strict=True)
    )


def _torch(
    torch: ModuleType,
    x: Any,
    spec: TensorSpec,
    sizes: dict[str, int],
    owner: dict[str, str],
    alignment: int,
    strided: bool,
) -> Any:
    where = f"argument {spec.name!r}"
    kind = type(x)
    if getattr(kind, "__torch_dispatch__", None) is not torch.Tensor.__torch_dispatch__:
        raise InputError(
            f"expected a plain tensor, got a {kind.__name__}, whose data cannot be read directly",
            where=where,
            fix="pass a plain tensor; in a model that is traced use lutcc.nn layers or lutcc.ops",
        )
    if x.device.type != "cpu":
        raise InputError(
            f"expected a CPU tensor, got one on {x.device}", where=where, fix="x.cpu()"
        )
    if x.layout is not torch.strided:
        raise InputError(
            f"expected a dense tensor, got {x.layout}", where=where, fix="x.to_dense()"
        )
    if x.dtype is not getattr(torch, spec.dtype):
        raise _dtype_error(spec, str(x.dtype), f"x.to(torch.{spec.dtype})")
    bind(spec, tuple(x.shape), sizes, owner=owner)
    if x.requires_grad:
        if torch.is_grad_enabled():
            raise InputError(
                "requires a gradient, but an artifact has none",
                where=where,
                fix="call it under torch.no_grad(), or pass x.detach()",
            )
        x = x.detach()
    if x.is_neg():
        x = x.resolve_neg()
    address = x.data_ptr()
    step = max(alignment, x.element_size())
    usable = address % step == 0 and (
        x.is_contiguous() or (strided and _positive(spec, x.shape, x.stride(), 1))
    )
    if not usable and x.dtype is torch.bfloat16:
        return bfloat16.to_tensor(ffi.aligned_copy(bfloat16.to_array(x)))
    if not usable:
        return ffi.aligned_copy(x.numpy())
    return x
