"""Trees of at most 32 leaves over 32 numbers of 16 bits at a time, with VBMI2 and VNNI.

``vpermw`` takes the thresholds of a level by the nodes, a saturated difference has the answer as
its sign, ``vpshldw`` shifts it into the node: three instructions a level. Codes of four codebooks
become the words that a scan by dot products takes; interleaving those of two codebooks takes
apart what ``vpackssdw`` has made of the sums of two groups of rows.

Count, 16 leaves, 4 codebooks and 32 numbers: 48 instructions for the answers, 13 for the codes,
where 32 bits take 112.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lutcc.schedules.intrinsics import words
from lutcc.schedules.intrinsics.x86 import VPERMW_512
from lutcc.schedules.x86.context import Codes
from lutcc.schedules.x86.emit import Expr, View, bind, i64, reinterpret, shuffle, splat
from lutcc.schedules.x86.isa import Isa

#: Thresholds of a codebook, in heap order: as many as ``vpermw`` takes.
THRESHOLDS = 32


def fit(isa: Isa, entries: int) -> bool:
    """Whether trees of so many leaves compare words in this way."""
    return isa.has_vbmi_vnni and entries <= THRESHOLDS


def leaves(table: View, depth: int, loads: Sequence[Callable[[int], Expr]]) -> list[Expr]:
    """Return the leaves that 32 numbers each come to, int16x32.

    Parameters
    ----------
    table
        Thresholds of a codebook.
    depth
        Levels.
    loads
        Load the numbers that a level compares.
    """
    nodes = [splat(1, "int16", 32) for _ in loads]
    for level in range(depth):
        for k, (load, node) in enumerate(zip(loads, nodes, strict=True)):
            found = splat(table.load(1), "int16", 32)
            if level:
                found = VPERMW_512(table.load(0, THRESHOLDS), node)
            nodes[k] = bind(words.following(node, bind(load(level)), found))
    return nodes


def store(codes: Codes, pair: Expr, quad: Expr, nodes: Sequence[Expr], count: int) -> None:
    """Store the codes of four codebooks for two groups of 16 rows, four bytes a row.

    Parameters
    ----------
    codes
        Where they go.
    pair, quad
        Which groups, which codebooks.
    nodes
        Leaves of each codebook, of ``count`` that a tree has.
    """
    halves = []
    for j in (0, 2):
        # a leaf is its code and the number of leaves; tables of a word are ``entries`` apart
        shift = codes.entries * j - count + ((codes.entries * (j + 1) - count) << 8)
        word = nodes[j] | (nodes[j + 1] << splat(8, "int16", 32))
        shift = (shift + (1 << 15)) % (1 << 16) - (1 << 15)
        halves.append(bind(word + splat(shift, "int16", 32)))
    for high in (0, 1):
        lanes = [
            i
            for part in range(4)
            for k in range(4)
            for i in (8 * part + 4 * high + k, 32 + 8 * part + 4 * high + k)
        ]
        group = bind(pair * 2 + high)
        index = (group * (codes.codebooks // 4) + i64(quad)) * 64
        codes.view.store(index, reinterpret("uint8x64", shuffle(halves, lanes)), 64)
