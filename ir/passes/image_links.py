"""Find convolutions by look-ups whose sums those behind them can compare, and map thresholds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lutcc.ir.module import Module, Operation
from lutcc.ir.passes.base import readers_of
from lutcc.ir.passes.chains import MAPS, constants_of
from lutcc.ir.passes.lookup_convolutions import window_of
from lutcc.ir.passes.mapped_trees import (
    MOST_SUMS,
    evaluated,
    mirrored_thresholds,
    nodes_of,
)
from lutcc.ir.passes.sum_thresholds import below, plain, questions
from lutcc.ir.types import Array

_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class Link:
    """Sums of a convolution that only other convolutions by look-ups read.

    Attributes
    ----------
    sums
        The ``lut_conv2d`` in front.
    path
        What follows it, in order: functions of single elements, reshapes, poolings.
    readers
        The convolutions behind.
    mapped
        Their thresholds among the sums.
    """

    sums: Operation
    path: tuple[Operation, ...]
    readers: tuple[Operation, ...]
    mapped: Mapped | None = None

    @property
    def channels(self) -> int:
        """How many channels the sums have."""
        return self.sums.operands[3].type.size(2)


@dataclass(frozen=True)
class ImageCut:
    """Why sums in front of a convolution become floats; ``sums`` and ``path`` as in Link."""

    sums: Operation
    path: tuple[Operation, ...]
    reason: str


@dataclass(frozen=True)
class Mapped:
    """Thresholds among sums.

    Attributes
    ----------
    thresholds
        (B, K) int32 of each reader; of mirrored channels, in terms of mirrored sums.
    outside
        (C,) int32 of each reader: what a channel is outside the image.
    mirrored
        (C,) which channels fall.
    kept
        The channels that are compared, ascending.
    """

    thresholds: tuple[Array, ...]
    outside: tuple[Array, ...]
    mirrored: Array
    kept: Array


def find_links(module: Module) -> tuple[list[Link], list[ImageCut]]:
    """Return which convolutions of main feed others in integers, and why others do not."""
    main = module.main
    defined = {value.name: op for op in main.body for value in op.results}
    readers = readers_of(main)
    returned = {value.name for value in main.returns}
    arrays = constants_of(module)
    links: list[Link] = []
    cuts: list[ImageCut] = []
    seen: set[str] = set()
    for op in main.body:
        if op.opcode != "lut_conv2d" or op.operands[0].type.dtype != "float32":
            continue
        source = op.operands[0]
        path: list[Operation] = []
        at = defined.get(source.name)
        while at is not None and at.opcode in (*MAPS, "reshape", "max_pool2d"):
            path.insert(0, at)
            at = defined.get(at.operands[0].name)
        if at is None or at.opcode != "lut_conv2d" or at.results[0].name in seen:
            continue
        seen.add(at.results[0].name)
        link = Link(at, tuple(path), tuple(readers[source.name]))
        reason = _not_alone(link, readers, returned) or unsuited(link, arrays)
        found = reason if reason else _mapped(link, arrays)
        if isinstance(found, str):
            cuts.append(ImageCut(at, tuple(path), found))
        else:
            links.append(replace(link, mapped=found))
    return links, cuts


def _not_alone(link: Link, readers: Mapping[str, list[Operation]], returned: set[str]) -> str:
    """Return who else needs what is on the way, if anybody does."""
    reason = shared(link, readers, returned)
    if reason:
        return reason
    others = [op.opcode for op in link.readers if op.opcode != "lut_conv2d"]
    return f"{others[0]} reads the floats too" if others else ""


def shared(link: Link, readers: Mapping[str, list[Operation]], returned: set[str]) -> str:
    """Return what on the way others read as well, if anything is."""
    *inner, last = (link.sums, *link.path)
    for op in (*inner, last):
        if op.results[0].name in returned:
            return f"%{op.results[0].name} is returned too"
    for op in inner:
        if len(readers[op.results[0].name]) > 1:
            return f"%{op.results[0].name} has several readers"
    return ""


def unsuited(link: Link, arrays: Mapping[str, Array]) -> str:
    """Return why thresholds cannot be mapped, if they cannot."""
    for op in (link.sums, *link.path, *link.readers):
        missing = [v.name for v in op.operands[1:] if v.name not in arrays]
        if missing:
            return f"an operand of {op.opcode} is computed"
    if sums_of(arrays[link.sums.operands[3].name])[1] > MOST_SUMS:
        return "sums are too large to be evaluated one by one"
    for op in link.path:
        if op.results[0].type.shape[-1] != link.channels:
            return f"{op.opcode} moves numbers between channels"
    return ""


def sums_of(lut: Array) -> tuple[int, int]:
    """Return the least sum, and by how much the largest exceeds it, at most."""
    wide = lut.astype(np.int64)
    least = int(wide.min(axis=1).sum(axis=0).min())
    return least, int(wide.max(axis=1).sum(axis=0).max()) - least


def _mapped(link: Link, arrays: Mapping[str, Array]) -> Mapped | str:
    """Return the thresholds among the sums, or why there are none."""
    lut = arrays[link.sums.operands[3].name]
    least, span = sums_of(lut)
    sums = np.arange(least, least + span + 1, dtype=np.int32)
    maps = [op for op in link.path if op.opcode in MAPS]
    pools = [i for i, op in enumerate(link.path) if op.opcode == "max_pool2d"]
    early = [op for op in link.path[: pools[-1]] if op.opcode in MAPS] if pools else maps
    late = len(early) < len(maps)
    taps = [window_of(op)["kernel"] for op in link.readers]
    used = [
        arrays[op.operands[1].name] // (kh * kw)
        for op, (kh, kw) in zip(link.readers, taps, strict=True)
    ]
    values = [arrays[op.operands[2].name] for op in link.readers]
    found = [np.full(v.shape, _INT32.max, np.int32) for v in values]
    outside = [np.zeros(link.channels, np.int32) for _ in values]
    mirrored = np.zeros(link.channels, bool)
    kept = np.unique(np.concatenate([dims.ravel() for dims in used]))
    before = dict(evaluated(early, arrays, sums, kept)) if late else {}
    for channel, y in evaluated(maps, arrays, sums, kept):
        places = [nodes_of(d, v.shape[1], channel) for d, v in zip(used, values, strict=True)]
        wanted = np.concatenate([v[place] for v, place in zip(values, places, strict=True)])
        asked = questions(least, y, wanted)
        if asked is None or not (asked.rising or asked.falling):
            return (
                f"channel {channel} neither rises nor falls all the way, and a threshold lies there"
            )
        falls = asked.falling and not asked.rising
        if late and not _agrees(before[channel], falls):
            return f"what follows the pooling of channel {channel} turns what is before it round"
        mirrored[channel] = falls
        got, first = plain(asked, least), least
        if falls:
            got = mirrored_thresholds(below(asked, least + span), lut)
            first = int(mirrored_thresholds(np.array([least + span]), lut)[0]) + 1
        cuts = np.cumsum([int(place.sum()) for place in places])[:-1]
        for i, part in enumerate(np.split(got, cuts)):
            beyond = float(arrays[link.readers[i].operands[4].name][channel])
            above = beyond > values[i][places[i]]
            found[i][places[i]] = part = _spread(part, above, first, first + span)
            inside = _outside(part, above)
            if inside is not None:
                outside[i][channel] = inside
            elif window_of(link.readers[i])["padding"] != (0, 0):
                return (
                    f"no sum of channel {channel} lies between two thresholds on either side of "
                    f"{beyond:g}, which is what trees read outside the image"
                )
    return Mapped(tuple(found), tuple(outside), mirrored, kept)


def _agrees(early: Array, falls: bool) -> bool:
    """Whether what is in front of a pooling falls, or rises, all the way."""
    steps = np.diff(early)
    return bool((steps <= 0).all() if falls else (steps >= 0).all())


def _spread(thresholds: Array, above: Array, least: int, most: int) -> Array:
    """Return equal thresholds with room for what lies outside the image between them.

    What every sum exceeds, or none, may be moved away from the sums.
    """
    moved = thresholds - ((thresholds < least) & above).astype(np.int32)
    return moved + ((thresholds >= most) & ~above).astype(np.int32)


def _outside(thresholds: Array, above: Array) -> int | None:
    """Return an integer that is above those thresholds and no others; None if there is none."""
    low = thresholds[above].max(initial=_INT32.min)
    high = thresholds[~above].min(initial=_INT32.max)
    if low >= high:
        return None if above.any() and not above.all() else int(low) + 1
    return int(low) + 1 if above.any() else int(high) if not above.all() else 0
