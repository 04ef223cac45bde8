"""How an op is declared: typed operands and attributes, shape rule, reference, cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from lutcc.errors import VerifyError, suggest
from lutcc.ir import activations
from lutcc.ir.bindings import Attrs, Bindings, ConcreteType, Known, Run, Scope
from lutcc.ir.types import Array, Attr, Dim, Layout, Sym, TensorType, is_int, shape_text

AttrKind: TypeAlias = Literal["int", "float", "str", "bool", "ints", "shape", "layout"]
#: Where an op becomes code: its own schedule, the shared data-movement schedule, nowhere (constants
#: and calls shape the program), nowhere because a pass removes it, or nowhere because it belongs to
#: training: it runs as a torch operator, and no artifact holds it.
Lowering: TypeAlias = Literal["kernel", "data_movement", "structural", "folded", "training"]


@dataclass(frozen=True, slots=True)
class Operand:
    """One operand of an op.

    Parameters
    ----------
    name
        What the op's definition calls it.
    shape
        Names of its dimensions (``("N", "D")``, or the digits of a fixed size); equal names must be
        equal sizes. ``"=x"`` means the shape of operand ``x``; None any shape.
    dtype
        Element types joined by ``|``; ``"=x"`` means that of operand ``x``; ``"any"`` any.
    doc
        What it holds.
    rows
        Its dimension 0 are the rows that a row-wise op maps one to one to the rows of its results.
    """

    name: str
    shape: tuple[str, ...] | str | None
    dtype: str
    doc: str
    rows: bool = False


@dataclass(frozen=True, slots=True)
class AttrSpec:
    """One attribute of an op.

    ``default`` None means that it must be given, unless ``optional`` says that it may be absent.
    ``choices`` restrict a string; ``minimum`` and ``maximum`` an int, and each of the ints.
    """

    name: str
    kind: AttrKind
    doc: str
    default: Attr | None = None
    optional: bool = False
    choices: tuple[str, ...] = ()
    minimum: int | None = None
    maximum: int | None = None
    length: int | None = None


@dataclass(frozen=True, slots=True)
class OpCost:
    """What an op does: counts, and bytes it moves if nothing stays in a cache between ops.

    Attributes
    ----------
    lookups
        Table entries fetched and accumulated.
    flops
        Floating-point additions and multiplications (a fused multiply-add is two).
    comparisons
        Comparisons of an encoder.
    table_bytes
        Part of ``bytes_read`` that comes from look-up tables: one row of ``M`` entries per code
        where there are few rows (a gather), the whole table where there are many.
    bytes_read, bytes_written
        Bytes of operands read (constants included) and of results written.
    """

    lookups: int = 0
    flops: int = 0
    comparisons: int = 0
    table_bytes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: OpCost) -> OpCost:
        return OpCost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


ShapeRule: TypeAlias = Callable[[Bindings], tuple[TensorType, ...]]
Reference: TypeAlias = Callable[..., tuple[Array, ...]]
CostRule: TypeAlias = Callable[[Bindings, tuple[TensorType, ...]], OpCost]
Check: TypeAlias = Callable[[Bindings, Known], None]
Limit: TypeAlias = Callable[[Bindings], int]
Exact: TypeAlias = Callable[[Sequence[TensorType]], bool]
Rounding: TypeAlias = Callable[[Sequence[TensorType], Mapping[str, Attr]], float]


@dataclass(frozen=True, slots=True)
class OpDef:
    """Everything the IR knows of an op.

    Parameters
    ----------
    name
        Opcode.
    summary
        One line.
    definition
        What it computes, exactly.
    source
        Paper and equation.
    operands, attrs
        Their declarations; operands are checked and their dimensions matched before ``infer`` runs.
    results
        Names of the results.
    infer
        Shape rule: bindings to result types. It also checks what the declarations cannot say.
    reference
        ``reference(run, *arrays) -> arrays``: the NumPy definition, the judge of every backend.
    cost
        Cost rule: bindings and result types, all of them static, to what the op does.
    check
        Checks the values of constant operands.
    limit
        Exclusive upper bound of the integers in result 0.
    rowwise
        Row i of every result depends only on row i of the operands marked ``rows``.
    tolerance
        0: bit-exact on every backend. Otherwise the largest error allowed, relative to the sum of
        magnitudes that enter an element. Integer results are always exact.
    exact
        Whether an operation on operands of these types is bit-exact although the op has a
        tolerance (integer tables, say).
    rounding
        What the rounding of results in half precision adds to the tolerance, by the operands' types
        and the attributes.
    lowering
        Where the op becomes code.

    Raises
    ------
    VerifyError
        If the declaration contradicts itself.
    """

    name: str
    summary: str
    definition: str
    source: str
    operands: tuple[Operand, ...]
    attrs: tuple[AttrSpec, ...]
    results: tuple[str, ...]
    infer: ShapeRule
    reference: Reference
    cost: CostRule
    check: Check | None = None
    limit: Limit | None = None
    rowwise: bool = False
    tolerance: float = 0.0
    exact: Exact | None = None
    rounding: Rounding | None = None
    lowering: Lowering = "kernel"
    variadic: bool = False

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for operand in self.operands:
            for reference in (operand.shape, operand.dtype):
                if (
                    isinstance(reference, str)
                    and reference.startswith("=")
                    and reference[1:] not in seen
                ):
                    raise VerifyError(
                        f"operand {operand.name!r} of op {self.name!r} refers to "
                        f"{reference[1:]!r}, "
                        "which is not an operand before it"
                    )
            seen.add(operand.name)
        if self.rowwise and not any(operand.rows for operand in self.operands):
            raise VerifyError(f"op {self.name!r} is row-wise but marks no operand with rows=True")

    def tolerance_of(
        self, types: Sequence[TensorType], attrs: Mapping[str, Attr] | None = None
    ) -> float:
        """Return the tolerance of an operation on operands of these types; 0 is bit-exact.

        What is exact up to an activation has the activation's tolerance.
        """
        given = attrs or {}
        rounding = self.rounding(types, given) if self.rounding is not None else 0.0
        if self.exact is not None and self.exact(types):
            smooth = given.get("activation") in activations.KINDS
            return activations.TOLERANCE + rounding if smooth else 0.0
        return self.tolerance + rounding

    def complete_attrs(self, given: Mapping[str, Attr], where: str) -> dict[str, Attr]:
        """Return the attributes with defaults filled in, after checking names, kinds and ranges.

        Raises
        ------
        VerifyError
            Naming the attribute, what it is and what it should be.
        """
        known = {spec.name for spec in self.attrs}
        for name in given:
            if name not in known:
                raise VerifyError(
                    f"{self.name} has no attribute {name!r}; {suggest(name, known)}", where=where
                )
        complete: dict[str, Attr] = {}
        for spec in self.attrs:
            value = given.get(spec.name, spec.default)
            if value is None:
                if spec.optional:
                    continue
                raise VerifyError(
                    f"{self.name} needs the attribute {spec.name!r} ({spec.doc})", where=where
                )
            complete[spec.name] = _check_attr(spec, value, where)
        return complete

    def bind(
        self,
        types: Sequence[TensorType],
        attrs: Mapping[str, Attr],
        where: str,
        scope: Scope | None = None,
    ) -> Bindings:
        """Match operand types and attributes with the declaration.

        Raises
        ------
        VerifyError
            Naming both sides: the operand that disagrees and the operand it disagrees with.
        """
        complete = Attrs(self.complete_attrs(attrs, where), where)
        if not self.variadic and len(types) != len(self.operands):
            names = ", ".join(operand.name for operand in self.operands)
            raise VerifyError(
                f"{self.name} takes {len(self.operands)} operands ({names}), but got {len(types)}",
                where=where,
            )
        dims: dict[str, Dim] = {}
        origin: dict[str, str] = {}
        by_name: dict[str, TensorType] = {}
        for index, (operand, type_) in enumerate(zip(self.operands, types, strict=False)):
            place = f"operand {index} {operand.name!r} of type {type_}"
            _check_dtype(operand, type_, by_name, place, where)
            _match_shape(operand, type_, by_name, dims, origin, place, where)
            by_name[operand.name] = type_
        names = tuple(operand.name for operand in self.operands)
        return Bindings(names, tuple(types), complete, dims, where, scope or Scope())


def _check_dtype(
    operand: Operand, type_: TensorType, known: Mapping[str, TensorType], place: str, where: str
) -> None:
    if operand.dtype.startswith("="):
        other = operand.dtype[1:]
        if type_.dtype != known[other].dtype:
            raise VerifyError(
                f"{place} must have the element type of {other!r}, which is {known[other].dtype}",
                where=where,
            )
    elif operand.dtype != "any" and type_.dtype not in operand.dtype.split("|"):
        wanted = " or ".join(operand.dtype.split("|"))
        raise VerifyError(f"{place} must be {wanted}, not {type_.dtype}", where=where)


def _match_shape(
    operand: Operand,
    type_: TensorType,
    known: Mapping[str, TensorType],
    dims: dict[str, Dim],
    origin: dict[str, str],
    place: str,
    where: str,
) -> None:
    if operand.shape is None:
        return
    if isinstance(operand.shape, str):
        other = operand.shape[1:]
        if type_.shape != known[other].shape:
            raise VerifyError(
                f"{place} must have the shape of {other!r}, which is "
                f"{shape_text(known[other].shape)}",
                where=where,
            )
        return
    if type_.rank != len(operand.shape):
        raise VerifyError(
            f"{place} has rank {type_.rank}, but {operand.name!r} is "
            f"({', '.join(operand.shape)}), rank {len(operand.shape)}",
            where=where,
        )
    for axis, (name, dim) in enumerate(zip(operand.shape, type_.shape, strict=True)):
        if name.isdigit():
            if dim != int(name):
                raise VerifyError(
                    f"{place} has dimension {axis} = {dim}, but it must be {name}", where=where
                )
        elif name not in dims:
            dims[name] = dim
            origin[name] = f"dimension {axis} of operand {operand.name!r}"
        elif dims[name] != dim:
            raise VerifyError(
                f"{place} has dimension {axis} ({name}) = {dim}, but {origin[name]} says {name} = "
                f"{dims[name]}",
                where=where,
            )


def _check_attr(spec: AttrSpec, value: Attr, where: str) -> Attr:
    def wrong(wanted: str) -> VerifyError:
        shown = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
        return VerifyError(
            f"attribute {spec.name!r} is {shown}, but it must be {wanted}", where=where
        )

    match spec.kind:
        case "int":
            if not is_int(value):
                raise wrong("an integer")
            _check_range(spec, (value,), wrong)
        case "float":
            if is_int(value) and isinstance(value, int) and abs(value) < 2**53:
                value = float(value)
            if not isinstance(value, float) or not math.isfinite(value):
                raise wrong("a finite number")
        case "bool":
            if not isinstance(value, bool):
                raise wrong("true or false")
        case "str":
            if not isinstance(value, str):
                raise wrong("a string")
            if spec.choices and value not in spec.choices:
                raise wrong("one of " + ", ".join(map(repr, spec.choices)))
        case "ints" | "shape":
            symbols = " or symbols" if spec.kind == "shape" else ""
            if not isinstance(value, tuple) or not all(
                is_int(d) or (symbols and isinstance(d, Sym)) for d in value
            ):
                raise wrong(f"a tuple of integers{symbols}")
            if spec.length is not None and len(value) != spec.length:
                raise wrong(f"{spec.length} integers")
            _check_range(spec, value, wrong)
        case "layout":
            if not isinstance(value, Layout):
                raise wrong("a layout")
    return value


def _check_range(
    spec: AttrSpec, values: tuple[object, ...], wrong: Callable[[str], VerifyError]
) -> None:
    low = spec.minimum if spec.minimum is not None else -(2**63)
    high = spec.maximum if spec.maximum is not None else 2**63 - 1
    for value in values:
        if isinstance(value, int) and not low <= value <= high:
            raise wrong(f"in {low}..{high}")


__all__ = [
    "AttrSpec",
    "Attrs",
    "Bindings",
    "ConcreteType",
    "Known",
    "OpCost",
    "OpDef",
    "Operand",
    "Run",
    "Scope",
]
