"""``lut_conv2d``: trees over planes of an image, then the scan of a stage of rows.

A block of pixels is encoded and scanned before the next one, so that codes stay in L1; a row of
the scan is a pixel, and its results are planes again.

Count, B codebooks of 16 entries, M outputs, for 32 pixels. Sums in int16, with VBMI2 and VNNI: at
each of 4 levels a tree takes what lies under 32 pixels from its thresholds, saturated, and shifts
the signs into its nodes; at 3 of them it permutes thresholds by the nodes: 12 instructions a
codebook, and 10 to bring four of them into the order of the scan, 14.5 B in all. The scan looks 64
entries up and adds them by two instructions: M B. So encoding costs as much as 14 outputs do, and
a layer of 32 codebooks and 32 outputs on 32 x 32 pixels 50 000 instructions for 1 M look-ups, of
which the scan's 35 000 run at two a cycle at most. Bytes: 2 for each number of the map at each of
4 B levels, from L1 or L2 (a map of 32 channels of 32 x 32 takes 74 kB), half of them across cache
lines; a chunk of 16 outputs of the table takes 256 B. Other levels, and maps of float32, go 16
pixels at a time in 32 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc.ir.module import Operation, Value
from lutcc.ir.types import TensorType
from lutcc.schedules.intrinsics import words
from lutcc.schedules.intrinsics.x86 import PACKSSDW_512, VPERMW_512
from lutcc.schedules.x86 import lut_accumulate
from lutcc.schedules.x86.context import Codes, StageContext
from lutcc.schedules.x86.emit import (
    Expr,
    View,
    bind,
    cast,
    i64,
    loop,
    minimum,
    reinterpret,
    shuffle,
    splat,
)
from lutcc.schedules.x86.pack import CHUNK, chunk_starts, round_up
from lutcc.schedules.x86.pack_images import SMALL_SUMS
from lutcc.schedules.x86.planes import SLACK, Planes, Window
from lutcc.schedules.x86.tree_encode import store_codes, threshold_lookup

#: Groups of rows of the scan that are encoded before they are scanned, at most: 256 pixels.
_BLOCK_PIXELS = 256


def scan_of(op: Operation) -> Operation:
    """Return the ``lut_accumulate`` that a convolution ends with."""
    rows, codebooks = op.results[0].type.shape[0], op.operands[3].type.size(0)
    codes = Value(f"{op.results[0].name}.codes", TensorType((rows, codebooks), "uint8"))
    attrs = (("accumulate", "exact"), ("upcast_every", 16))
    return Operation("lut_accumulate", (codes, op.operands[3]), op.results, attrs)


def narrow(ctx: StageContext, op: Operation) -> bool:
    """Whether the sums that a convolution reads can be compared in 16 bits, 32 at a time."""
    if op.operands[0].type.dtype != "int32" or op.operands[2].type.size(1) > 32:
        return False
    outside = ctx.array(op.operands[4])
    limits = np.abs(outside.astype(np.int64)).max(initial=0)
    return lut_accumulate.uses_dot(ctx.isa, scan_of(op)) and bool(limits < 1 << 15)


def by_signs(ctx: StageContext, op: Operation, dtype: str, first: bool) -> bool:
    """Whether the signs of differences tell what is above a threshold, of planes without NaN.

    Thresholds of sums are packed so that differences do not overflow; the ``first`` layer of a
    stage may be given any integers.
    """
    if not ctx.isa.has_vbmi_vnni or dtype == "int16" or (first and dtype == "int32"):
        return False
    numbers = [ctx.array(op.operands[2])[:, 1:], ctx.array(op.operands[4])]
    if dtype == "float32":
        return all(bool(np.isfinite(array).all()) for array in numbers)
    return bool((np.abs(numbers[1].astype(np.int64)) < SMALL_SUMS).all())


def bound(ctx: StageContext, op: Operation) -> int:
    """Return the largest magnitude that a sum can have."""
    lut = ctx.array(op.operands[3]).astype(np.int64)
    return int(np.abs(lut).max(axis=1).sum(axis=0).max(initial=0))


@dataclass(frozen=True)
class Layer:
    """One convolution of a stage.

    Attributes
    ----------
    op, window
        The operation.
    source
        The planes that it reads.
    sums
        (M, :attr:`plane`) its results, int16 or int32, with numbers between the rows that are none.
    plane
        Numbers from one plane of results to the next.
    into
        The planes of the next layer, where ``sums`` lie in them.
    codes
        Of a block of pixels.
    groups
        Groups of rows of the scan, whole tiles.
    tile_r, tile_m
        Register tile of the scan: groups of rows, columns.
    by_lines
        Whether pixels are taken line by line, without what is between them.
    thresholds
        (codebooks, 32) int16, where they are found for each image.
    """

    op: Operation
    window: Window
    source: Planes
    sums: View
    plane: int
    codes: Codes
    groups: int
    tile_r: int
    tile_m: int
    by_lines: bool
    into: Planes | None = None
    thresholds: View | None = None

    @classmethod
    def take(
        cls,
        ctx: StageContext,
        op: Operation,
        source: Planes,
        dtype: str,
        *,
        pairs: bool,
        into: Planes | None,
    ) -> Layer:
        """Assign room for the results of a convolution and its codes.

        ``pairs``: 32 pixels may be taken together; ``into``: planes that take the results as they
        are, if these lie there as the scan writes them.
        """
        window, scan = source.window, scan_of(op)
        codebooks = op.operands[3].type.size(0)
        layout = lut_accumulate.code_layout(ctx, scan, codebooks, source.view)
        height, width = window.out
        by_lines = width % (32 if pairs else layout.rows) == 0 or (pairs and width == 16)
        groups = -(-(height * width if by_lines else window.outputs) // layout.rows)
        tile_r, tile_m = 1, ctx.configs.accumulate.tile_m
        if layout.dot:
            choices = (4, 2) if pairs else (4, 3, 2)
            tile_r = min(choices, key=lambda r: (round_up(groups, r), -r))
            tile_m = 8 if tile_r == 2 else 4
        by_lines = by_lines and groups % tile_r == 0
        groups = round_up(-(-window.outputs // layout.rows), tile_r) if not by_lines else groups
        block = min(groups, round_up(max(_BLOCK_PIXELS // layout.rows, 1), tile_r))
        view = ctx.scratch.take(layout.codebooks * block * layout.rows, "uint8")
        codes = Codes(view, layout.codebooks, layout.rows, layout.dot, layout.entries)
        outputs = op.results[0].type.size(1)
        plane = round_up(window.outputs, 32) if by_lines else groups * layout.rows
        if into is not None and outputs >= CHUNK and into.takes(window, plane, dtype):
            sums, plane = into.view.at(into.window.place(*into.window.padding)), into.window.plane
        else:
            sums, into = ctx.scratch.take(max(outputs, CHUNK) * plane + SLACK, dtype), None
        return cls(op, window, source, sums, plane, codes, groups, tile_r, tile_m, by_lines, into)

    @property
    def halves(self) -> bool:
        """Whether the halves of 32 pixels are 16 of a line and 16 of the next."""
        return self.by_lines and self.window.out[1] == 16

    def place(self, pixel: Expr) -> Expr:
        """Return where a pixel that begins a group, by their order, lies in a plane."""
        width = self.window.out[1]
        if not self.by_lines:
            return pixel
        pixel = bind(pixel)
        return bind(pixel // i64(width) * self.window.pitch + pixel % width)

    def emit(self, ctx: StageContext) -> None:
        """Emit the convolution of one image."""
        rows, tile = self.codes.rows, self.tile_r
        block = min(self.groups, round_up(max(_BLOCK_PIXELS // rows, 1), tile))
        scan = scan_of(self.op)
        kind = lut_accumulate.DotTile if self.codes.dot else lut_accumulate.WidenTile
        producer = kind(ctx, scan, self.codes)
        encoder = _Encoder.of(ctx, self)
        starts = chunk_starts(self.op.results[0].type.size(1))
        where = ctx.blob.add("ints", "int32", [], values=starts)
        with loop(-(-self.groups // block)) as b:
            first = bind(b * block)
            now = bind(minimum(i64(block), i64(self.groups) - first))
            encoder.emit(bind(first * rows), now)
            with loop(len(starts)) as chunk, loop(now // i64(tile)) as t:
                start = bind(cast("int64", where.load(chunk)))
                supers = [bind(t * tile + r) for r in range(tile)]
                with loop(CHUNK // self.tile_m) as sub:
                    column = bind(sub * self.tile_m)
                    found = producer.tile(chunk, column, self.tile_m, supers)
                    self._store(found, bind((start + column) * self.plane), first + supers[0])

    def _store(self, found: Any, at: Expr, group: Expr) -> None:
        """Store the sums of a tile, from a group of rows on."""
        rows = self.codes.rows
        pairs = self.source.dtype == "int16"
        for r in range(0, self.tile_r, 2 if pairs else 1):
            pixel = self.place((group + r) * rows)
            for j in range(self.tile_m):
                place = at + pixel + j * self.plane
                if pairs:
                    value = PACKSSDW_512(found(j, r)[0], found(j, r + 1)[0])
                    if self.sums.dtype != "int16":
                        value = cast("int32x32", value)
                    if not self.halves:
                        self.sums.store(place, value, 32)
                        continue
                    value = bind(value)
                    self.sums.store(place, shuffle([value], range(16)), 16)
                    self.sums.store(place + self.window.pitch, shuffle([value], range(16, 32)), 16)
                    continue
                for p, value in enumerate(found(j, r)):
                    if self.sums.dtype == "int16":
                        value = cast("int16x16", value)
                    self.sums.store(place + 16 * p, value, 16)


@dataclass(frozen=True)
class _Encoder:
    """Encodes blocks of pixels.

    Attributes
    ----------
    ctx, layer
        What is encoded.
    offsets, values
        Of each codebook, where its levels read and what they compare with.
    width
        Numbers from one codebook's thresholds to the next.
    """

    ctx: StageContext
    layer: Layer
    offsets: View
    values: View
    width: int

    @classmethod
    def of(cls, ctx: StageContext, layer: Layer) -> _Encoder:
        """Pack the trees of a layer."""
        _, dims, vals, _, _ = layer.op.operands
        window, dtype = layer.window, layer.source.dtype
        width = max(layer.op.operands[2].type.size(1), 32 if dtype == "int16" else 16)
        count, values = layer.codes.codebooks, layer.thresholds
        if values is None:
            values = ctx.blob.add(
                "image_values",
                dtype,
                [ctx.ref(vals)],
                codebooks=count,
                width=width,
                kind=dtype,
                **({"sums": True} if dtype == "int32" and layer.source.ordered else {}),
            )
        return cls(
            ctx,
            layer,
            ctx.blob.add(
                "image_offsets",
                "int32",
                [ctx.ref(dims)],
                taps=window.taps,
                plane=window.plane,
                codebooks=count,
            ),
            values,
            width,
        )

    def emit(self, first: Expr, groups: Expr) -> None:
        """Encode groups of rows from pixel ``first`` on."""
        codes, step = self.layer.codes, 4 if self.layer.codes.dot else 1
        if self.layer.source.dtype == "int16":
            together = self.layer.tile_r // 2
            with loop(groups // i64(2 * together)) as unit, loop(codes.codebooks // step) as c:
                pairs = [bind(unit * together + k) for k in range(together)]
                pixels = [self.layer.place(first + pair * 32) for pair in pairs]
                nodes = [self._nodes(pixels, c * step + j, 32) for j in range(step)]
                for k, pair in enumerate(pairs):
                    self._store_pair(pair, c, [of_codebook[k] for of_codebook in nodes])
            return
        entries = self.layer.op.operands[2].type.size(1)
        with loop(groups * (codes.rows // 16)) as group, loop(codes.codebooks // step) as c:
            pixels = [self.layer.place(first + group * 16)]
            parts = [
                self._nodes(pixels, c * step + j, 16)[0] - splat(entries, "int32")
                for j in range(step)
            ]
            store_codes(codes, group, c, parts)

    def _nodes(self, pixels: Sequence[Expr], codebook: Expr, lanes: int) -> list[Expr]:
        """Return the leaves that 32 (16) pixels from each of some come to: int16x32 (int32x16)."""
        depth = self.layer.op.operands[1].type.size(1)
        kind = f"int{512 // lanes}"
        table = self.values.at(bind(codebook * self.width))
        pixels = [bind(pixel) for pixel in pixels]
        nodes = [splat(1, kind, lanes) for _ in pixels]
        for level in range(depth):
            offset = bind(cast("int64", self.offsets.load(codebook * depth + level)))
            for k, (pixel, node) in enumerate(zip(pixels, nodes, strict=True)):
                value = bind(self._value(pixel, offset, lanes))
                nodes[k] = self._below(table, level, node, value, lanes)
        return nodes

    def _value(self, pixel: Expr, offset: Expr, lanes: int) -> Expr:
        """Return what lies under 32 (16) pixels."""
        source, layer = self.layer.source.view, self.layer
        if lanes == 32 and layer.halves:
            return source.load_two_lines(pixel, pixel + layer.window.pitch, offset)
        return source.load_from(pixel, offset, lanes)

    def _below(self, table: View, level: int, node: Expr, value: Expr, lanes: int) -> Expr:
        """Return the nodes below some, by what they compare."""
        if lanes == 32:
            found = splat(table.load(1), "int16", lanes)
            if level:
                found = VPERMW_512(table.load(0, 32), node)
        else:
            found = threshold_lookup(self.ctx.isa, table, level, node)
        if table.dtype == "float32":
            value = reinterpret("float32x16", value)
        return bind(words.following(node, value, found, signs=self.layer.source.ordered))

    def _store_pair(self, pair: Expr, c: Expr, nodes: list[Expr]) -> None:
        """Store the codes of four codebooks for 32 pixels, four bytes a pixel.

        The words of pixels are interleaved within 128 bits; packing the sums undoes that.
        """
        codes = self.layer.codes
        eight = splat(8, "int16", 32)
        halves = []
        for j in (0, 2):
            # a leaf is its code and the number of leaves; tables of a word are ``entries`` apart
            leaves, entries = self.layer.op.operands[2].type.size(1), codes.entries
            shift = entries * j - leaves + ((entries * (j + 1) - leaves) << 8)
            word = nodes[j] | (nodes[j + 1] << eight)
            shift = (shift + (1 << 15)) % (1 << 16) - (1 << 15)
            halves.append(bind(word + splat(shift, "int16", 32)))
        for high in (0, 1):
            lanes = [
                i
                for quad in range(4)
                for k in range(4)
                for i in (8 * quad + 4 * high + k, 32 + 8 * quad + 4 * high + k)
            ]
            words = shuffle(halves, lanes)
            group = bind(pair * 2 + high)
            index = (group * (codes.codebooks // 4) + i64(c)) * 64
            codes.view.store(index, reinterpret("uint8x64", words), 64)
