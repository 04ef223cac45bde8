"""Default schedule for ``C[s, i, j] += A[s, i, k] * B[s, k, j]`` in any layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lutcc.codegen.tvm_setup import import_tvm


@dataclass(frozen=True, slots=True)
class MatmulConfig:
    """Register tile of the product: ``rows`` x (``vectors`` * ``lanes``) accumulators.

    Attributes
    ----------
    lanes
        float32 elements of one vector register.
    rows
        Rows of A per tile; their elements are broadcast.
    vectors
        Vectors of columns of B per tile.
    """

    lanes: int
    rows: int
    vectors: int


def default_config(isa: str) -> MatmulConfig:
    """Return the hand-picked tile: 12 of AVX2's 16 registers as accumulators, 16 of AVX-512's 32.

    Examples
    --------
    >>> default_config("avx2")
    MatmulConfig(lanes=8, rows=6, vectors=2)
    """
    return MatmulConfig(8, 6, 2) if isa == "avx2" else MatmulConfig(16, 8, 2)


def schedule_matmul(func: Any, config: MatmulConfig) -> Any | None:
    """Schedule a matmul-like PrimFunc, or return None if ``func`` is none.

    Columns of B are packed into panels of one tile's width, once per panel and batch item, so that
    the inner loop reads them in order whatever B's layout is. A is read in place, or copied with
    padding where its rows do not fill the tiles. Sizes may be symbolic. Consumers (bias, scale,
    residual) run on the tile while it is in registers.

    Examples
    --------
    >>> schedule = schedule_matmul(module["matmul"], default_config("avx512"))
    """
    import_tvm()
    from tvm import s_tir
    from tvm.s_tir.dlight.gpu.matmul import get_reduction_blocks

    sch = s_tir.Schedule(func)
    root = sch.get_sblock("root")
    blocks = sch.get_child_blocks(root)
    reductions = get_reduction_blocks(sch, blocks)
    if not reductions or not _multiplies(sch.get(reductions[0])):
        return None
    main = reductions[0]
    if not _normalise(sch, main):
        return None
    return _tile(sch, main, config)


def _multiplies(block: Any) -> bool:
    """Tell whether the block's body is ``C = C + A * B`` in float32."""
    from tvm import tirx

    store = block.body
    if not isinstance(store, tirx.BufferStore) or not isinstance(store.value, tirx.Add):
        return False
    product = store.value.b
    if str(store.buffer.dtype) != "float32" or not isinstance(product, tirx.Mul):
        return False
    return all(_is_float32_load(side) for side in (product.a, product.b))


def _is_float32_load(expr: Any) -> bool:
    from tvm.ir import TensorLoad

    return isinstance(expr, TensorLoad) and str(expr.source.dtype) == "float32"


def _normalise(sch: Any, main: Any) -> bool:
    """Bring the block to operands (s, i, k) and (s, k, j), result (s, i, j), if it can."""
    from tvm.s_tir.dlight.gpu.matmul import IterKind, detect_iter_traits, make_iter_fusion_index_map

    traits = detect_iter_traits(sch.get(main))
    if traits is None:
        return False
    s, i, j, k = IterKind.kIter_S, IterKind.kIter_I, IterKind.kIter_J, IterKind.kIter_K
    a, b, c, whole = traits
    maps = [
        make_iter_fusion_index_map(t, o)
        for t, o in ((a, [s, i, k]), (b, [s, k, j]), (c, [s, i, j]))
    ]
    for (kind, index), index_map in zip(
        (("read", 0), ("read", 1), ("write", 0)), maps, strict=True
    ):
        copy = sch.reindex(main, (kind, index))
        sch.transform_layout(copy, ("read" if kind == "write" else "write", 0), index_map)
    sch.transform_block_layout(main, make_iter_fusion_index_map(whole, [s, i, j, k]))
    return True


def _tile(sch: Any, main: Any, config: MatmulConfig) -> Any:
    from tvm import tirx

    width = config.lanes * config.vectors
    sch.pad_einsum(main, [1, config.rows, width, 1])
    copies = [_inlined_producer(sch, main, operand) for operand in (0, 1)]
    copy_a, copy_b = copies
    result = _inlined_consumers(sch, main)
    sch.transform_layout(
        main, ("read", 1), lambda s, k, j: (s, tirx.floordiv(j, width), k, tirx.floormod(j, width))
    )
    batch, i, j, k = sch.get_loops(main)
    tiles, row = sch.split(i, [None, config.rows])
    panels, vector, lane = sch.split(j, [None, config.vectors, config.lanes])
    sch.reorder(batch, panels, tiles, k, row, vector, lane)
    sch.set_scope(main, 0, "local")
    if "pad" in sch.get(copy_a).name_hint:
        sch.compute_at(copy_a, tiles, preserve_unit_loops=True)
        _vectorise_last(sch, copy_a, config.lanes)
    else:
        sch.compute_inline(copy_a)
    sch.reverse_compute_at(result, tiles, preserve_unit_loops=True)
    _vectorise_last(sch, result, config.lanes)
    panel = sch.fuse(batch, panels)
    sch.compute_at(copy_b, panel, preserve_unit_loops=True)
    sch.parallel(panel)
    depth, column = _panel_loops(sch, copy_b)
    sch.reorder(depth, column)
    sch.vectorize(column)
    sch.vectorize(lane)
    sch.unroll(vector)
    sch.unroll(row)
    init = sch.decompose_reduction(main, k)
    *_, init_row, init_vector, init_lane = sch.get_loops(init)
    sch.vectorize(init_lane)
    sch.unroll(init_vector)
    sch.unroll(init_row)
    return sch


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
