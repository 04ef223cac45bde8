"""Trees over planes of an image: what they compare, and the codes in the order of a scan.

Three ways, by the type of the planes and the CPU:

* 32 bits, float32 or int32: 16 pixels at a time.
* 16 bits with VBMI2 and VNNI: 32 pixels a register, by :mod:`lutcc.schedules.x86.pair_trees`.
* 16 bits with AVX2, trees of at most 16 leaves: 32 pixels in two registers, by
  :mod:`lutcc.schedules.x86.word_trees`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lutcc.schedules.intrinsics import words
from lutcc.schedules.x86 import pair_trees, word_trees
from lutcc.schedules.x86.context import StageContext
from lutcc.schedules.x86.emit import Expr, View, bind, cast, i64, loop, reinterpret, splat
from lutcc.schedules.x86.pack_words import WORD_THRESHOLDS
from lutcc.schedules.x86.tree_encode import store_codes, threshold_lookup

if TYPE_CHECKING:
    from lutcc.schedules.x86.lut_conv2d import Layer


@dataclass(frozen=True)
class ImageTrees:
    """Encodes blocks of pixels, 16 at a time, in 32 bits.

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
    def of(cls, ctx: StageContext, layer: Layer) -> ImageTrees:
        """Pack the trees of a layer, for what its planes and the CPU ask for."""
        kind = cls
        if layer.source.dtype == "int16":
            kind = PairTrees if layer.codes.dot else WordTrees
        _, dims, vals, _, _ = layer.op.operands
        window, count = layer.window, layer.codes.codebooks
        offsets = ctx.blob.add(
            "image_offsets",
            "int32",
            [ctx.ref(dims)],
            taps=window.taps,
            plane=window.plane,
            codebooks=count,
        )
        width = kind._width(layer)
        values = layer.thresholds
        if values is None:
            name, params = kind._packing(layer)
            params = {**params, "codebooks": count}
            values = ctx.blob.add(name, layer.source.dtype, [ctx.ref(vals)], **params)
        return kind(ctx, layer, offsets, values, width)

    @staticmethod
    def _width(layer: Layer) -> int:
        return max(layer.op.operands[2].type.size(1), 16)

    @classmethod
    def _packing(cls, layer: Layer) -> tuple[str, dict[str, object]]:
        """Return how thresholds are packed."""
        sums = layer.source.dtype == "int32" and layer.source.ordered
        params = {"width": cls._width(layer), "kind": layer.source.dtype}
        return "image_values", {**params, **({"sums": True} if sums else {})}

    @property
    def _depth(self) -> int:
        return self.layer.op.operands[1].type.size(1)

    def emit(self, first: Expr, groups: Expr) -> None:
        """Encode groups of rows from pixel ``first`` on."""
        codes, entries = self.layer.codes, self.layer.op.operands[2].type.size(1)
        step = 4 if codes.dot else 1
        with loop(groups * (codes.rows // 16)) as group, loop(codes.codebooks // step) as c:
            pixel = bind(self.layer.place(first + group * 16))
            parts = [self._node(pixel, c * step + j) - splat(entries, "int32") for j in range(step)]
            store_codes(codes, group, c, parts)

    def _node(self, pixel: Expr, codebook: Expr) -> Expr:
        """Return the leaves that 16 pixels come to, int32x16."""
        table, source = self._table(codebook), self.layer.source
        node = splat(1, "int32")
        for level in range(self._depth):
            value = bind(source.view.load_from(pixel, self._offset(codebook, level), 16))
            if table.dtype == "float32":
                value = reinterpret("float32x16", value)
            found = threshold_lookup(self.ctx.isa, table, level, node)
            node = bind(words.following(node, value, found, signs=source.ordered))
        return node

    def _table(self, codebook: Expr) -> View:
        return self.values.at(bind(codebook * self.width))

    def _offset(self, codebook: Expr, level: int) -> Expr:
        return bind(cast("int64", self.offsets.load(codebook * self._depth + level)))


class PairTrees(ImageTrees):
    """Encodes 32 pixels at a time in 16 bits, with VBMI2 and VNNI."""

    @staticmethod
    def _width(layer: Layer) -> int:
        return pair_trees.THRESHOLDS

    def emit(self, first: Expr, groups: Expr) -> None:
        """Encode groups of 16 rows from pixel ``first`` on."""
        layer, together = self.layer, self.layer.tile_r // 2
        codes, count = layer.codes, layer.op.operands[2].type.size(1)
        with loop(groups // i64(2 * together)) as unit, loop(codes.codebooks // 4) as c:
            pairs = [bind(unit * together + k) for k in range(together)]
            pixels = [bind(layer.place(first + pair * 32)) for pair in pairs]
            nodes = [self._nodes(pixels, c * 4 + j) for j in range(4)]
            for k, pair in enumerate(pairs):
                pair_trees.store(codes, pair, c, [of_codebook[k] for of_codebook in nodes], count)

    def _nodes(self, pixels: Sequence[Expr], codebook: Expr) -> list[Expr]:
        """Return the leaves that 32 pixels from each of some come to, int16x32."""
        layer = self.layer
        offsets = [self._offset(codebook, level) for level in range(self._depth)]

        def load(pixel: Expr, level: int) -> Expr:
            if not layer.halves:
                return layer.source.view.load_from(pixel, offsets[level], 32)
            below = pixel + layer.window.pitch
            return layer.source.view.load_two_lines(pixel, below, offsets[level])

        loads = [partial(load, pixel) for pixel in pixels]
        return pair_trees.leaves(self._table(codebook), self._depth, loads)


class WordTrees(ImageTrees):
    """Encodes 32 pixels at a time in 16 bits, with AVX2: :mod:`lutcc.schedules.x86.word_trees`."""

    @staticmethod
    def _width(layer: Layer) -> int:
        return WORD_THRESHOLDS

    @classmethod
    def _packing(cls, layer: Layer) -> tuple[str, dict[str, object]]:
        return "tree_words", {}

    def emit(self, first: Expr, groups: Expr) -> None:
        """Encode groups of 32 rows from pixel ``first`` on."""
        layer, codes, trees = self.layer, self.layer.codes, word_trees.Trees(self.ctx, self._depth)
        with loop(groups) as group:
            pixel = bind(layer.place(first + group * 32))
            other = bind(pixel + (layer.window.pitch if layer.halves else 16))
            halves = [partial(layer.source.view.load_half, place) for place in (pixel, other)]
            with loop(codes.codebooks) as c:
                offsets = [self._offset(c, level) for level in range(self._depth)]
                found = trees.codes(halves, self._table(c), offsets)
                codes.view.store((group * codes.codebooks + i64(c)) * 32, found, 32)
