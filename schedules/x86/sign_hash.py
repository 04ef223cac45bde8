"""``sign_hash``: one row at a time, lanes are tables.

The T columns of 16 tables are transposed, so that bit t of 16 codes, and one factor of 16 scores,
take one vector each. Work: per element of z one exponential (about 15 vector instructions, no
scalar ones) and 3 of a transpose; a few per cent of the projection that made z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lutcc.ir.module import Operation
from lutcc.schedules.intrinsics.polynomials import LOG2_E
from lutcc.schedules.x86.context import Row
from lutcc.schedules.x86.emit import (
    LANES,
    Expr,
    bind,
    equal,
    fma,
    i64,
    local,
    loop,
    reinterpret,
    select,
    splat,
    transpose16,
)
from lutcc.schedules.x86.exponential import exp2
from lutcc.schedules.x86.pack import round_up

_LARGEST = 0x7FFFFFFF


@dataclass(frozen=True)
class Found:
    """Codes and scores of 16 tables from ``first`` on, a vector for each neighbour.

    In the last 16, lanes past the last table hold values without meaning.
    """

    first: Expr
    codes: list[Expr]
    scores: list[Expr]


def slack(op: Operation) -> int:
    """Return how many columns past its end a row of z must have, for loads of whole tiles."""
    length = int(op.attr("code_length"))  # type: ignore[arg-type]
    tables = op.operands[0].type.size(1) // length
    return (round_up(tables, LANES) - tables) * length + 4


def emit_row(op: Operation, source: Row, put: Callable[[Found], None]) -> None:
    """Hash one contiguous row; ``put`` takes the results of 16 tables at a time."""
    length = int(op.attr("code_length"))  # type: ignore[arg-type]
    neighbors = int(op.attr("neighbors"))  # type: ignore[arg-type]
    variant = str(op.attr("variant"))
    tables = op.operands[0].type.size(1) // length
    with loop(round_up(tables, LANES) // LANES) as k:
        first = bind(k * LANES)
        base = bind(first * length)
        columns = transpose16(
            lambda row, q: source.view.load(base + (row * length + 4 * q), 4), -(-length // 4)
        )[:length]
        zero = splat(0, "int32")
        code = zero
        for t, value in enumerate(columns):
            bit = select(value > splat(0.0), splat(1 << t, "int32"), zero)
            code = bind(code + bit)
        put(_weighed(first, code, columns, variant, neighbors))


def _weighed(first: Expr, code: Expr, columns: list[Expr], variant: str, neighbors: int) -> Found:
    """Return codes and scores of all neighbours of the code of 16 tables."""
    if variant == "constant":
        return Found(first, [code], [splat(1.0)])
    magnitudes = [bind(_absolute(value)) for value in columns]
    total, product = splat(0.0), splat(1.0)
    for value in magnitudes:
        product = bind(fma(product, _decay(value), product))
        total = bind(total + value)
    weight = bind(splat(1.0) / product)
    gelu = variant == "gelu"
    codes, scores = [code], [total * weight if gelu else weight]
    for position, smallest in _smallest(magnitudes, neighbors - 1):
        codes.append(code ^ (splat(1, "int32") << position))
        score = weight * _decay(smallest)
        scores.append((total - smallest - smallest) * score if gelu else score)
    return Found(first, [bind(c) for c in codes], [bind(s) for s in scores])


def _absolute(value: Expr) -> Expr:
    return reinterpret("float32x16", reinterpret("int32x16", value) & splat(_LARGEST, "int32"))


def _decay(magnitude: Expr) -> Expr:
    """Return exp(-2 |z|), NaN for NaN; below 2**-126 it is 2**-126."""
    return exp2(bind(magnitude * splat(-2.0 * LOG2_E)), -126.0)


def _smallest(magnitudes: list[Expr], count: int) -> list[tuple[Expr, Expr]]:
    """Return (position, magnitude) of the smallest magnitudes, in order, lane by lane.

    Bits of non-negative floats compare as integers; NaN comes last, as in the definition.
    """
    if not count:
        return []
    keys = local(len(magnitudes) * LANES, "int32")
    for t, value in enumerate(magnitudes):
        keys.store(t * LANES, reinterpret("int32x16", value), LANES)
    found = []
    for _ in range(count):
        best, position = splat(_LARGEST, "int32"), splat(0, "int32")
        for t in range(len(magnitudes)):
            key = bind(keys.load(t * LANES, LANES))
            less = key < best
            position = bind(select(less, splat(t, "int32"), position))
            best = bind(select(less, key, best))
        for t in range(len(magnitudes)):
            taken = equal(position, splat(t, "int32"))
            key = keys.load(t * LANES, LANES)
            keys.store(t * LANES, select(taken, splat(_LARGEST, "int32"), key), LANES)
        found.append((position, bind(reinterpret("float32x16", best))))
    return found


def store(found: Found, codes: Row, scores: Row) -> None:
    """Store results in rows of ``[table][neighbour]``; they have room for 16 tables at the end."""
    neighbors = len(found.codes)
    if neighbors == 1:
        codes.view.store(found.first, found.codes[0], LANES)
        scores.view.store(found.first, found.scores[0], LANES)
        return
    for values, target in ((found.codes, codes), (found.scores, scores)):
        lanes = local(neighbors * LANES, target.dtype)
        for j, value in enumerate(values):
            lanes.store(j * LANES, value, LANES)
        with loop(LANES) as i:
            for j in range(neighbors):
                where = (i64(found.first) + i) * neighbors + j
                target.view.store(where, lanes.load(i + j * LANES))
