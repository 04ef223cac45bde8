"""Find the product in a loop nest: ``C[s, i, j] += A[s, i, k] * B[s, k, j]`` in any layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lutcc.codegen.tvm_setup import import_tvm


@dataclass(frozen=True)
class Product:
    """Sizes and layout of a product; a size that is symbolic is None.

    Attributes
    ----------
    batch, i, j, k
        Sizes of the axes s (in A, B and C), i (in A and C), j (in B and C) and k (summed).
    i_extent
        TVM's expression of ``i``.
    b_columns, b_depth
        Whether the columns of B (j), or the terms of a sum (k), lie side by side in memory.
    a_depth
        Whether the terms of a sum lie side by side in A.
    """

    batch: int | None
    i: int | None
    j: int | None
    k: int | None
    i_extent: Any
    b_columns: bool
    b_depth: bool
    a_depth: bool


def find_product(func: Any) -> Product | None:
    """Return the product that a PrimFunc computes, or None if it is another kind of loop nest.

    Examples
    --------
    >>> find_product(module["matmul"]).k
    768
    """
    import_tvm()
    from tvm import s_tir

    sch = s_tir.Schedule(func)
    main = product_block(sch)
    if main is None:
        return None
    block = sch.get(main)
    traits = _traits(block)
    if traits is None:
        return None
    batch, i, j, k = (_extent(block, traits, kind) for kind in _kinds())
    a, b = block.reads
    _, _, column, depth = _kinds()
    return Product(
        _constant(batch),
        _constant(i),
        _constant(j),
        _constant(k),
        i,
        _side_by_side(sch, b, traits, column),
        _side_by_side(sch, b, traits, depth),
        _side_by_side(sch, a, traits, depth),
    )


def product_block(sch: Any) -> Any | None:
    """Return the block ``C = C + A * B`` in float32 of a schedule, if its function has one."""
    from tvm.s_tir.dlight.gpu.matmul import get_reduction_blocks

    reductions = get_reduction_blocks(sch, sch.get_child_blocks(sch.get_sblock("root")))
    return reductions[0] if reductions and _multiplies(sch.get(reductions[0])) else None


def normalise(sch: Any, main: Any) -> None:
    """Bring the block to operands (s, i, k) and (s, k, j), result (s, i, j), copies around it."""
    from tvm.s_tir.dlight.gpu.matmul import make_iter_fusion_index_map

    block = sch.get(main)
    traits = _traits(block)
    assert traits is not None, "find_product looks first"
    s, i, j, k = _kinds()
    of = {
        name: [traits[v.var] for v in block.iter_vars if v.var in axes]
        for name, axes in _axes(block).items()
    }
    maps = [
        make_iter_fusion_index_map(of[name], order)
        for name, order in (("a", [s, i, k]), ("b", [s, k, j]), ("c", [s, i, j]))
    ]
    whole = make_iter_fusion_index_map([traits[v.var] for v in block.iter_vars], [s, i, j, k])
    sides = (("read", 0), ("read", 1), ("write", 0))
    for (kind, index), index_map in zip(sides, maps, strict=True):
        copy = sch.reindex(main, (kind, index))
        sch.transform_layout(copy, ("read" if kind == "write" else "write", 0), index_map)
    sch.transform_block_layout(main, whole)


def _kinds() -> tuple[Any, Any, Any, Any]:
    from tvm.s_tir.dlight.gpu.matmul import IterKind

    return IterKind.kIter_S, IterKind.kIter_I, IterKind.kIter_J, IterKind.kIter_K


def _multiplies(block: Any) -> bool:
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


def _axes(block: Any) -> dict[str, set[Any]]:
    """Return the variables in the indices of A, B and C."""
    from tvm.tirx.analysis import undefined_vars

    def variables(region: Any) -> set[Any]:
        return {v for r in region.region for v in undefined_vars(r.min)}

    return {
        "a": variables(block.reads[0]),
        "b": variables(block.reads[1]),
        "c": variables(block.writes[0]),
    }


def _traits(block: Any) -> dict[Any, Any] | None:
    """Return which axis each variable of the block belongs to; those of extent 1 to none.

    None if the block is no product of at least two terms and columns.
    """
    from tvm.s_tir.dlight.gpu.matmul import IterKind, IterTrait

    if len(block.reads) != 2 or len(block.writes) != 1:
        return None
    if any(_constant(r.extent) != 1 for x in (*block.reads, *block.writes) for r in x.region):
        return None
    axes = _axes(block)
    s, i, j, k = _kinds()
    by_place = {(1, 1, 1): s, (1, 0, 1): i, (0, 1, 1): j, (1, 1, 0): k}
    traits = {}
    for iter_var in block.iter_vars:
        in_a, in_b, in_c = (int(iter_var.var in axes[x]) for x in "abc")
        kind = by_place.get((in_a, in_b, in_c))
        if _constant(iter_var.dom.extent) == 1:
            kind = IterKind.kIter_T
        elif kind is None or (kind == k) != is_reduction(iter_var):
            return None
        traits[iter_var.var] = IterTrait(kind, iter_var.dom.extent)
    found = {trait.kind for trait in traits.values()}
    return traits if k in found and j in found else None


def _extent(block: Any, traits: dict[Any, Any], kind: Any) -> Any:
    from tvm import tirx

    extent: Any = tirx.IntImm("int64", 1)
    for iter_var in block.iter_vars:
        if traits[iter_var.var].kind == kind:
            extent = extent * iter_var.dom.extent
    return extent


def _side_by_side(sch: Any, region: Any, traits: dict[Any, Any], kind: Any) -> bool:
    """Tell whether an operand is read in place, with the one variable of a kind last."""
    from tvm.tirx.analysis import undefined_vars

    of_kind = [v for v, trait in traits.items() if trait.kind == kind]
    *others, last = [r.min for r in region.region]
    if len(of_kind) != 1 or not last.same_as(of_kind[0]) or is_intermediate(sch, region.source):
        return False
    return all(of_kind[0] not in undefined_vars(index) for index in others)


def is_intermediate(sch: Any, buffer: Any) -> bool:
    """Tell whether a buffer is neither a parameter nor a result of the function."""
    root = sch.get(sch.get_sblock("root"))
    return any(buffer.same_as(b) for b in root.alloc_buffers)


def is_reduction(iter_var: Any) -> bool:
    """Tell whether a block sums (or takes the maximum, ...) over one of its variables."""
    from tvm import tirx

    return iter_var.iter_type == tirx.IterVar.CommReduce


def _constant(expr: Any) -> int | None:
    value = getattr(expr, "value", None)
    return None if value is None else int(value)
