"""How a convolution is cut: images converted together, blocks of windows, steps of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from lutcc.errors import CompileError
from lutcc.ir.module import Operation
from lutcc.ir.types import Sym
from lutcc.schedules.x86 import depthwise
from lutcc.schedules.x86.config import DenseConfig
from lutcc.schedules.x86.dense import ITEMSIZE
from lutcc.schedules.x86.emit import ITEMSIZE as BYTES
from lutcc.schedules.x86.granules import Granules
from lutcc.schedules.x86.images import Geometry
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.pack_dense import STEP_COLUMNS, DenseLayout
from lutcc.schedules.x86.product_cut import Cut
from lutcc.schedules.x86.windows import Windows, in_place

#: Windows of a block. Those read in place overlap, so that more of them fit into L2.
BLOCK_ROWS = 240
#: By bytes of a weight, the columns of a step: of gathered windows, those that waste the least.
STEPS = {1: (32, 16), 2: (32, 24, 16, 8), 4: (32, 24, 16, 8)}
#: Bytes of gathered windows, and of images that are converted together where they are small.
GATHERED_BYTES, IMAGES_BYTES = 256 << 10, 1 << 20


@dataclass(frozen=True)
class Cutting:
    """How a convolution is cut.

    Attributes
    ----------
    shape, granules, config
        What is computed, with which arithmetic and sizes.
    images
        How many are converted together.
    """

    shape: Geometry
    granules: Granules
    config: DenseConfig
    images: int

    @classmethod
    def of(cls, op: Operation, isa: Isa, config: DenseConfig) -> Cutting:
        """Return the cutting of an operation.

        Raises
        ------
        CompileError
            If an image is too large.
        """
        shape, form = Geometry.of(op), str(op.attr("compute"))
        granules = Granules.of_conv2d(isa, form)
        if depthwise.applies(shape, form):
            granules = depthwise.arithmetic(isa, form)
        images = images_together(op, shape, granules, config.block_rows)
        if images * shape.numbers >= 1 << 31:
            raise CompileError(
                f"images of {shape.height}x{shape.width}x{shape.channels} with padding "
                f"{shape.padding} have more numbers than 32 bits count",
                where=f"conv2d %{op.results[0].name}",
                fix="cut the images, or leave this convolution to torch",
            )
        return cls(shape, granules, config, images)

    @property
    def depthwise(self) -> bool:
        """Whether each output has a channel of its own."""
        return depthwise.applies(self.shape, self.granules.form)

    @property
    def copied(self) -> bool:
        """Whether images are copied before they are multiplied."""
        plain = self.granules.form == "float32" and self.shape.padding == (0, 0)
        direct = depthwise.in_place(self.shape) if self.depthwise else in_place(self.shape)
        return not (plain and direct)

    @property
    def layout(self) -> DenseLayout:
        """How the weights of a group are packed."""
        shape, granules = self.shape, self.granules
        itemsize = ITEMSIZE[granules.form]
        step = min(STEPS[itemsize], key=lambda step: (round_up(shape.terms, step), -step))
        if in_place(shape):
            step = STEP_COLUMNS
        return DenseLayout(
            itemsize,
            shape.group_outputs,
            round_up(shape.terms, step),
            granules.isa.vector_bytes // 16,
            self.config.vectors,
            0,
            step,
        )

    @property
    def cut(self) -> Cut:
        """How the product of a group is cut."""
        return Cut(self.granules, self.layout, self.config)

    @property
    def windows(self) -> int:
        """Windows of a block, in whole tiles."""
        rows, tile = self.images * self.shape.pixels, self.config.tile_rows
        most = self.config.block_rows
        if not in_place(self.shape):
            row = Windows.row_numbers(self.layout) * BYTES[self.granules.values]
            most = max(tile, min(most, GATHERED_BYTES // row))
        return round_up(-(-rows // -(-rows // most)), tile)


def images_together(op: Operation, shape: Geometry, granules: Granules, rows: int) -> int:
    """Return how many images are done together: enough for a block, if they are small."""
    enough = -(-rows // shape.pixels)
    most = max(1, min(enough, IMAGES_BYTES // (shape.numbers * BYTES[granules.values])))
    images = op.operands[0].type.shape[0]
    return most if isinstance(images, Sym) else max(1, min(most, images))
