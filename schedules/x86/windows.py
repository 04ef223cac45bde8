"""Windows of images as the rows of a product: read in place, or gathered.

Where a group has a multiple of 32 channels, each step of the weights meets channels of one tap,
which lie side by side in an image: a window is where it begins, and how far from there each step
lies. Other windows are copied, tap after tap, to rows of a block that stays in L2: some 2 numbers
are moved for O multiply-adds. Taps of a row of a window that lie side by side are one piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lutcc.schedules.x86.codebook_rows import broadcast
from lutcc.schedules.x86.context import Scratch
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    View,
    bind,
    cast,
    i64,
    loop,
    minimum,
)
from lutcc.schedules.x86.granules import Granules
from lutcc.schedules.x86.images import SLACK, Geometry, Images, zero_of
from lutcc.schedules.x86.pack_dense import STEP_COLUMNS, DenseLayout


def in_place(shape: Geometry) -> bool:
    """Tell whether windows are read where they lie."""
    return shape.group_channels % STEP_COLUMNS == 0


def steps_of(shape: Geometry) -> list[int]:
    """Return how far from the beginning of a window each step lies in the images."""
    return [
        shape.tap(i, j) + channel
        for i in range(shape.kernel[0])
        for j in range(shape.kernel[1])
        for channel in range(0, shape.group_channels, STEP_COLUMNS)
    ]


@dataclass(frozen=True)
class Windows:
    """Windows of some pixels of a result; see :class:`lutcc.schedules.x86.codebook_rows`.

    Attributes
    ----------
    shape, granules, layout
        The convolution, its arithmetic, the layout of a group's weights.
    values
        What is multiplied: images, or [window][:attr:`columns`].
    begins
        Where each window begins in the images.
    units
        int8: what 1 stands for.
    places
        How far from its beginning each step lies; None where windows are gathered.
    first_channel
        Of the group that is multiplied.
    """

    shape: Geometry
    granules: Granules
    layout: DenseLayout
    values: View
    begins: View
    units: View
    places: View | None = None
    first_channel: Expr | int = 0

    @classmethod
    def take(
        cls,
        shape: Geometry,
        granules: Granules,
        layout: DenseLayout,
        images: View,
        capacity: int,
        scratch: Scratch,
    ) -> Windows:
        """Assign room for ``capacity`` windows."""
        values = images
        if not in_place(shape):
            values = scratch.take(capacity * cls.row_numbers(layout) + SLACK, granules.values)
        begins = scratch.take(capacity, "int32")
        units = scratch.take(capacity if granules.integers else 0, "float32")
        return cls(shape, granules, layout, values, begins, units)

    @staticmethod
    def row_numbers(layout: DenseLayout) -> int:
        """Return the distance of gathered windows, each with room behind it."""
        return layout.steps * layout.step + LANES

    @property
    def scattered(self) -> bool:
        """Whether windows are read in place, by a level with registers for a part of each."""
        return self.places is not None and self.granules.isa.has_avx512

    def list(self, images: Images, first: Expr, count: Expr, last: Expr) -> None:
        """Write down where windows begin.

        Parameters
        ----------
        images
            What they are windows of.
        first
            The pixel, counted through all images, of row 0.
        count
            How many rows.
        last
            The last pixel that there is; rows after it repeat it.
        """
        shape = self.shape
        with loop(count) as row:
            pixel = bind(minimum(first + row, last))
            line = bind(pixel // i64(shape.out_width))
            image = bind(line // i64(shape.out_height))
            y, x = line - image * shape.out_height, pixel - line * shape.out_width
            self.begins.store(row, cast("int32", shape.offset(image, y, x)))
            if self.granules.integers:
                self.units.store(row, images.units.load(image))

    def gather(self, source: View, count: Expr) -> None:
        """Copy windows of a group; each piece may write over what comes after it."""
        shape = self.shape
        with loop(count) as row:
            there = bind(cast("int64", self.begins.load(row)) + self.first_channel)
            target = self.values.at(bind(row * self.row_numbers(self.layout)))
            for start, place, length in self._pieces():
                with loop(-(-length // LANES)) as k:
                    value = source.load(there + (k * LANES + start), LANES)
                    target.store(k * LANES + place, value, LANES)
            end = self.layout.steps * self.layout.step
            for at in range(shape.terms, end, LANES):
                target.store(at, zero_of(self.granules), LANES)

    def _pieces(self) -> Iterator[tuple[int, int, int]]:
        """Yield where each piece lies from the beginning of its window, where it goes, its size."""
        shape, channels = self.shape, self.shape.group_channels
        joined = shape.kernel[1] if shape.groups == 1 and shape.dilation[1] == 1 else 1
        for i in range(shape.kernel[0]):
            for j in range(0, shape.kernel[1], joined):
                place = (i * shape.kernel[1] + j) * channels
                yield shape.tap(i, j), place, joined * channels

    def start(self, row: Expr, step: Expr) -> Expr:
        """Return the number of the first value of a window, or of one of its steps."""
        if self.places is None:
            return row * self.row_numbers(self.layout) + step * self.layout.step
        return cast("int64", self.begins.load(row)) + self.first_channel

    def column(self, step: Expr, number: Expr) -> Expr:
        """Return how far after :meth:`start` of ``step`` the step ``number`` steps later lies."""
        if self.places is None:
            return number * self.layout.step
        return cast("int64", self.places.load(step + number))

    def parts(self, start: Expr) -> list[Expr]:
        """Load what is multiplied together, for all lanes."""
        return [broadcast(self.values, start, self.granules.columns, self.layout.lanes)]
