"""Loops run on several threads only where there is enough to do."""

from __future__ import annotations

from typing import Any

from lutcc.codegen.tvm_setup import import_tvm

WORTH = 250_000
"""Work (see below) from which a second thread is worth waking: some 20 microseconds, measured."""

# Work of a vector register: of an operation, of a store, of an exponential and its like.
_OPERATION, _STORE, _COSTLY = 1, 4, 80
_VECTOR_BYTES = 32
_COSTLY_CALLS = {f"tirx.{n}" for n in ("exp", "exp2", "tanh", "erf", "log", "pow", "sin", "cos")}
_LEAVES = ("TensorLoad", "Ramp", "IntImm", "FloatImm", "StringImm")
_FREE = ("Broadcast", "Cast")
_PARTS = ("a", "b", "value", "condition", "true_value", "false_value")


def choose_threads(function: Any, *, counted: bool) -> Any:
    """Return a lowered PrimFunc whose parallel loops have a serial twin, and a choice between them.

    Waking a thread costs microseconds, in which a small loop is done. The twin does the same
    operations in the same order, so that the choice changes no number.

    Parameters
    ----------
    function
        A PrimFunc after all passes that rewrite loops.
    counted
        The extents of its parallel loops are numbers of threads (kernels of lutcc, which count for
        themselves); otherwise loops with at least :data:`WORTH` to do are parallel.

    Examples
    --------
    >>> function = choose_threads(module["softmax"], counted=False)
    """
    tvm = import_tvm()
    body = _Chooser(counted).statement(function.body)
    if body is function.body:
        return function
    module = tvm.IRModule({"main": function.with_body(body)})
    return tvm.tirx.transform.ConvertSSA()(module)["main"]


class _Chooser:
    """Rewrites the statements around parallel loops."""

    def __init__(self, counted: bool) -> None:
        import_tvm()
        from tvm import tirx
        from tvm.sym import Analyzer

        self.tirx, self.counted = tirx, counted
        self.analyzer = Analyzer()

    def statement(self, node: Any) -> Any:
        tirx = self.tirx
        if isinstance(node, tirx.SeqStmt):
            parts = [self.statement(part) for part in node.seq]
            same = all(new is old for new, old in zip(parts, node.seq, strict=True))
            return node if same else tirx.SeqStmt(parts)
        if isinstance(node, tirx.AttrStmt):
            body = self.statement(node.body)
            changed = body is not node.body
            return tirx.AttrStmt(node.node, node.attr_key, node.value, body) if changed else node
        if isinstance(node, tirx.IfThenElse):
            yes = self.statement(node.then_case)
            no = None if node.else_case is None else self.statement(node.else_case)
            same = yes is node.then_case and (no is None or no is node.else_case)
            return node if same else tirx.IfThenElse(node.condition, yes, no)
        if not isinstance(node, tirx.For):
            return node
        if node.kind == tirx.ForKind.PARALLEL:
            return self._either(node)
        body = self.statement(node.body)
        return node if body is node.body else self._loop(node, node.kind, body)

    def _either(self, loop: Any) -> Any:
        tirx = self.tirx
        serial = self._loop(loop, tirx.ForKind.SERIAL, loop.body)
        worth = loop.extent > 1 if self.counted else _Work(self.tirx).of(loop) >= WORTH
        worth = self.analyzer.simplify(worth)
        if isinstance(worth, tirx.IntImm):
            return loop if int(worth.value) else serial
        return tirx.IfThenElse(worth, loop, serial)

    def _loop(self, loop: Any, kind: int, body: Any) -> Any:
        return self.tirx.For(
            loop.loop_var, loop.min, loop.extent, kind, body, None, loop.annotations, loop.step
        )


class _Work:
    """Estimates the work of a statement: an int64 expression in its open sizes."""

    def __init__(self, tirx: Any) -> None:
        self.tirx = tirx
        self.inner: set[Any] = set()
        self.bound: dict[Any, Any] = {}

    def of(self, node: Any) -> Any:
        tirx = self.tirx
        if isinstance(node, tirx.SeqStmt):
            return sum((self.of(part) for part in node.seq), start=tirx.IntImm("int64", 0))
        if isinstance(node, tirx.For):
            extent = self._size(node.extent)
            self.inner.add(node.loop_var)
            return extent * self.of(node.body)
        if isinstance(node, tirx.AttrStmt):
            return self.of(node.body)
        if isinstance(node, tirx.IfThenElse):
            return self.of(node.then_case)
        if isinstance(node, tirx.Bind):
            self.bound[node.var] = node.value
            return tirx.IntImm("int64", 0)
        if isinstance(node, tirx.BufferStore):
            # Local buffers are registers.
            store = 0 if node.buffer.scope() == "local" else _STORE
            work = _vectors(node.value) * (store + self._operations(node.value))
            return tirx.IntImm("int64", work)
        return tirx.IntImm("int64", 0)

    def _size(self, extent: Any) -> Any:
        """Return an extent as far as it is known outside the statement; 1 where it is not."""
        from tvm.tirx.analysis import undefined_vars

        known = self.bound.get(extent, extent)
        unknown = self.inner | set(self.bound)
        hidden = any(variable in unknown for variable in undefined_vars(known))
        return self.tirx.IntImm("int64", 1) if hidden else known.astype("int64")

    def _operations(self, value: Any) -> int:
        """Return the work of a value's operations, without those in indices."""
        if isinstance(value, self.tirx.Var):
            # A value that was computed once for several readers counts for each of them.
            return self._operations(self.bound[value]) if value in self.bound else 0
        kind = type(value).__name__
        if kind in _LEAVES:
            return 0
        if hasattr(value, "args"):
            own = _COSTLY if getattr(value.op, "name", "") in _COSTLY_CALLS else _OPERATION
            return own + sum(map(self._operations, value.args))
        parts = [getattr(value, name) for name in _PARTS if hasattr(value, name)]
        return (0 if kind in _FREE else _OPERATION) + sum(map(self._operations, parts))


def _vectors(value: Any) -> int:
    """Return how many vector registers a value fills, at least one."""
    dtype, _, lanes = str(value.ty.dtype).partition("x")
    bits = int("".join(c for c in dtype if c.isdigit()) or 8)
    return max(1, int(lanes or 1) * bits // (8 * _VECTOR_BYTES))
