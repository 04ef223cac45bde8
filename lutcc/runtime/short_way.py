"""The usual call of look-up kernels, without a check that it does not need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.runtime import bfloat16, ffi
from lutcc.runtime.arguments import STRIDED_DTYPES, torch_module

if TYPE_CHECKING:
    from lutcc.runtime.kernel import LookupKernel

#: In place of an argument that is not given.
_NOTHING = object()
#: Shapes of inputs that the short way remembers.
_KNOWN_SHAPES = 256


def short_way(kernel: LookupKernel) -> Callable[..., Any]:
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
