"""Schedules around the products: softmax and norms, elementwise ops, reductions."""

from __future__ import annotations

from typing import Any

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.frontend.relax.product import is_intermediate, is_reduction
from lutcc.schedules.space import Config, Knob, Space

_MIN_LANES = 4
_LANES = (4, 8, 16, 32, 64, 128)


def rows_space(isa: str) -> Space:
    """Return the configs of :func:`schedule_rows`.

    ``rows.reduce``: partial results of a reduction. ``rows.map``: elements of an elementwise block
    that are done together.
    """
    lanes = 8 if isa == "avx2" else 16
    knobs = (Knob("rows.reduce", _LANES), Knob("rows.map", _LANES))
    return Space(knobs, {"rows.reduce": lanes, "rows.map": lanes})


def blocks_space(isa: str) -> Space:
    """Return the configs of :func:`schedule_each_block`.

    ``loops.lanes``: elements that are done together.
    """
    lanes = 8 if isa == "avx2" else 16
    return Space((Knob("loops.lanes", _LANES),), {"loops.lanes": lanes})


def schedule_rows(func: Any, isa: str, config: Config) -> Any | None:
    """Schedule a chain of row-wise reductions and elementwise blocks (softmax), or return None.

    One loop runs over the rows, in parallel, and everything happens inside it, so that a row stays
    in cache. Reductions keep partial results and add these up at the end; elementwise blocks are
    vectorised.

    Examples
    --------
    >>> function = schedule_rows(module["softmax"], "avx2", rows_space("avx2").default)
    """
    reduce, lanes = int(config["rows.reduce"]), int(config["rows.map"])
    import_tvm()
    from tvm import s_tir
    from tvm.s_tir.dlight.analysis import normalize_prim_func

    sch = s_tir.Schedule(func)
    infos = normalize_prim_func(sch)
    if infos is None:
        return None
    kinds = [info.dom_kind() for info in infos]
    if all("R" not in kind for kind in kinds) or any(
        not k or k.strip("SR") or "RS" in k for k in kinds
    ):
        return None
    leading = min(len(kind.rstrip("R")) for kind in kinds)
    if leading < 1 or not all(_rows_first(sch, info.block_rv, leading) for info in infos):
        return None
    blocks = _inline_trivial(sch, [info.block_rv for info in infos], leading)
    partials: list[Any] = []
    stages: list[Any] = []
    for block in blocks:
        partial = _keep_lanes(sch, block, reduce)
        if partial is not None:
            partials.append(partial)
            stages.append(partial)
        stages.append(block)
    rows = sch.get_loops(stages[-1])[:leading]
    row = sch.fuse(*rows) if leading > 1 else rows[0]
    sch.parallel(row)
    for block in reversed(stages[:-1]):
        sch.compute_at(block, row, preserve_unit_loops=True)
    for partial in partials:
        _vectorise_lanes(sch, partial)
    for block in stages:
        if not any(is_reduction(v) for v in sch.get(block).iter_vars):
            _vectorise(sch, block, lanes)
    return sch.mod["main"]


def schedule_each_block(func: Any, isa: str, config: Config) -> Any | None:
    """Schedule each spatial or reduction block as a parallel nest, vectorised at the end.

    Elementwise blocks are inlined into what reads them. Returns None if ``func`` holds a block of
    another kind (opaque, scan).

    Examples
    --------
    >>> function = schedule_each_block(module["max_pool2d"], "avx2", blocks_space("avx2").default)
    """
    lanes = int(config["loops.lanes"])
    import_tvm()
    from tvm import s_tir
    from tvm.s_tir.dlight.analysis import normalize_prim_func

    sch = s_tir.Schedule(func)
    infos = normalize_prim_func(sch)
    if infos is None:
        return None
    for info in infos:
        kind = info.dom_kind()
        if kind.strip("SR"):
            return None
    for info in infos[:-1]:
        if info.is_injective():
            _try_inline(sch, info.block_rv)
    root = sch.get_sblock("root")
    for block in sch.get_child_blocks(root):
        _schedule_block(sch, block, lanes)
    return sch.mod["main"]


