"""``conv2d``: windows of images times packed weights, by the schedule of products of many rows.

No patches are written: images are converted once, with their padding, channels last
(:mod:`lutcc.schedules.x86.images`), and a window is a row of x whose steps lie here and there
(:mod:`lutcc.schedules.x86.windows`). The weights of an output lie tap after tap, in the panels of
:mod:`lutcc.schedules.x86.codebook_many`.

Count, 3x3 over 64 channels of 56x56 pixels to as many, float32: 231 MFLOP, 0.8 MB in, 0.8 MB out,
147 KB of weights. The panel of 16 outputs takes 37 KB, and the windows of 200 pixels some 80 KB:
both come from L2 or nearer, 256 bytes of weights and 96 of x for 24 multiply-adds of 16 numbers.
int8 reads x once more, for its scale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lutcc.ir.module import Operation
from lutcc.ir.types import Sym
from lutcc.schedules.space import Space
from lutcc.schedules.x86 import depthwise
from lutcc.schedules.x86.codebook_many import Block, Many
from lutcc.schedules.x86.config import DenseConfig
from lutcc.schedules.x86.context import Constant, External, Scratch
from lutcc.schedules.x86.conv2d_cut import BLOCK_ROWS, Cutting, images_together
from lutcc.schedules.x86.dense import DenseWeights, halves
from lutcc.schedules.x86.emit import Expr, View, bind, i64, loop, maximum, minimum
from lutcc.schedules.x86.granules import Granules
from lutcc.schedules.x86.images import SHIFT, Geometry, Images
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.panels import ThreadLoop, ceiling, share
from lutcc.schedules.x86.product_cut import Cut, default_panels
from lutcc.schedules.x86.product_space import dense_space
from lutcc.schedules.x86.product_weights import Weights
from lutcc.schedules.x86.windows import Windows, in_place, steps_of

#: Operands that are packed into the blob.
PACKED = (1, 2, 3)
#: The part of a product's record that holds its config.
PART = "dense"


@dataclass(frozen=True)
class ShiftedWeights(Weights):
    """Weights of a product whose x is unsigned by an offset.

    Attributes
    ----------
    shifts
        What the sums of each output are too small by; None where x is not shifted.
    """

    shifts: View | None = None

    def of_group(self, group: Expr, output: Expr) -> ShiftedWeights:
        """Return the weights of a group whose first output is ``output``."""

        def later(view: View | None) -> View | None:
            return None if view is None else view.at(output)

        packed = self.packed
        indices = packed.indices.at(bind(group * packed.layout.index_nbytes))
        return replace(
            self,
            packed=replace(packed, indices=indices),  # type: ignore[type-var]
            units=later(self.units),
            bias=self.bias.at(output),
            shifts=later(self.shifts),
        )

    def results(self, x: Any, row: Expr | int, column: Expr, value: Expr, width: int) -> Expr:
        """Turn sums into results, see :meth:`Weights.results`."""
        if self.shifts is not None:
            value = bind(value + self.shifts.load(column, width))
        return super().results(x, row, column, value, width)


def default_config(op: Operation, isa: Isa) -> DenseConfig:
    """Return the hand-picked config: of two sizes of tiles, the one that leaves fewer rows idle.

    Where the number of images is open, it is the one for a single image.
    """
    shape, granules = Geometry.of(op), Granules.of_conv2d(isa, str(op.attr("compute")))
    fields = default_panels(granules, direct=not halves(granules))
    open_ = isinstance(op.operands[0].type.shape[0], Sym)
    images = 1 if open_ else images_together(op, shape, granules, BLOCK_ROWS)
    rows = images * shape.pixels
    tile = fields["tile_rows"]
    smaller = tile - 1
    if round_up(rows, smaller) * 1.03 < round_up(rows, tile):
        tile = smaller
    fields |= {"tile_rows": tile, "block_rows": BLOCK_ROWS}
    return DenseConfig(few=0, prefetch=0, **fields)


def space(op: Operation, isa: Isa) -> Space:
    """Return the configs worth trying; convolutions of one channel each have no choice."""
    default = default_config(op, isa)
    usual = Cutting.of(op, isa, default)
    if usual.depthwise:
        return Space((), {}, lambda config: True)

    def cut_of(config: DenseConfig) -> Cut:
        return Cutting.of(op, isa, config).cut

    rows = op.operands[0].type.size(0) * usual.shape.pixels
    return dense_space(PART, default, cut_of, rows, few=False)


@dataclass(frozen=True)
class Shared:
    """What all threads read, in the workspace."""

    cutting: Cutting
    images: Images


def take_shared(op: Operation, isa: Isa, config: DenseConfig, scratch: Scratch) -> Shared:
    """Assign the shared part of the workspace."""
    cutting = Cutting.of(op, isa, config)
    shape, granules, copied = cutting.shape, cutting.granules, cutting.copied
    return Shared(cutting, Images.take(shape, granules, cutting.images, copied, scratch))


def emit(
    op: Operation,
    config: DenseConfig,
    operands: list[Any],
    target: View,
    images: Expr,
    shared: Shared,
    thread_loop: ThreadLoop,
    private: Callable[[Expr], Scratch],
) -> None:
    """Emit the convolution of ``images`` images; ``operands`` begin with x, row-major."""
    del config
    x, *constants = operands
    cutting, shape = shared.cutting, shared.cutting.shape
    weights = _pack(op, cutting, constants)
    places = None
    if in_place(shape):
        places = constants[0].blob.add("ints", "int32", [], values=steps_of(shape))
    with loop(ceiling(images, cutting.images)) as b:
        first = bind(b * cutting.images)
        now = bind(minimum(i64(cutting.images), images - first))
        shared.images.fill(x, first, now, thread_loop)
        source = shared.images.values
        if source is None:
            source = x.at(bind(first * shape.numbers))
        here = target.at(bind(first * (shape.pixels * shape.outputs)))
        if cutting.depthwise:
            depthwise.emit(weights, shared.images, source, here, now, thread_loop)
        else:
            product = Convolution(cutting, weights, shared.images, source, places, here)
            with thread_loop() as (thread, threads):
                product.emit(bind(now * shape.pixels), thread, threads, private(thread))


def _pack(op: Operation, cutting: Cutting, constants: list[Any]) -> ShiftedWeights:
    """Pack the constants of the op."""
    weight, units, bias = constants
    shape, granules = cutting.shape, cutting.granules
    length = round_up(shape.outputs + 16, 64)  # panels of a group's last outputs read past them
    shifts = None
    if cutting.depthwise:
        packed: Any = depthwise.pack(shape, granules, weight)
    else:
        layout = cutting.layout
        interleaved = 16 // layout.itemsize if halves(granules) else 1
        params = {"groups": shape.groups, "interleaved": interleaved, **layout.to_json()}
        indices = Constant.pack("conv2d", "uint8", [weight], **params)
        packed = DenseWeights(layout, granules, indices)
        if granules.kind == "shifted":
            shifts = Constant.pack("conv2d_shifts", "int32", [weight], length=length, shift=-SHIFT)
    ones = not granules.integers and bool((np.asarray(units.array) == 1).all())
    return ShiftedWeights(
        packed,
        None if ones else Constant.pack("vector", "float32", [units], multiple=length),
        Constant.pack("vector", "float32", [bias], multiple=length),
        None,
        activation=str(op.attr("activation")),
        shifts=shifts,
    )


@dataclass(frozen=True)
class Convolution:
    """The product of the windows of some images.

    Attributes
    ----------
    cutting, weights
        How it is cut; what windows are multiplied with.
    images, source
        What is known of the images; their numbers.
    places
        How far from the beginning of a window each step lies; None where windows are gathered.
    target
        The result of the first image, and what follows.
    """

    cutting: Cutting
    weights: ShiftedWeights
    images: Images
    source: View
    places: View | None
    target: View

    def emit(self, rows: Expr, thread: Expr, threads: Expr, scratch: Scratch) -> None:
        """Emit what a thread does, a block of windows after the other, group after group.

        Threads share out the panels of weights, if there are many, else the windows: each lists,
        and gathers, those of its own.
        """
        cutting, capacity = self.cutting, self.cutting.windows
        tile, cut = cutting.config.tile_rows, cutting.cut
        begin, own = i64(0), rows
        if self.places is None or cut.panels < cutting.config.together:
            tiles, most = share(bind(ceiling(rows, tile)), thread, threads)
            begin = bind(tiles * tile)
            own = bind(maximum(minimum(most * tile, rows - begin), 0))
            thread, threads = i64(0), i64(1)
        windows = Windows.take(
            cutting.shape, cutting.granules, cutting.layout, self.source, capacity, scratch
        )
        windows = replace(windows, places=self.places)
        with loop(ceiling(own, capacity)) as b:
            first = bind(begin + b * capacity)
            now = bind(minimum(i64(capacity), begin + own - first))
            count = bind(ceiling(now, tile) * tile)
            windows.list(self.images, first, count, bind(rows - 1))
            with loop(cutting.shape.groups) as group:
                product = self._group(windows, group, count)
                Block(product, first, now, scratch).emit(thread, threads)

    def _group(self, windows: Windows, group: Expr, count: Expr) -> Many:
        """Return the product of a block of windows with the weights of a group."""
        cutting, shape = self.cutting, self.cutting.shape
        windows = replace(windows, first_channel=bind(group * shape.group_channels))
        if windows.places is None:
            windows.gather(self.source, count)
        output = bind(group * shape.group_outputs)
        view = self.target.at(output)
        target = External(view, shape.outputs, "float32", i64(shape.outputs), i64(1))
        weights = self.weights.of_group(group, output)
        return Many(cutting.cut, weights, windows, cutting.windows, target, target)
