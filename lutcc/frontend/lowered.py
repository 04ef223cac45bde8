"""The IR under construction.

Values remember the torch shape they stand for, so that reshapes cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from torch.fx import Node

from lutcc import ir
from lutcc.frontend.graph import Graph, NotExpressible
from lutcc.frontend.symbols import product_name
from lutcc.ir.types import Array, Attr, Dim, Sym, element_count

Form = Literal["row_major", "channel_rows"]


@dataclass(frozen=True, slots=True)
class Lowered:
    """A torch tensor in the IR.

    ``shape`` is the torch shape. In form ``row_major`` the value holds the elements in that order,
    under any shape; in form ``channel_rows`` it holds a tensor (N, C, *spatial) as rows (N *
    spatial, C), one row per position.
    """

    value: ir.Value
    shape: tuple[Dim, ...]
    form: Form = "row_major"


class RegionBuilder:
    """Builds one function of the IR from nodes of an exported graph.

    Inputs are declared with :meth:`input`, nodes lowered with
    :func:`lutcc.frontend.lower_ops.lower_node`, results taken with :meth:`result`.
    """

    def __init__(self, graph: Graph, *, open_sizes: bool = False) -> None:
        self.graph = graph
        self.open_sizes = open_sizes
        self.builder = ir.Builder("main")
        self.env: dict[Node, Lowered | tuple[Lowered | None, ...]] = {}
        self._constants: dict[tuple[str, int, str], ir.Value] = {}
        self._row_major: dict[str, Lowered] = {}
        self._channel_rows: dict[tuple[str, tuple[Dim, ...]], ir.Value] = {}
        self._names: set[str] = set()
        self._kept: list[Array] = []

    def input(self, node: Node, shape: tuple[Dim, ...] | None = None) -> None:
        """Declare ``node`` as a parameter, stored under ``shape`` (the node's own if None).

        A tensor with several open sizes is stored as rows, and their product is one size, unless
        the region takes several (``open_sizes``).
        """
        logical = self.graph.shape(node)
        dtype = self.graph.dtype(node)
        if dtype not in ("float32", "uint8", "int32", "bool", "int8", "int64"):
            raise NotExpressible(f"an input of dtype {dtype}")
        if self.open_sizes:
            stored = logical
        else:
            stored = as_rows(logical) if len(_symbols(logical)) > 1 else shape or logical
        value = self.builder.param(self.name(node.name), ir.TensorType(stored, dtype))
        self.env[node] = Lowered(value, logical)

    def name(self, wanted: str) -> str:
        """Return ``wanted``, with a number behind it if it is taken."""
        name, i = wanted, 1
        while name in self._names:
            name, i = f"{wanted}_{i}", i + 1
        self._names.add(name)
        return name

    def constant(self, array: Array, name: str) -> ir.Value:
        """Return the value of a constant; the same array is stored once."""
        key = (str(array.dtype), array.__array_interface__["data"][0], str(array.shape))
        if key not in self._constants:
            self._kept.append(array)  # so that its address is not used again
            self._constants[key] = self.builder.constant(self.name(name), array)
        return self._constants[key]

    def stored(self, node: object, name: str, dtype: str | None = None) -> ir.Value:
        """Return a constant node's value, named as in the model; ``name`` is for computed ones."""
        array = self.constant_of(node, dtype)
        assert isinstance(node, Node)
        return self.constant(
            array, self.graph.constant_name(node) if node.op == "placeholder" else name
        )

    def constant_of(self, node: object, dtype: str | None = None) -> Array:
        """Return the array of a constant node.

        Raises
        ------
        NotExpressible
            If it is computed from the inputs, or of another dtype than ``dtype``.
        """
        if not isinstance(node, Node) or node not in self.graph.constants:
            raise NotExpressible(f"operand {node} is not a constant")
        array = self.graph.array(node)
        if dtype is not None and array.dtype != np.dtype(dtype):
            raise NotExpressible(f"constant {node.name} is {array.dtype}, not {dtype}")
        return array

    def is_constant(self, node: object) -> bool:
        """Tell whether an argument is a constant tensor."""
        return isinstance(node, Node) and node in self.graph.constants

    def tensor(self, node: object) -> Lowered:
        """Return what an activation was lowered to.

        Raises
        ------
        NotExpressible
            If the argument is no tensor of this region.
        """
        if isinstance(node, Node) and node in self.graph.constants:
            array = self.graph.array(node)
            return Lowered(self.constant(array, node.name), tuple(array.shape))
        lowered = self.env.get(node) if isinstance(node, Node) else None
        if not isinstance(lowered, Lowered):
            raise NotExpressible(f"operand {node} has no form in the IR", derived=True)
        return lowered

    def float_tensor(self, node: object) -> Lowered:
        """Return an activation that must be float32."""
        lowered = self.tensor(node)
        if lowered.value.type.dtype != "float32":
            raise NotExpressible(f"operand {node} is {lowered.value.type.dtype}, not float32")
        return lowered

    def emit(self, opcode: str, *operands: ir.Value, **attrs: Attr) -> ir.Value:
        """Append an op."""
        return self.builder.op(opcode, *operands, name=None, **attrs)

    def emit_all(self, opcode: str, *operands: ir.Value, **attrs: Attr) -> tuple[ir.Value, ...]:
        """Append an op, and return all of its results."""
        return self.builder.ops(opcode, *operands, names=None, **attrs)

    def under_shape(self, value: ir.Value, shape: Sequence[Dim]) -> ir.Value:
        """Return ``value`` under another shape of as many elements; no op if it has that shape."""
        target = tuple(shape)
        if value.type.shape == target:
            return value
        if len(_symbols(target)) > 1:
            raise NotExpressible("several open sizes in one tensor")
        if count(value.type.shape) != count(target):
            raise NotExpressible(f"a reshape from {value.type.shape} to {target}")
        return self.emit("reshape", value, shape=target)

    def row_major(self, lowered: Lowered) -> Lowered:
        """Return the tensor in row-major form."""
        if lowered.form == "row_major":
            return lowered
        key = lowered.value.name
        if key not in self._row_major:
            batch, channels, *spatial = lowered.shape
            positions = static_product(spatial)
            if positions == 1:
                plain = lowered.value
            else:
                height = static_product(spatial[:-1])
                plain = self.emit("rows_to_nchw", lowered.value, oh=height, ow=positions // height)
            self._row_major[key] = Lowered(plain, (batch, channels, *spatial))
        return replace(self._row_major[key], shape=lowered.shape)

    def channel_rows(self, x: Lowered) -> Lowered:
        """Return a tensor (N, C, *spatial) as one row per position."""
        if x.form == "channel_rows":
            return x
        if len(x.shape) not in (3, 4):
            raise NotExpressible(f"channels of a tensor of rank {len(x.shape)}")
        key = (x.value.name, x.shape)
        if key not in self._channel_rows:
            batch, channels, *spatial = x.shape
            height = 1 if len(spatial) == 1 else spatial[0]
            images = self.under_shape(x.value, (batch, channels, height, spatial[-1]))
            self._channel_rows[key] = self.emit("im2col", images, kernel=(1, 1))
        return Lowered(self._channel_rows[key], x.shape, "channel_rows")

    def materialised(self, lowered: Lowered) -> ir.Value:
        """Return the value under its torch shape, row-major."""
        return self.under_shape(self.row_major(lowered).value, lowered.shape)

    def rows(self, lowered: Lowered, features: int | None = None) -> ir.Value:
        """Return a tensor as a matrix with its last dimension (or ``features``) as columns."""
        plain = self.row_major(lowered)
        width = plain.shape[-1] if features is None else features
        if isinstance(width, Sym):
            raise NotExpressible("the last dimension is the batch")
        return self.under_shape(plain.value, (divided(plain.shape, width), width))

    def result(self, node: Node, *, torch_shape: bool) -> ir.Value:
        """Return a node's row-major value, under its torch shape or as it is stored."""
        lowered = self.tensor(node)
        return self.materialised(lowered) if torch_shape else self.row_major(lowered).value


def static_product(dims: Sequence[Dim]) -> int:
    """Return the product of dimensions that must be numbers."""
    if any(isinstance(d, Sym) for d in dims):
        raise NotExpressible("the batch size is among the spatial dimensions")
    return math.prod(d for d in dims if not isinstance(d, Sym))


def _symbols(shape: Sequence[Dim]) -> list[Sym]:
    return [d for d in shape if isinstance(d, Sym)]


def count(shape: Sequence[Dim]) -> tuple[int, str]:
    """Return the number of elements: a factor and the product of open sizes ("" for none)."""
    factor, names = element_count(shape)
    return factor, product_name(names)


def divided(shape: Sequence[Dim], width: int) -> Dim:
    """Return the number of rows of ``width`` elements in a tensor of ``shape``.

    Examples
    --------
    >>> divided((Sym("n"), 4, 8), 8)
    Sym(name='n', factor=4)
    >>> divided((Sym("n"), Sym("length"), 8), 8)
    Sym(name='length.n', factor=1)
    """
    factor, product = count(shape)
    if factor % width:
        raise NotExpressible(
            f"no rows of {width} elements in a tensor of shape {tuple(map(str, shape))}"
        )
    return Sym(product, factor // width) if product else factor // width


def as_rows(shape: Sequence[Dim]) -> tuple[Dim, int]:
    """Return a shape as a matrix: its last dimension as columns, or one column if that is open."""
    width = shape[-1]
    columns = 1 if isinstance(width, Sym) else width
    return divided(shape, columns), columns
