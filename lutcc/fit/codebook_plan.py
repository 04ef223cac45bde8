"""How many codebooks or scales, of how many bits, a compression goal pays for (equation 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lutcc.codebook_options import MODES
from lutcc.codebook_weights import REFERENCE_BITS, Footprint
from lutcc.errors import InputError
from lutcc.ir.codebooks import BITS, SEGMENT_MULTIPLE, packed_columns, segments
from lutcc.lookup_options import check_name

#: A goal that is missed by more than this, on the better side, is worth a note.
SLACK = 1.02


@dataclass(frozen=True, slots=True)
class CodebookPlan:
    """What a matrix is written with.

    Attributes
    ----------
    bits
        Of an index.
    codebooks, scales
        How many of each; a single scale takes no bits.
    segment_size
        Columns of a region where there are more regions than rows, else 0.
    footprint
        Bits as stored, what was set aside for the order and for outliers included.
    note
        Where the goal is not met in the expected way: what happened instead; else None.
    """

    bits: int
    codebooks: int
    scales: int
    segment_size: int
    footprint: Footprint
    note: str | None = None

    @property
    def regions(self) -> int:
        """Return how many parts the matrix has."""
        return max(self.codebooks, self.scales)

    @property
    def alpha(self) -> float:
        """Return the compression, as stored."""
        return self.footprint.alpha


def plan_codebooks(
    alpha: float,
    rows: int,
    columns: int,
    mode: str = "codebooks",
    *,
    order_bits: int = 0,
    outlier_bits: int = 0,
) -> CodebookPlan:
    """Return the plan for (``rows``, ``columns``) weights that reaches ``alpha``.

    Parameters
    ----------
    alpha
        The goal, at least; see :class:`lutcc.codebook_options.CodebookOptions`.
    mode
        "codebooks" or "scales".
    order_bits, outlier_bits
        What the order of the rows and the outliers take of the budget.

    Raises
    ------
    InputError
        If the matrix cannot be compressed that far; the message says how far it can be.

    Notes
    -----
    Source: JLCM, equation 3 with ``2**floor(16 / alpha)`` values, 16 bits each. Equation 3 leaves
    out that rows of indices end at whole bytes; here everything counts as stored, and where that
    leaves no codebook, indices take one bit less.

    Examples
    --------
    >>> plan = plan_codebooks(7.5, 384, 384)
    >>> plan.bits, plan.codebooks, round(plan.alpha, 2)
    (2, 307, 7.5)
    """
    check_name("plan_codebooks", "mode", mode, MODES)
    wanted = min(max(math.floor(REFERENCE_BITS / alpha), BITS[0]), BITS[-1])
    for bits in range(wanted, BITS[0] - 1, -1):
        plan = _plan(alpha, rows, columns, mode, bits, order_bits, outlier_bits)
        if plan is None:
            continue
        note = None
        if bits < wanted:
            reached = _footprint(rows, columns, wanted, 1, 1, order_bits, outlier_bits).alpha
            note = (
                f"alpha={alpha:g} is met with {bits} bits a weight; {wanted} bits reach "
                f"{_down(reached)} at most"
            )
        elif plan.alpha > alpha * SLACK:
            note = (
                f"alpha={alpha:g} allows more than {bits} bits and {plan.regions} regions can "
                f"use: {plan.alpha:.2f} is reached"
            )
        return CodebookPlan(
            plan.bits, plan.codebooks, plan.scales, plan.segment_size, plan.footprint, note
        )
    most = _footprint(rows, columns, BITS[0], 1, 1, order_bits, outlier_bits).alpha
    extra = " and the outliers" if outlier_bits else ""
    raise InputError(
        f"alpha={alpha:g} is out of reach for {rows} x {columns} weights: {BITS[0]} bits a weight, "
        f"one codebook{extra} reach {_down(most)}",
        where="WeightCodebooks",
        fix="leave this layer as it is"
        if most <= 1
        else f"use alpha <= {_down(most)}"
        f"{', or fewer outliers' if outlier_bits else ''}, or leave this layer as it is",
    )


def _plan(
    alpha: float,
    rows: int,
    columns: int,
    mode: str,
    bits: int,
    order_bits: int,
    outlier_bits: int,
) -> CodebookPlan | None:
    """Return the plan of so many bits an index; None if that does not reach ``alpha``."""
    single = _footprint(rows, columns, bits, 1, 1, order_bits, outlier_bits)
    rest = math.floor(REFERENCE_BITS * rows * columns / alpha) - single.bits
    if rest < 0:
        return None
    values = 2**bits
    if mode == "codebooks":
        count, useful = 1 + rest // (REFERENCE_BITS * values), rows * columns // (2 * values)
    else:
        count, useful = rest // REFERENCE_BITS, rows * columns // 2
    regions, size = _regions(max(1, min(count, useful)), rows, columns)
    books, scales = (regions, 1) if mode == "codebooks" else (1, regions)
    footprint = _footprint(rows, columns, bits, books, scales, order_bits, outlier_bits)
    return CodebookPlan(bits, books, scales, size, footprint)


def _regions(count: int, rows: int, columns: int) -> tuple[int, int]:
    """Return how many regions, ``count`` at most, there are, and the columns of a segment or 0."""
    if count <= rows:
        return count, 0
    each = -(-columns // (count // rows))
    size = -(-each // SEGMENT_MULTIPLE) * SEGMENT_MULTIPLE
    if size >= columns:
        return rows, 0
    return rows * segments(count, rows, columns, size), size


def _footprint(
    rows: int,
    columns: int,
    bits: int,
    codebooks: int,
    scales: int,
    order_bits: int,
    outlier_bits: int,
) -> Footprint:
    return Footprint(
        weights=rows * columns,
        indices=8 * rows * packed_columns(columns, bits),
        codebooks=REFERENCE_BITS * 2**bits * codebooks,
        scales=REFERENCE_BITS * scales if scales > 1 else 0,
        order=order_bits,
        outliers=outlier_bits,
    )


def _down(value: float) -> float:
    """Round down to what can be asked for."""
    return math.floor(value * 100) / 100
