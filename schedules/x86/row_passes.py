"""Elementwise operations and reductions over the columns of a row, in as few passes as they take.

A pass goes over the row a vector at a time, with every value in registers. It ends where something
must be known of the whole row (a mean, a largest number); what the next pass needs of it waits in
the L1 cache.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.schedules.x86 import (
    activation,
    add,
    affine,
    clamp,
    layer_norm,
    leaky_relu,
    lut_dequantize,
    quantize,
    relu,
    round,
    softmax,
)
from lutcc.schedules.x86.context import StageContext
from lutcc.schedules.x86.emit import Expr, View, bind, i64, loop
from lutcc.schedules.x86.pack import CHUNK, round_up
from lutcc.schedules.x86.row_sums import SLOTS, Maker, Piece, Reduction

ELEMENTWISE: Mapping[str, Callable[[Operation, Expr, Callable[[int], Expr]], Expr]] = {
    "lut_dequantize": lut_dequantize.apply,
    "affine": affine.apply,
    "relu": relu.apply,
    "leaky_relu": leaky_relu.apply,
    "clamp": clamp.apply,
    "round": round.apply,
    "activation": activation.apply,
    "add": add.apply,
    "quantize": quantize.apply,
}
#: The reductions of each opcode, one after the other: each takes what the one before made.
REDUCTIONS: Mapping[str, tuple[Maker, ...]] = {
    "layer_norm": layer_norm.CHAIN,
    "softmax": softmax.CHAIN,
}

#: Loads 16 columns of a value from outside as float32.
Load = Callable[[str, Piece], Expr]
#: Stores 16 columns of a result.
Store = Callable[[str, Piece, Expr], None]


@dataclass(frozen=True)
class _Node:
    """One elementwise operation, or one reduction of an operation.

    Attributes
    ----------
    op
        What it belongs to.
    sources
        The values of rows that it takes.
    result
        What it makes.
    maker
        Makes the reduction, if it is one.
    number
        Of the pass in which its result exists.
    """

    op: Operation
    sources: tuple[str, ...]
    result: str
    maker: Maker | None
    number: int


class RowPasses:
    """The passes of some operations over rows of so many columns.

    Parameters
    ----------
    ctx
        The stage; its scratch gives room for one row of each value that waits between passes.
    body
        The operations, in order, constants left out.
    columns
        Of every row.
    wanted
        Values that are stored.
    """

    def __init__(
        self, ctx: StageContext, body: Sequence[Operation], columns: int, wanted: Collection[str]
    ) -> None:
        self.ctx, self.columns, self.wanted = ctx, columns, wanted
        self.nodes: dict[str, _Node] = {}
        for op in body:
            self._add(op)
        self.last = max((node.number for node in self.nodes.values()), default=0)
        self.saved: dict[str, View] = {}
        for node in self.nodes.values():
            for name in node.sources:
                if name in self.nodes and self.nodes[name].number < node.number:
                    self._save(name)

    def _save(self, name: str) -> None:
        if name not in self.saved:
            room = round_up(self.columns, CHUNK)
            self.saved[name] = self.ctx.scratch.take(room, "float32")

    def _add(self, op: Operation) -> None:
        if op.opcode in REDUCTIONS:
            makers = REDUCTIONS[op.opcode]
            source = op.operands[0].name
            for index, maker in enumerate(makers):
                last = index == len(makers) - 1
                result = op.results[0].name if last else f"{op.results[0].name} {index}"
                number = self._number(source) + 1
                self.nodes[result] = _Node(op, (source,), result, maker, number)
                source = result
            return
        sources = tuple(v.name for v in op.operands if op.opcode == "add" or v is op.operands[0])
        number = max(self._number(name) for name in sources)
        self.nodes[op.results[0].name] = _Node(op, sources, op.results[0].name, None, number)

    def _number(self, name: str) -> int:
        node = self.nodes.get(name)
        return 0 if node is None else node.number

    def emit(self, load: Load, store: Store) -> None:
        """Emit all passes over one row."""
        made: dict[str, Reduction] = {}
        for number in range(self.last + 1):
            _Pass(self, number, load, store, made).emit()


class _Pass:
    """One pass over a row."""

    def __init__(
        self, passes: RowPasses, number: int, load: Load, store: Store, made: dict[str, Reduction]
    ) -> None:
        self.passes, self.number = passes, number
        self.load, self.store, self.made = load, store, made
        self.starting = [
            node
            for node in passes.nodes.values()
            if node.maker is not None and node.number == number + 1
        ]

    def emit(self) -> None:
        """Emit it."""
        columns = self.passes.columns
        for node in self.starting:
            assert node.maker is not None
            reduction = self.made[node.result] = node.maker(node.op, columns)
            first = Piece(i64(0), range(min(columns, CHUNK)))
            reduction.begin(lambda node=node, first=first: self._value(node.sources[0], first, {}))
        whole = columns // CHUNK
        slots = SLOTS if self.passes.ctx.isa.has_avx512 else SLOTS // 2  # each takes two registers
        together = min(slots, whole) if self.starting else 1
        if whole:
            with loop(whole // together) as k:
                for slot in range(together):
                    place = bind(i64(k) * (together * CHUNK) + slot * CHUNK)
                    self._vector(Piece(place, slot=slot))
            for slot in range(whole % together):
                place = i64((whole - whole % together + slot) * CHUNK)
                self._vector(Piece(place, slot=slot))
        rest = columns % CHUNK
        if rest and whole:  # the last vector overlaps the one before
            new = range(CHUNK - rest, CHUNK)
            self._vector(Piece(i64(columns - CHUNK), new, slots - 1))
        elif rest:
            self._vector(Piece(i64(0), range(rest)))
        for node in self.starting:
            self.made[node.result].end()

    def _vector(self, piece: Piece) -> None:
        """Do 16 columns."""
        passes = self.passes
        values: dict[str, Expr] = {}
        for name, view in passes.saved.items():
            if passes.nodes[name].number == self.number:
                view.store(piece.first, self._value(name, piece, values), CHUNK)
        for node in self.starting:
            value = self._value(node.sources[0], piece, values)
            self.made[node.result].add(value, piece)
        for name in passes.wanted:
            node = passes.nodes.get(name)
            if (0 if node is None else node.number) == self.number:
                self.store(name, piece, self._value(name, piece, values))

    def _value(self, name: str, piece: Piece, values: dict[str, Expr]) -> Expr:
        """Return 16 columns of a value, computed in this pass or before."""
        if name not in values:
            values[name] = bind(self._found(name, piece, values))
        return values[name]

    def _found(self, name: str, piece: Piece, values: dict[str, Expr]) -> Expr:
        node = self.passes.nodes.get(name)
        if node is None:
            return self.load(name, piece)
        if node.number < self.number:
            return self.passes.saved[name].load(piece.first, CHUNK)

        def operand(index: int) -> Expr:
            value = node.op.operands[index]
            if node.op.opcode == "add":
                return self._value(value.name, piece, values)
            vector = self.passes.ctx.blob.add("vector", "float32", [self.passes.ctx.ref(value)])
            return vector.load(piece.first, CHUNK)

        source = self._value(node.sources[0], piece, values)
        if node.maker is not None:
            return self.made[name].apply(source, operand)
        return ELEMENTWISE[node.op.opcode](node.op, source, operand)
