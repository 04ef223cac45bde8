"""Products with a transposed second operand, read as it lies in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lutcc.codegen.tvm_setup import import_tvm


def absorb_transposes(module: Any) -> Any:
    """Replace ``matmul(a, transpose(b))`` by one loop nest that reads ``b`` itself.

    torch stores the weights of a linear layer, and attention its keys, as rows that are to be
    multiplied; a transposed copy would cost more than the product at small batches. A reshape of
    the leading axes may stand between the two. Only float32, and only if the copy has no other use
    does it go away.

    Examples
    --------
    >>> module = absorb_transposes(program.module)
    """
    import_tvm()
    from tvm import relax
    from tvm.relax.expr_functor import PyExprMutator, mutator

    @mutator
    class Absorb(PyExprMutator):
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if not _is(call, "relax.matmul"):
                return call
            a, b = call.args
            source = _transposed(self.builder_, b)
            if source is None or not _fits(a, b):
                return call
            *batch, k, j = _shape(b)
            shape = [*batch, j, k]
            if len(_shape(source)) != len(shape):
                source = self.builder_.emit(relax.op.reshape(source, shape))
            return self.builder_.call_te(_product, a, source, primfunc_name_hint="matmul_nt")

    functions = [(s, f) for s, f in module.functions_items() if isinstance(f, relax.Function)]
    for symbol, function in functions:
        rewriter = Absorb(module)
        rewritten = rewriter.visit_expr(function)
        module = rewriter.builder_.get()
        module[symbol] = rewritten
    return module


def _is(expr: Any, op: str) -> bool:
    return getattr(getattr(expr, "op", None), "name", None) == op


def _transposed(builder: Any, operand: Any) -> Any | None:
    """Return what ``operand`` is the transpose of: its last two axes swapped."""
    from tvm import relax

    if not isinstance(operand, relax.Var):
        return None
    value = builder.lookup_binding(operand)
    if _is(value, "relax.reshape") and isinstance(value.args[0], relax.Var):
        before = value.args[0]
        if not _same(_shape(before)[-2:], _shape(operand)[-2:]):
            return None
        value = builder.lookup_binding(before)
    if not _is(value, "relax.permute_dims"):
        return None
    rank = len(_shape(value))
    axes = value.attrs.axes
    order = [int(axis) for axis in axes] if axes is not None else [*range(rank)][::-1]
    swapped = [*range(rank - 2), rank - 1, rank - 2]
    return value.args[0] if order == swapped else None


def _fits(a: Any, b: Any) -> bool:
    """Tell whether both are float32 and the batch axes are the same, or B has none."""
    if any(str(x.ty.dtype.dtype) != "float32" for x in (a, b)):
        return False
    batch = _shape(b)[:-2]
    return len(_shape(a)) >= 2 and (not batch or _same(_shape(a)[:-2], batch))


def _shape(value: Any) -> list[Any]:
    return list(value.ty.shape)


def _same(left: Sequence[Any], right: Sequence[Any]) -> bool:
    from tvm.sym import Analyzer

    analyzer = Analyzer()
    pairs = zip(left, right, strict=False)
    return len(left) == len(right) and all(analyzer.can_prove_equal(x, y) for x, y in pairs)


def _product(a: Any, b: Any) -> Any:
    from tvm import te

    k = te.reduce_axis((0, a.shape[-1]), name="k")

    def element(*index: Any) -> Any:
        *rows, i, j = index
        return te.sum(a(*rows, i, k) * b(*rows[: len(b.shape) - 2], j, k), axis=k)

    return te.compute([*a.shape[:-1], b.shape[-2]], element, name="matmul")
