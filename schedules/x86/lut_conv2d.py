"""``lut_conv2d``: trees over planes of an image, then the scan of a stage of rows.

A block of pixels is encoded and scanned before the next one, so that codes stay in L1; a row of
the scan is a pixel, and its results are planes again.

Count, B codebooks of 16 entries, M outputs, for 32 pixels. Sums in int16, with VBMI2 and VNNI: at
each of 4 levels a tree takes what lies under 32 pixels from its thresholds, saturated, and shifts
the signs into its nodes; at 3 of them it permutes thresholds by the nodes: 12 instructions a
codebook, and 10 to bring four of them into the order of the scan, 14.5 B in all. The scan looks 64
entries up and adds them by two instructions: M B. So encoding costs as much as 14 outputs do, and
a layer of 32 codebooks and 32 outputs on 32 x 32 pixels 50 000 instructions for 1 M look-ups, of
which the scan's 35 000 run at two a cycle at most. With AVX2: 53 B for the trees
(:mod:`word_trees`) and 4 M B for the scan, which looks 32 entries up by one instruction and widens
and adds them by three; it takes M B cycles where shuffles and shifts share two ports. Bytes: 2 for
each number of the map at each of 4 B levels, from L1 or L2 (a map of 32 channels of 32 x 32 takes
74 kB), half of them across cache lines; a chunk of 16 outputs of the table takes 256 B. Other
levels, and maps of float32, go 16 pixels at a time in 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc.ir.module import Operation, Value
from lutcc.ir.types import TensorType
from lutcc.schedules.intrinsics.x86 import PACKSSDW_512
from lutcc.schedules.x86 import lut_accumulate, word_trees
from lutcc.schedules.x86.context import Codes, StageContext
from lutcc.schedules.x86.emit import (
    Expr,
    View,
    bind,
    cast,
    i64,
    loop,
    minimum,
    shuffle,
)
from lutcc.schedules.x86.image_trees import ImageTrees
from lutcc.schedules.x86.pack import CHUNK, chunk_starts, round_up
from lutcc.schedules.x86.pack_images import SMALL_SUMS
from lutcc.schedules.x86.planes import SLACK, Planes, Window

#: Groups of rows of the scan that are encoded before they are scanned, at most: 256 pixels.
_BLOCK_PIXELS = 256


def scan_of(op: Operation) -> Operation:
    """Return the ``lut_accumulate`` that a convolution ends with."""
    rows, codebooks = op.results[0].type.shape[0], op.operands[3].type.size(0)
    codes = Value(f"{op.results[0].name}.codes", TensorType((rows, codebooks), "uint8"))
    attrs = (("accumulate", "exact"), ("upcast_every", 16))
    return Operation("lut_accumulate", (codes, op.operands[3]), op.results, attrs)


def in_words(ctx: StageContext, op: Operation) -> bool:
    """Whether trees may compare what a convolution reads in 16 bits, 32 pixels at a time."""
    fits = word_trees.fit(ctx.isa, op.operands[2].type.size(1))
    return fits or lut_accumulate.uses_dot(ctx.isa, scan_of(op))


def narrow(ctx: StageContext, op: Operation) -> bool:
    """Whether the sums that a convolution reads can be compared in 16 bits."""
    if op.operands[0].type.dtype != "int32":
        return False
    outside = ctx.array(op.operands[4])
    limits = np.abs(outside.astype(np.int64)).max(initial=0)
    return in_words(ctx, op) and bool(limits < 1 << 15)


def narrow_sums(ctx: StageContext, op: Operation) -> bool:
    """Whether a convolution's sums come, and fit, in 16 bits."""
    ways = not ctx.isa.has_avx512 or lut_accumulate.uses_dot(ctx.isa, scan_of(op))
    return ways and lut_accumulate.bound(ctx.array(op.operands[3])) < 1 << 15


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
        by_lines = by_lines and height * width % (layout.rows * tile_r) == 0
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
        producer: Any = None
        if self.codes.dot:
            producer = lut_accumulate.DotTile(ctx, scan, self.codes)
        else:
            producer = lut_accumulate.WidenTile(ctx, scan, self.codes, self.sums.dtype)
        encoder = ImageTrees.of(ctx, self)
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
        pairs = self.codes.dot and self.source.dtype == "int16"
        for r in range(0, self.tile_r, 2 if pairs else 1):
            pixel = self.place((group + r) * self.codes.rows)
            for j in range(self.tile_m):
                place, lanes = at + pixel + j * self.plane, 16
                values = found(j, r)
                if pairs:
                    whole = bind(PACKSSDW_512(values[0], found(j, r + 1)[0]))
                    values, lanes = [whole], 32
                    if self.halves:
                        values = [shuffle([whole], range(k, k + 16)) for k in (0, 16)]
                        lanes = 16
                for k, value in enumerate(values):
                    if not str(value.ty.dtype).startswith(self.sums.dtype):
                        value = cast(f"{self.sums.dtype}x{lanes}", value)
                    self.sums.store(self._part(place, k, lanes), value, lanes)

    def _part(self, place: Expr, part: int, lanes: int) -> Expr:
        """Return where part ``part`` of a group of rows lies, the first one at ``place``."""
        return place + part * (self.window.pitch if self.halves else lanes)
