"""What the codebook layers share: a matrix as packed indices, trained by its codebooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.codebook_weights import CodebookWeights, Footprint
from lutcc.errors import InputError
from lutcc.ir.codebooks import BITS, SEGMENT_MULTIPLE, packed_columns
from lutcc.lookup_options import check_count, check_name
from lutcc.nn.constants import RoundedParameters, without_casts

COMPUTE = ("float32", "bfloat16", "int8")

#: Tensors of the stored form that keep their dtype whatever the model is cast to.
_KEPT = ("codebooks", "scales", "outlier_values")
#: Buffers that not every form has.
_SOMETIMES = ("order", "position", "outlier_starts", "outlier_columns", "outlier_values")


class CodebookLayer(RoundedParameters):
    """A layer whose weight matrix (M, K) is written with codebooks.

    Parameters ``codebooks`` (G, 2**bits) and ``scales`` (T,) are float32, to be trained; in eval
    mode the layer computes with them rounded to float16, as they are stored, and its ``state_dict``
    holds them so. In training mode the ``state_dict`` holds float32, to go on from. A cast of the
    model leaves both as they are. Gradients reach them in training mode only. A single scale is not
    trained: the codebooks make up for it.

    Buffers: ``indices`` (M, ceil(K * bits / 8)) uint8; ``order`` (M,) int32, where rows are stored
    in another order; ``outlier_starts``, ``outlier_columns`` int32 and ``outlier_values`` float16,
    where there are outliers. See :class:`lutcc.codebook_weights.CodebookWeights`.
    """

    indices: torch.Tensor
    codebooks: torch.nn.Parameter
    scales: torch.nn.Parameter
    bias: torch.nn.Parameter | None
    order: torch.Tensor | None
    position: torch.Tensor | None
    outlier_starts: torch.Tensor | None
    outlier_columns: torch.Tensor | None
    outlier_values: torch.Tensor | None

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        bias: bool,
        bits: int,
        num_codebooks: int = 1,
        num_scales: int = 1,
        segment_size: int = 0,
        reordered: bool = False,
        num_outliers: int = 0,
        compute: str = "int8",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        for name, value in (("rows", rows), ("columns", columns)):
            check_count(where, name, value, 1)
        check_count(where, "bits", bits, BITS[0], BITS[-1])
        check_count(where, "num_outliers", num_outliers, 0)
        check_name(where, "compute", compute, COMPUTE)
        for name, value in (("num_codebooks", num_codebooks), ("num_scales", num_scales)):
            _check_regions(where, name, value, rows, columns, segment_size)
        self.rows, self.columns, self.bits = rows, columns, bits
        self.segment_size, self.compute = segment_size, compute
        self._tied: tuple[CodebookLayer, ...] = ()
        on: dict[str, Any] = {"device": device}
        packed = torch.zeros(rows, packed_columns(columns, bits), dtype=torch.uint8, **on)
        self.register_buffer("indices", packed)
        self.codebooks = torch.nn.Parameter(torch.zeros(num_codebooks, 2**bits, **on))
        self.scales = torch.nn.Parameter(torch.ones(num_scales, **on), requires_grad=num_scales > 1)
        made = torch.zeros(rows, dtype=dtype or torch.get_default_dtype(), **on)
        self.register_parameter("bias", torch.nn.Parameter(made) if bias else None)
        whole: dict[str, Any] = {"dtype": torch.int32, "device": device}
        # absent ones are no buffers of value None, which torch.export miscounts
        for name in _SOMETIMES:
            setattr(self, name, None)
        if reordered:
            self._hold("order", torch.arange(rows, **whole))
        if num_outliers:
            starts = torch.zeros(rows + 1, **whole)
            starts[-1] = num_outliers
            self._hold("outlier_starts", starts)
            self._hold("outlier_columns", torch.zeros(num_outliers, **whole))
            self._hold("outlier_values", torch.zeros(num_outliers, dtype=torch.float16, **on))
        self._note_order()
        copies = ("_stored_codebooks", "_stored_scales", "_stored_bias")
        self.declare_rounded(*(copies if bias else copies[:2]))

    @property
    def form(self) -> dict[str, Any]:
        """The arguments, but the sizes and ``bias``, that make a layer for this ``state_dict``."""
        held = self.holder
        values = held.outlier_values
        return {
            "bits": self.bits,
            "num_codebooks": held.codebooks.shape[0],
            "num_scales": held.scales.shape[0],
            "segment_size": self.segment_size,
            "reordered": held.order is not None,
            "num_outliers": 0 if values is None else values.shape[0],
            "compute": self.compute,
        }

    @property
    def holder(self) -> CodebookLayer:
        """The layer that holds the matrix: this one, unless it shares that of another."""
        return self._tied[0] if self._tied else self

    def tie(self, other: CodebookLayer) -> None:
        """Use the matrix of ``other`` from now on; that one alone has it in the ``state_dict``.

        Raises
        ------
        InputError
            If the matrices differ in size.
        """
        if (self.rows, self.columns) != (other.rows, other.columns):
            raise InputError(
                f"a matrix of {self.rows} x {self.columns} cannot be shared with one of "
                f"{other.rows} x {other.columns}",
                where=type(self).__name__,
                fix="tie layers of equal size",
            )
        self._tied = (other.holder,)  # in a tuple: no child of this module
        self.bits, self.segment_size = other.bits, other.segment_size
        for name in ("codebooks", "scales", "indices", *_SOMETIMES):
            delattr(self, name)
            setattr(self, name, None)
        self._drop_rounded()
        for name in ("_stored_codebooks", "_stored_scales"):
            delattr(self, name)
        self.declare_rounded(*(() if self.bias is None else ("_stored_bias",)))
        self.train(self.training)

    def load_weights(self, weights: CodebookWeights, bias: Any = None) -> Self:
        """Copy a compressed matrix of the same form, and the bias; return the layer."""
        with torch.no_grad():
            for name, array in weights.to_arrays().items():
                target = getattr(self, name)
                if target is not None:
                    target.copy_(torch.from_numpy(np.ascontiguousarray(array)))
            if bias is not None and self.bias is not None:
                self.bias.copy_(torch.as_tensor(bias))
        self._note_order()
        return self.eval()

    def to_weights(self) -> CodebookWeights:
        """Return the compressed matrix, as it is stored."""
        held = self.holder
        arrays = {
            name: getattr(held, name).detach().cpu().numpy()
            for name in ("indices", "order", "outlier_starts", "outlier_columns", "outlier_values")
            if getattr(held, name) is not None
        }
        for name in ("codebooks", "scales"):
            arrays[name] = getattr(held, name).detach().half().cpu().numpy()
        return CodebookWeights.from_arrays(
            arrays, bits=self.bits, columns=self.columns, segment_size=self.segment_size
        )

    def footprint(self) -> Footprint:
        """Return the bits of each part of the matrix, as stored."""
        return self.to_weights().footprint()

    def round_parameters(self) -> tuple[torch.Tensor, ...]:
        """Return codebooks and scales as they are stored, and the bias in the rows' order."""
        bias = () if self.bias is None else (self._row_bias().detach().clone(),)
        if self._tied:
            return bias
        return self.codebooks.detach().half(), self.scales.detach().half(), *bias

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codebooks and scales: what is trained, or what is stored in eval mode."""
        held = self.holder
        if self.training:
            return held.codebooks, held.scales
        codebooks, scales, *_ = held.rounded()
        return codebooks, scales

    def dequantize(self) -> torch.Tensor:
        """Return the matrix (M, K) float32, row m for output m, outliers included.

        In training mode it can be differentiated by codebooks and scales.
        """
        held = self.holder
        rows = held.position
        if rows is None:
            rows = torch.arange(self.rows, dtype=torch.int32, device=held.indices.device)
        codebooks, scales = self.tables()
        weight = torch.ops.lutcc.codebook_dequantize(
            rows, held.indices, codebooks, scales, self.bits, self.columns, self.segment_size
        )
        starts, columns, values = held.outlier_starts, held.outlier_columns, held.outlier_values
        if starts is None or columns is None or values is None:
            return weight
        each = torch.arange(values.shape[0], dtype=starts.dtype, device=starts.device)
        at = torch.searchsorted(starts, each, right=True) - 1
        return weight.index_put((at, columns.long()), values.float(), accumulate=True)

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., M): the products of ``x`` (..., K), bias and outliers added."""
        held = self.holder
        codebooks, scales = self.tables()
        if self.training:
            compute, bias = "float32", self._row_bias() if self.bias is not None else None
        else:
            compute, bias = self.compute, None if self.bias is None else self.rounded()[-1]
        if bias is not None and x.dtype is torch.float64:
            bias = bias.double()
        y = torch.ops.lutcc.codebook_matmul(
            x,
            held.indices,
            codebooks,
            scales,
            held.order,
            bias,
            self.bits,
            self.segment_size,
            compute,
        )
        values = held.outlier_values
        if values is None:
            return y
        return torch.ops.lutcc.sparse_add(y, x, held.outlier_starts, held.outlier_columns, values)

    def _row_bias(self) -> torch.Tensor:
        """Return the bias as the operator takes it: float32, of each stored row."""
        assert self.bias is not None
        bias, order = self.bias.float(), self.holder.order
        return bias if order is None else bias[order.long()]

    def _note_order(self) -> None:
        """Keep where the row of each output is stored."""
        if self.order is not None:
            position = torch.argsort(self.order).to(torch.int32)
            self._hold("position", position, persistent=False)

    def _hold(self, name: str, tensor: torch.Tensor, persistent: bool = True) -> None:
        if name not in self._buffers:
            delattr(self, name)
            self.register_buffer(name, tensor, persistent)
        else:
            setattr(self, name, tensor)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # A cast would lose bits of what is stored in 16 of another kind.
        kept = [getattr(self, name) for name in _KEPT]
        return super()._apply(without_casts(fn, kept), recurse)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.training or keep_vars or self._tied:
            return
        for name, stored in zip(("codebooks", "scales"), self.tables(), strict=True):
            destination[prefix + name] = stored

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._note_order()
        for name in ("codebooks", "scales"):
            held = getattr(self, name)
            if held is not None and held.dtype is not torch.float32:  # load_state_dict(assign=True)
                setattr(self, name, torch.nn.Parameter(held.data.float(), held.requires_grad))
        if self._rounded and not self.training:
            self.refresh_rounded()

    def describe_codebooks(self) -> str:
        """Return the form and how far it compresses, for ``extra_repr``."""
        if self._tied:
            return f"bits={self.bits}, tied, compute={self.compute!r}"
        shown = {name: value for name, value in self.form.items() if value or name == "bits"}
        for name in ("num_codebooks", "num_scales"):
            if shown[name] == 1:
                del shown[name]
        text = ", ".join(f"{name}={value!r}" for name, value in shown.items())
        if self.indices.is_meta:
            return text
        return f"{text}, alpha={self.footprint().alpha:.4g}"


