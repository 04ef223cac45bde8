"""``nearest_encode``: for 16 rows, the scores of 16 prototypes at once in 16 accumulators.

Work per row: C K S fused multiply-adds in all (S coordinates a codebook) = D K, that is K/2 the
FLOPs of one output column block: this encoder costs as much as a dense layer with K outputs.
"""

from __future__ import annotations

from lutcc.ir.module import Operation
from lutcc.schedules.x86.context import Codes, External, Row, StageContext
from lutcc.schedules.x86.emit import (
    Expr,
    View,
    bind,
    cast,
    const,
    fma,
    i64,
    local,
    loop,
    registers,
    select,
    splat,
)
from lutcc.schedules.x86.pack import round_up
from lutcc.schedules.x86.tree_encode import loaded_columns, store_codes

_TILE = 16


class _Tables:
    """Constants of one ``nearest_encode`` and where each codebook's part begins."""

    def __init__(self, ctx: StageContext, op: Operation, slots: list[int]) -> None:
        starts = list(op.attr("starts"))
        centroids, half_norms, columns = (ctx.ref(v) for v in op.operands[1:4])
        self.prototypes = op.operands[1].type.size(0)
        self.padded = round_up(self.prototypes, _TILE)
        self.starts = ctx.blob.add("ints", "int32", [], values=starts)
        self.columns = ctx.blob.add("columns", "int32", [columns], slots=slots)
        self.centroids = ctx.blob.add("centroids", "float32", [centroids], starts=starts)
        self.half_norms = ctx.blob.add("half_norms", "float32", [half_norms])


def _codes16(tables: _Tables, columns: View, codebook: Expr) -> Expr:
    """Return the codes of 16 rows for one codebook as int32x16."""
    first = bind(cast("int64", tables.starts.load(codebook)))
    last = bind(cast("int64", tables.starts.load(i64(codebook) + 1)))
    best = registers(1, "float32", 16)
    code = registers(1, "int32", 16)
    best.set(0, splat(float("inf")))
    code.set(0, splat(0, "int32"))
    score = registers(_TILE, "float32", 16)
    with loop(tables.padded // _TILE) as tile:
        for k in range(_TILE):
            norm = tables.half_norms.load(i64(codebook) * tables.padded + tile * _TILE + k)
            score.set(k, splat(norm))
        base = bind(first * tables.padded + tile * (last - first) * _TILE)
        with loop(last - first) as j:
            slot = cast("int64", tables.columns.load(first + j))
            value = bind(splat(0.0) - columns.load(slot * 16, 16))
            for k in range(_TILE):
                weight = splat(tables.centroids.load(base + j * _TILE + k))
                score.set(k, fma(value, weight, score.get(k)))
        for k in range(_TILE):
            closer = score.get(k) < best.get(0)
            index = splat(cast("int32", tile * _TILE + k), "int32")
            code.set(0, select(closer, index, code.get(0)))
            best.set(0, select(closer, score.get(k), best.get(0)))
    return code.get(0)


def emit_block(ctx: StageContext, op: Operation, target: Codes) -> None:
    """Encode a block into ``target``."""
    source = ctx.values[op.operands[0].name]
    columns = loaded_columns(ctx, source, ctx.array(op.operands[3]))
    tables = _Tables(ctx, op, columns.used.slots if columns else list(range(source.columns)))
    codebooks = len(op.attr("starts")) - 1
    with loop(ctx.groups) as group:
        at = columns.load(group) if columns else source.view.at(source.index(group, 0))
        if target.dot:
            found = local(4 * 16, "int32")
            with loop(target.codebooks // 4) as quad:
                with loop(4) as j:
                    codes = _clamped_codes(tables, at, bind(quad * 4 + j), codebooks)
                    found.store(j * 16, codes, 16)
                store_codes(target, group, quad, [found.load(j * 16, 16) for j in range(4)])
        else:
            with loop(codebooks) as c:
                store_codes(target, group, c, [_codes16(tables, at, c)])


def _clamped_codes(tables: _Tables, columns: View, codebook: Expr, codebooks: int) -> Expr:
    """Codes of a codebook; padding codebooks (whose tables are zero) repeat the last one."""
    real = bind(select(codebook < i64(codebooks), codebook, i64(codebooks - 1)))
    return _codes16(tables, columns, real)


def emit_row(ctx: StageContext, op: Operation, row: Expr, target: Row) -> None:
    """Encode one row into ``target`` (uint8): lanes are prototypes."""
    source = ctx.values[op.operands[0].name]
    columns = op.operands[0].type.size(1)
    tables = _Tables(ctx, op, list(range(columns)))
    codebooks = len(op.attr("starts")) - 1
    with loop(codebooks) as c:
        first = bind(cast("int64", tables.starts.load(c)))
        last = bind(cast("int64", tables.starts.load(c + 1)))
        best = local(1, "float32")
        code = local(1, "int32")
        best.store(0, const(float("inf"), "float32"))
        code.store(0, const(0, "int32"))
        score = registers(1, "float32", 16)
        lanes = local(16, "float32")
        with loop(tables.padded // _TILE) as tile:
            score.set(0, tables.half_norms.load(c * tables.padded + tile * _TILE, 16))
            base = bind(first * tables.padded + tile * (last - first) * _TILE)
            with loop(last - first) as j:
                column = cast("int64", tables.columns.load(first + j))
                if isinstance(source, External):
                    value = source.view.load(source.index(row, column))
                else:
                    value = source.view.load(column)
                weights = tables.centroids.load(base + j * _TILE, 16)
                score.set(0, fma(splat(0.0) - splat(value), weights, score.get(0)))
            lanes.store(0, score.get(0), 16)
            with loop(_TILE) as k:
                value = bind(lanes.load(k))
                closer = bind(value < best.load(0))
                code.store(0, select(closer, cast("int32", tile * _TILE + k), code.load(0)))
                best.store(0, select(closer, value, best.load(0)))
        target.view.store(c, cast("uint8", code.load(0)))