def _schedule_block(sch: Any, block: Any, lanes: int) -> None:
    loops = sch.get_loops(block)
    if not loops:
        return
    kinds = [is_reduction(var) for var in sch.get(block).iter_vars]
    spatial = [loop for loop, reduce in zip(loops, kinds, strict=True) if not reduce]
    reduction = [loop for loop, reduce in zip(loops, kinds, strict=True) if reduce]
    if not spatial:
        return
    inner = spatial[-1]
    outer = spatial[:-1]
    if reduction:
        sch.reorder(*outer, *reduction, inner)
    width = _extent(sch, inner)
    vector = None
    if width is not None and (width % lanes == 0 or width in (2, 4, 8)):
        if width > lanes:
            inner, vector = sch.split(inner, [None, lanes])
        else:
            inner, vector = None, inner
        if reduction and inner is not None:
            sch.reorder(inner, *reduction, vector)
            outer.append(inner)
    fused = (sch.fuse(*outer) if len(outer) > 1 else outer[0]) if outer else None
    if (
        fused is None
        and inner is not None
        and vector is None
        and not reduction
        and width is not None
        and width >= 4096
    ):
        fused, _ = sch.split(inner, [None, 1024])
    if fused is not None:
        sch.parallel(fused)
    if vector is not None:
        sch.vectorize(vector)
    if reduction:
        init = sch.decompose_reduction(block, reduction[0])
        if vector is not None:
            sch.vectorize(sch.get_loops(init)[-1])


def _inline_trivial(sch: Any, blocks: list[Any], leading: int) -> list[Any]:
    """Inline elementwise blocks with one reader or one element per row; return the rest."""
    kept = []
    for block in blocks[:-1]:
        statement = sch.get(block)
        spatial = not any(is_reduction(v) for v in statement.iter_vars)
        per_row = len(statement.iter_vars) <= leading
        if spatial and (per_row or len(sch.get_consumers(block)) == 1) and _try_inline(sch, block):
            continue
        kept.append(block)
    return [*kept, blocks[-1]]


def _try_inline(sch: Any, block: Any) -> bool:
    from tvm.s_tir import ScheduleError

    try:
        sch.compute_inline(block)
    except ScheduleError:
        return False
    return True


def _keep_lanes(sch: Any, block: Any, lanes: int) -> Any | None:
    """Cut a reduction in two, and return its first part, with a result per lane, if it pays."""
    if not any(is_reduction(v) for v in sch.get(block).iter_vars):
        return None
    loop = sch.get_loops(block)[-1]
    extent = _extent(sch, loop)
    width = lanes
    while extent is not None and extent % width:
        width //= 2
    if extent is None or width < _MIN_LANES or extent < 2 * width:
        return None
    _, lane = sch.split(loop, [None, width])
    return sch.rfactor(lane, factor_axis=len(sch.get(block).writes[0].region))


def _vectorise_lanes(sch: Any, partial: Any) -> None:
    """Move the lanes of a partial reduction, which stands in the row loop, innermost."""
    variables = sch.get(partial).iter_vars
    loops = sch.get_loops(partial)[-len(variables) :]
    reduction = [loop for loop, v in zip(loops, variables, strict=True) if is_reduction(v)]
    lane = loops[0]
    sch.reorder(*reduction, lane)
    sch.vectorize(lane)
    init = sch.decompose_reduction(partial, reduction[0])
    sch.vectorize(sch.get_loops(init)[-1])


def _vectorise(sch: Any, block: Any, lanes: int) -> None:
    loops = sch.get_loops(block)
    extent = _extent(sch, loops[-1])
    if extent is None or len(loops) < 2:
        return
    if extent % lanes == 0:
        if extent > lanes:
            _, vector = sch.split(loops[-1], [None, lanes])
            sch.vectorize(vector)
        else:
            sch.vectorize(loops[-1])


def _rows_first(sch: Any, block: Any, leading: int) -> bool:
    """Tell whether the leading indices of a block's buffers are those of its row loops."""
    statement = sch.get(block)
    rows = [v.var for v in statement.iter_vars[:leading]]
    reduces = any(is_reduction(v) for v in statement.iter_vars)
    for region in (*statement.reads, *statement.writes):
        indices = [r.min for r in region.region]
        if not (reduces or is_intermediate(sch, region.source)):
            continue  # such as a layer norm's weight
        if len(indices) < leading or not all(
            i.same_as(v) for i, v in zip(indices, rows, strict=False)
        ):
            return False
    return True


def _extent(sch: Any, loop: Any) -> int | None:
    extent = sch.get(loop).extent
    value = getattr(extent, "value", None)
    return int(value) if value is not None else None