def form_of(weights: CodebookWeights) -> dict[str, Any]:
    """Return the arguments of a layer that holds ``weights``, but the sizes.

    Examples
    --------
    >>> form_of(CodebookWeights.of(np.zeros((2, 8)), np.zeros((2, 4)), bits=2))["num_codebooks"]
    2
    """
    return {
        "bits": weights.bits,
        "num_codebooks": len(weights.codebooks),
        "num_scales": len(weights.scales),
        "segment_size": weights.segment_size,
        "reordered": weights.order is not None,
        "num_outliers": 0 if weights.outliers is None else len(weights.outliers.values),
    }


def check_floats(x: torch.Tensor, features: int, dim: int, where: str) -> None:
    """Raise :class:`InputError` unless ``x`` holds floats, ``features`` long along ``dim``."""
    if not x.is_floating_point():
        raise InputError(f"the input has dtype {x.dtype}", where=where, fix="call x.float()")
    if x.dim() < 1 or x.shape[dim] != features:
        raise InputError(
            f"the input has shape {tuple(x.shape)}, but dimension {dim} must be {features}",
            where=where,
            fix=f"pass {features} features along dimension {dim}",
        )


def _check_regions(
    where: str, name: str, count: int, rows: int, columns: int, segment_size: int
) -> None:
    check_count(where, name, count, 1)
    if count <= rows:
        return
    size = segment_size
    if size < 1 or size % SEGMENT_MULTIPLE or count != rows * -(-columns // size):
        raise InputError(
            f"{name}={count} is neither at most the {rows} rows nor that times the segments of "
            f"segment_size={size} in {columns} columns",
            where=where,
            fix=f"use {name} <= {rows}, or a segment_size that is a multiple of {SEGMENT_MULTIPLE}",
        )
