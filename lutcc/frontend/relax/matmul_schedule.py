"""Schedules for products: four ways to read B, each with a register tile of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.frontend.relax.product import normalise, product_block


@dataclass(frozen=True, slots=True)
class MatmulConfig:
    """How a product is computed.

    Attributes
    ----------
    pack
        ``panels``: columns of B are packed into panels as wide as a tile, so that the inner loop
        reads them in order whatever B's layout is. ``none``: the tile reads B's rows in place.
        ``stream``: B is read once, row by row, and added to results in cache: for few rows of A.
        ``dot``: sums run along vectors of k: for a B that is stored transposed.
    lanes
        float32 elements of one vector register.
    rows
        Rows of A per tile (not ``stream``).
    vectors
        Accumulators per row of the tile: vectors of columns, or (``dot``) columns.
    order
        ``panels``: all rows of A for one panel of B, then the next; ``tiles``: all of B for one
        tile of rows, then the next. (``none``, ``dot``)
    group
        Panels packed together; a tile's rows of A are read once for all of them. (``panels``)
    columns
        Columns of B done together. (``stream``)
    unroll
        Rows of B added per pass over the results. (``stream``)
    """

    pack: str
    lanes: int
    rows: int = 1
    vectors: int = 1
    order: str = "panels"
    group: int = 1
    columns: int = 0
    unroll: int = 1


def schedule_matmul(func: Any, config: MatmulConfig) -> Any:
    """Return the schedule of a PrimFunc in which :func:`find_product` found a product.

    Sizes may be symbolic. A is read in place, or copied with padding where its rows do not fill the
    tiles. Consumers (bias, scale, residual) run on the tile while it is in registers.

    Raises
    ------
    tvm.s_tir.ScheduleError
        If a primitive refuses the loop nest.

    Examples
    --------
    >>> schedule = schedule_matmul(module["matmul"], MatmulConfig("panels", 16, 8, 2))
    """
    import_tvm()
    from tvm import s_tir

    sch = s_tir.Schedule(func)
    main = product_block(sch)
    normalise(sch, main)
    ways = {"panels": _panels, "none": _in_place, "stream": _stream, "dot": _dot}
    ways[config.pack](sch, main, config)
    return sch


def _panels(sch: Any, main: Any, config: MatmulConfig) -> None:
    from tvm import tirx

    width = config.lanes * config.vectors
    sch.pad_einsum(main, [1, config.rows, width, 1])
    copy_a, copy_b, result = _around(sch, main)
    sch.transform_layout(
        main, ("read", 1), lambda s, k, j: (s, tirx.floordiv(j, width), k, tirx.floormod(j, width))
    )
    batch, i, j, k = sch.get_loops(main)
    tiles, row = sch.split(i, [None, config.rows])
    groups, panel, vector, lane = sch.split(j, [None, config.group, config.vectors, config.lanes])
    sch.reorder(batch, groups, tiles, panel, k, row, vector, lane)
    _place_a(sch, copy_a, tiles, config.lanes)
    sch.reverse_compute_at(result, panel, preserve_unit_loops=True)
    _vectorise_last(sch, result, config.lanes)
    together = sch.fuse(batch, groups)
    sch.compute_at(copy_b, together, preserve_unit_loops=True)
    sch.parallel(together)
    depth, column = _panel_loops(sch, copy_b)
    packed, column = sch.split(column, [None, width])
    sch.reorder(packed, depth, column)
    sch.vectorize(column)
    _registers(sch, main, (row, vector), lane, k)


def _in_place(sch: Any, main: Any, config: MatmulConfig) -> None:
    sch.pad_einsum(main, [1, config.rows, 1, 1])
    copy_a, copy_b, result = _around(sch, main)
    sch.compute_inline(copy_b)
    batch, i, j, k = sch.get_loops(main)
    tiles, row = sch.split(i, [None, config.rows])
    panels, vector, lane = sch.split(j, [None, config.vectors, config.lanes])
    outer, inner = (panels, tiles) if config.order == "panels" else (tiles, panels)
    sch.reorder(batch, outer, inner, k, row, vector, lane)
    _place_a(sch, copy_a, tiles, config.lanes)
    sch.reverse_compute_at(result, inner, preserve_unit_loops=True)
    _vectorise_last(sch, result, config.lanes)
    sch.parallel(sch.fuse(batch, outer))
    _registers(sch, main, (row, vector), lane, k)


def _stream(sch: Any, main: Any, config: MatmulConfig) -> None:
    copy_a, copy_b, result = _around(sch, main)
    sch.compute_inline(copy_a)
    sch.compute_inline(copy_b)
    batch, i, j, k = sch.get_loops(main)
    blocks, vector, lane = sch.split(j, [None, config.columns // config.lanes, config.lanes])
    outer, inner = sch.split(k, [None, config.unroll])
    sch.reorder(batch, blocks, outer, vector, i, inner, lane)
    sch.reverse_compute_at(result, blocks, preserve_unit_loops=True)
    _vectorise_last(sch, result, config.lanes)
    sch.parallel(sch.fuse(batch, blocks))
    sch.vectorize(lane)
    sch.unroll(inner)
    init = sch.decompose_reduction(main, outer)
    sch.vectorize(sch.get_loops(init)[-1])


def _dot(sch: Any, main: Any, config: MatmulConfig) -> None:
    sch.pad_einsum(main, [1, config.rows, 1, 1])
    copy_a, copy_b, result = _around(sch, main)
    sch.compute_inline(copy_b)
    *_, k = sch.get_loops(main)
    _, lane = sch.split(k, [None, config.lanes])
    partial = sch.rfactor(lane, factor_axis=3)
    batch, i, j, lane = sch.get_loops(main)
    tiles, row = sch.split(i, [None, config.rows])
    panels, column = sch.split(j, [None, config.vectors])
    outer, inner = (panels, tiles) if config.order == "panels" else (tiles, panels)
    sch.reorder(batch, outer, inner, row, column, lane)
    sch.reverse_compute_at(result, inner, preserve_unit_loops=True)
    sch.compute_at(partial, inner, preserve_unit_loops=True)
    _place_a(sch, copy_a, tiles, config.lanes)
    sch.parallel(sch.fuse(batch, outer))
    sch.set_scope(main, 0, "local")
    for loop in (row, column, lane):
        sch.unroll(loop)
    # the partial sums of a tile: one vector per row and column
    lane, _, row, column, k = sch.get_loops(partial)[-5:]
    sch.reorder(k, row, column, lane)
    _registers(sch, partial, (row, column), lane, k)


def _around(sch: Any, main: Any) -> tuple[Any, Any, Any]:
    """Return the blocks that hand over A and B, and the one that takes the result."""
    copies = [_inlined_producer(sch, main, operand) for operand in (0, 1)]
    return copies[0], copies[1], _inlined_consumers(sch, main)


def _place_a(sch: Any, copy: Any, tiles: Any, lanes: int) -> None:
    """Read A in place, or copy it tile by tile where it is padded."""
    if "pad" in sch.get(copy).name_hint:
        sch.compute_at(copy, tiles, preserve_unit_loops=True)
        _vectorise_last(sch, copy, lanes)
    else:
        sch.compute_inline(copy)


def _registers(sch: Any, block: Any, tile: tuple[Any, Any], lane: Any, k: Any) -> None:
    """Keep the tile that ``block`` sums over ``k`` in registers, set to zero before."""
    sch.set_scope(block, 0, "local")
    sch.vectorize(lane)
    for loop in reversed(tile):
        sch.unroll(loop)
    init = sch.decompose_reduction(block, k)
    *_, row, vector, lane = sch.get_loops(init)
    sch.vectorize(lane)
    sch.unroll(vector)
    sch.unroll(row)


def _inlined_producer(sch: Any, main: Any, operand: int) -> Any:
    """Return the block that writes an operand of ``main``, with the copies before it inlined."""
    buffer = sch.get(main).reads[operand].source
    block = next(p for p in sch.get_producers(main) if sch.get(p).writes[0].source.same_as(buffer))
    while producers := sch.get_producers(block):
        sch.compute_inline(producers[0])
    return block


def _panel_loops(sch: Any, copy: Any) -> tuple[Any, Any]:
    """Return the loops over k and over the columns of the block that packs B's panels."""
    block = sch.get(copy)
    k = block.writes[0].region[2].min
    first, second = sch.get_loops(copy)[-2:]
    return (first, second) if block.iter_vars[-2].var.same_as(k) else (second, first)


def _inlined_consumers(sch: Any, main: Any) -> Any:
    """Return the block that copies ``main``'s tile out, with all that follows inlined into it."""
    (result, *_) = sch.get_consumers(main)
    while consumers := sch.get_consumers(result):
        if sch.get_consumers(consumers[0]):
            sch.compute_inline(consumers[0])
        else:
            sch.reverse_compute_inline(consumers[0])
    return result


def _vectorise_last(sch: Any, block: Any, lanes: int) -> None:
    *_, inner = sch.get_loops(block)
    _, lane = sch.split(inner, [None, lanes])
    sch.vectorize(lane)
