"""``tree_encode``: 16 rows at a time, thresholds permuted by the node index, one compare a level.

Work per 16 rows and codebook: L compares with a column in L1 and L-1 register permutes; from
row-major input, a 16x16 transpose of each chunk of 16 columns that holds a split dimension
(64 shuffles for 256 values). The rest is reading the input once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lutcc.ir.module import Operation
from lutcc.schedules.intrinsics import words
from lutcc.schedules.intrinsics.x86 import VPERMI2PS_512, VPERMPS_256, VPERMPS_512
from lutcc.schedules.x86 import pair_trees, word_trees
from lutcc.schedules.x86.context import Codes, Columns, External, StageContext
from lutcc.schedules.x86.edges import load_chunks, load_singles
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    cast,
    differs,
    equal,
    i64,
    loop,
    reinterpret,
    select,
    shuffle,
    splat,
)
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import CHUNK, chunk_starts
from lutcc.schedules.x86.pack_words import WORD_THRESHOLDS


def threshold_lookup(isa: Isa, table: View, level: int, node: Expr) -> Expr:
    """Return ``table[node]`` in 16 lanes, ``node`` in ``2**level .. 2**(level+1)-1`` (heap order).

    Registers hold 16 nodes (8 with AVX2); deeper levels blend several permutes, of int32 by its
    bits.
    """
    if table.dtype == "int32":
        found = threshold_lookup(isa, table.as_dtype("float32"), level, node)
        return reinterpret("int32x16", found)
    if level == 0:
        return splat(table.load(1))
    if not isa.has_avx512:
        low, high = shuffle([node], range(8)), shuffle([node], range(8, 16))
        halves = [_permute_tree(table, level, part, 8, VPERMPS_256) for part in (low, high)]
        return shuffle(halves, range(16))
    if level <= 3:
        return VPERMPS_512(table.load(0, 16), node)
    if level == 4:
        return VPERMPS_512(table.load(16, 16), node)
    parts = []
    for start in range(2**level, 2 ** (level + 1), 32):
        parts.append(VPERMI2PS_512(table.load(start, 16), node, table.load(start + 16, 16)))
    return _blend(parts, node, 32, 16)


def _permute_tree(table: View, level: int, node: Expr, width: int, permute: Any) -> Expr:
    if level < 3:
        return permute(table.load(0, width), node)
    starts = range(2**level, 2 ** (level + 1), width)
    return _blend([permute(table.load(s, width), node) for s in starts], node, width, width)


def _blend(parts: Sequence[Expr], node: Expr, width: int, lanes: int) -> Expr:
    """Choose among tables of ``width`` entries by the bits of ``node`` above them."""
    bit = width
    while len(parts) > 1:
        mask = differs(node & splat(bit, "int32", lanes), splat(0, "int32", lanes))
        parts = [select(mask, high, low) for low, high in zip(parts[::2], parts[1::2], strict=True)]
        bit *= 2
    return parts[0]


def encode_codebook(
    isa: Isa,
    columns: View,
    slots: View,
    table: View,
    depth: int,
    entries: int,
    starts: View | None = None,
    *,
    signs: bool = False,
) -> Expr:
    """Return the codes of 16 rows for one codebook as int32x16.

    ``columns`` holds transposed columns, ``slots`` the column of each level. With ``starts``, the
    thresholds are widths of intervals that begin there. ``signs``: differences do not overflow, so
    that their signs are the answers.
    """
    node = splat(1, "int32")
    for level in range(depth):
        value = columns.load(cast("int64", slots.load(level)) * 16, 16)
        if table.dtype == "int32" and columns.dtype != "int32":
            value = reinterpret("int32x16", value)
        threshold = threshold_lookup(isa, table, level, node)
        if starts is not None:
            moved = value - threshold_lookup(isa, starts, level, node)
            value, threshold = (reinterpret("uint32x16", v) for v in (moved, threshold))
        elif signs:
            node = bind(words.following(node, value, threshold, signs=True))
            continue
        above = value > threshold
        double = bind(node + node)
        node = bind(select(above, double + splat(1, "int32"), double))
    return node - splat(entries, "int32")


@dataclass(frozen=True)
class UsedColumns:
    """Which columns an encoder reads, and where they go.

    Attributes
    ----------
    starts
        First column of each chunk of 16 that is read as a whole.
    places
        Slot of each column of each chunk; columns that are not read share the last slot.
    singles
        Columns that are read one by one.
    slots
        Slot of each column that is read (others: 0).
    count
        Number of slots.
    """

    starts: list[int]
    places: list[int]
    singles: list[int]
    slots: list[int]
    count: int


def used_columns(read: np.ndarray, columns: int, singles: int) -> UsedColumns:
    """Return what to load of ``columns`` columns when only those in ``read`` are compared.

    Chunks with at most ``singles`` of those are not read as a whole.

    Examples
    --------
    >>> used = used_columns(np.array([[0, 40, 41]]), 64, singles=1)
    >>> used.starts, used.singles, used.count
    ([32], [0], 4)
    """
    wanted = [int(c) for c in np.unique(read)]
    slot = {column: k for k, column in enumerate(wanted)}
    waste = len(wanted)
    starts = chunk_starts(columns)
    owner = {c: s for s in reversed(starts) for c in range(s, min(s + CHUNK, columns))}
    per_chunk = Counter(owner[c] for c in wanted)
    needed = sorted(start for start, count in per_chunk.items() if count > singles)
    alone = [c for c in wanted if per_chunk[owner[c]] <= singles]
    places = [
        slot.get(s + j, waste) if owner.get(s + j) == s else waste
        for s in needed
        for j in range(CHUNK)
    ]
    return UsedColumns(needed, places, alone, [slot.get(c, 0) for c in range(columns)], waste + 1)


@dataclass(frozen=True)
class LoadedColumns:
    """The columns of an external value that an encoder reads, for one row group at a time."""

    ctx: StageContext
    source: External
    used: UsedColumns
    target: View

    def load(self, group: Expr) -> View:
        """Load the columns of a row group; slot ``s`` is at element ``16 s``."""
        used = self.used
        if used.starts:
            load_chunks(
                self.ctx, self.source, group, used.starts, self.target, used.places, bits=True
            )
        if used.singles:
            slots = [used.slots[c] for c in used.singles]
            load_singles(self.ctx, self.source, group, used.singles, self.target, slots, bits=True)
        return self.target


def loaded_columns(
    ctx: StageContext, source: External | Columns, read: np.ndarray
) -> LoadedColumns | None:
    """Return what loads the columns in ``read``, or None where they lie in scratch already."""
    if isinstance(source, Columns):
        return None
    used = used_columns(read, source.columns, ctx.configs.encode.singles)
    return LoadedColumns(ctx, source, used, ctx.scratch.take(used.count * 16, "float32"))


def store_codes(codes: Codes, group: Expr, codebook: Expr, parts: Sequence[Expr]) -> None:
    """Store the codes of 16 rows: of four codebooks (dot layout) or of one.

    Where a scan takes more than 16 rows at once, its ``rows / 16`` parts share words: part ``s``
    is byte ``s`` of each word, the word being the row within the part.
    """
    if codes.dot:
        word = parts[0]
        for j, part in enumerate(parts[1:], start=1):
            word = word | (part << splat(8 * j, "int32"))
        offsets = sum(codes.entries * j << (8 * j) for j in range(4))
        offsets -= 1 << 32 if offsets >= 1 << 31 else 0
        word = word + splat(offsets, "int32")
        index = (i64(group) * (codes.codebooks // 4) + i64(codebook)) * 64
        codes.view.store(index, reinterpret("uint8x64", word), 64)
        return
    if codes.rows == 16:
        index = (i64(group) * codes.codebooks + i64(codebook)) * 16
        codes.view.store(index, cast("uint8x16", parts[0]), 16)
        return
    per_group = codes.rows // 16
    super_group, part = bind(i64(group) // per_group), bind(i64(group) % per_group)
    index = bind((super_group * codes.codebooks + i64(codebook)) * 16)
    words = codes.view.as_dtype({2: "uint16", 4: "uint32"}[per_group])
    dtype = words.dtype
    old = select(splat(equal(part, i64(0)), lanes=16), splat(0, dtype), words.load(index, 16))
    shift = splat(cast(dtype, part * 8), dtype)
    words.store(index, old | (cast(f"{dtype}x16", parts[0]) << shift), 16)


def _tables(
    ctx: StageContext, op: Operation, slots: Sequence[int], codebooks: int, sums: bool = False
) -> tuple[View, View, View | None]:
    """Return columns and thresholds of the nodes, and where intervals begin, if they are such."""
    dims, *starts, vals = (ctx.ref(value) for value in op.operands[1:])
    dtype = "int32" if op.operands[2].type.dtype == "int32" else "float32"
    clipped = {"sums": True} if sums else {}
    return (
        ctx.blob.add("tree_slots", "int32", [dims], slots=list(slots), codebooks=codebooks),
        ctx.blob.add("tree_values", dtype, [vals], codebooks=codebooks, **clipped),
        ctx.blob.add("tree_starts", dtype, starts, codebooks=codebooks) if starts else None,
    )


def reads_words(isa: Isa, op: Operation) -> bool:
    """Whether an operation is trees that can compare sums in 16 bits."""
    if op.opcode != "tree_encode" or op.operands[2].type.dtype != "int32":
        return False
    entries = op.operands[2].type.size(1)
    return word_trees.fit(isa, entries) or pair_trees.fit(isa, entries)


def _emit_words(ctx: StageContext, op: Operation, source: Columns, target: Codes) -> None:
    """Encode a block of sums in 16 bits, two groups of rows at a time."""
    dims, vals = (ctx.ref(value) for value in op.operands[1:])
    depth, codebooks = op.operands[1].type.size(1), target.codebooks
    columns = list(range(source.columns))
    slots = ctx.blob.add("tree_slots", "int32", [dims], slots=columns, codebooks=codebooks)
    table = ctx.blob.add("tree_words", "int16", [vals], codebooks=codebooks)
    trees = word_trees.Trees(ctx, depth)
    with loop(ctx.groups // i64(2)) as pair:
        starts = [bind(source.index(pair * 2 + part, 0)) for part in (0, 1)]
        halves = [partial(source.view.load_half, start) for start in starts]
        with loop(codebooks) as c:
            offsets = [
                bind(cast("int64", slots.load(c * depth + level)) * LANES) for level in range(depth)
            ]
            found = trees.codes(halves, table.at(bind(c * WORD_THRESHOLDS)), offsets)
            target.view.store((pair * codebooks + i64(c)) * 32, found, 32)


def _emit_pairs(ctx: StageContext, op: Operation, source: Columns, target: Codes) -> None:
    """Encode a block of sums in 16 bits, two groups of rows to a register."""
    dims, vals = (ctx.ref(value) for value in op.operands[1:])
    depth, codebooks = op.operands[1].type.size(1), target.codebooks
    columns = list(range(source.columns))
    slots = ctx.blob.add("tree_slots", "int32", [dims], slots=columns, codebooks=codebooks)
    width = pair_trees.THRESHOLDS
    params = {"codebooks": codebooks, "width": width, "kind": "int16"}
    table = ctx.blob.add("image_values", "int16", [vals], **params)
    with loop((ctx.groups + 1) // i64(2)) as pair:
        start = bind(source.index(pair * 2, 0))

        def load(codebook: Expr, level: int) -> Expr:
            slot = cast("int64", slots.load(codebook * depth + level))
            return source.view.load_from(start, bind(slot * source.together), source.together)

        with loop(codebooks // 4) as quad:
            nodes = []
            for j in range(4):
                codebook = bind(quad * 4 + j)
                thresholds = table.at(bind(codebook * width))
                nodes += pair_trees.leaves(thresholds, depth, [partial(load, codebook)])
            pair_trees.store(target, pair, quad, nodes, op.operands[2].type.size(1))


def emit_block(ctx: StageContext, op: Operation, target: Codes) -> None:
    """Encode a block into ``target``."""
    source = ctx.values[op.operands[0].name]
    if isinstance(source, Columns) and source.dtype == "int16":
        (_emit_words if source.together == LANES else _emit_pairs)(ctx, op, source, target)
        return
    splitdims = ctx.array(op.operands[1])
    entries = op.operands[2].type.shape[1]
    depth = splitdims.shape[1]
    columns = loaded_columns(ctx, source, splitdims)
    slots = columns.used.slots if columns else list(range(source.columns))
    signs = ctx.isa.has_vbmi_vnni and columns is None and source.sums and len(op.operands) == 3
    dims, vals, starts = _tables(ctx, op, slots, target.codebooks, signs)
    width = max(entries, 16)
    step = 4 if target.dot else 1
    with loop(ctx.groups) as group:
        at = columns.load(group) if columns else source.view.at(source.index(group, 0))
        with loop(target.codebooks // step) as c:
            parts = [
                encode_codebook(
                    ctx.isa,
                    at,
                    dims.at((c * step + j) * depth),
                    vals.at((c * step + j) * width),
                    depth,
                    entries,
                    starts and starts.at((c * step + j) * width),
                    signs=signs,
                )
                for j in range(step)
            ]
            store_codes(target, group, c, parts)
