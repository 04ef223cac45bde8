"""TVM's importer of exported graphs, with each result held against what torch says of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node
from tvm import relax, tirx
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter
from tvm.sym import Analyzer

from lutcc.errors import FrontendError
from lutcc.frontend.checks import op_name, place_of
from lutcc.frontend.relax.rules import RULES
from lutcc.frontend.symbols import expression

Rule = Callable[[Node, Any], Any]


class Importer(ExportedProgramImporter):
    """Translates a graph; every tensor must come out with the shape and dtype that torch traced.

    Parameters
    ----------
    rules
        Op name, as in torch's graph, to what emits it; they go before those of lutcc and TVM.
    """

    def __init__(self, rules: Mapping[str, Rule]) -> None:
        super().__init__()
        self._symbols: dict[str, Any] = {}
        self._analyzer = Analyzer()
        own = {
            name: lambda node, rule=rule: rule(node, self)
            for name, rule in {**RULES, **rules}.items()
        }
        self.convert_map: dict[str, Callable[[Node], Any]] = {
            name: lambda node, emit=emit: self._checked(node, emit)
            for name, emit in {**self.convert_map, **own}.items()
        }

    def retrieve_args(self, node: Node) -> Any:
        """Return a node's arguments; of windows whose steps are left out, the steps."""
        args = super().retrieve_args(node)
        if "_pool" in op_name(node) and len(args) > 2 and args[2] in ([], ()):
            args = [*args[:2], args[1], *args[3:]]
        return args

    def _checked(self, node: Node, emit: Callable[[Node], Any]) -> Any:
        try:
            value = emit(node)
            wanted = node.meta.get("val")
            if isinstance(wanted, torch.Tensor):
                return self._as_traced(node, value, wanted)
            if isinstance(wanted, (tuple, list)) and isinstance(value, (tuple, list)):
                return type(value)(
                    self._as_traced(node, v, w) if isinstance(w, torch.Tensor) else v
                    for v, w in zip(value, wanted, strict=False)
                )
            return value
        except FrontendError:
            raise
        except Exception as error:  # rules of TVM raise what their asserts and operators raise
            last = str(error).strip().splitlines()[-1:] or [""]
            raise FrontendError(
                f"TVM's importer fails on {op_name(node)}: {type(error).__name__}: {last[0]}",
                where=place_of(node),
                fix="replace the layer, or compile the parts of the model around it separately",
            ) from error

    def _as_traced(self, node: Node, value: Any, wanted: torch.Tensor) -> Any:
        """Return ``value`` with the dtype and the shape that torch traced, or refuse it."""
        if not isinstance(value, relax.Expr) or not isinstance(value.ty, relax.TensorType):
            return value
        dtype = str(wanted.dtype).removeprefix("torch.")
        if str(value.ty.dtype.dtype) != dtype:
            value = self.block_builder.emit(relax.op.astype(value, dtype))
        shape = [self.size(dim) for dim in wanted.shape]
        known = value.ty.shape
        if known is None or not hasattr(known, "__len__"):
            if any(dim is None for dim in shape):
                return value
            return self.block_builder.match_cast(value, relax.TensorType(shape, dtype))
        same = len(known) == len(shape) and all(
            want is None or not self._differ(have, want)
            for have, want in zip(known, shape, strict=True)
        )
        if not same:
            raise FrontendError(
                f"TVM gives {op_name(node)} the shape ({', '.join(map(str, known))}), and torch "
                f"({', '.join(map(str, wanted.shape))})",
                where=place_of(node),
                fix="replace the layer by one made of other operations, and report this",
            )
        equal = all(w is None or self.equal(h, w) for h, w in zip(known, shape, strict=True))
        if equal or any(dim is None for dim in shape):
            return value
        return self.block_builder.match_cast(value, relax.TensorType(shape, dtype))

    def equal(self, have: Any, want: Any) -> bool:
        """Tell whether two sizes are the same for every value of the open sizes."""
        return bool(self._analyzer.can_prove_equal(have, want))

    def _differ(self, have: Any, want: Any) -> bool:
        """Tell whether two sizes are different for certain."""
        gap = self._analyzer.simplify(have - want)
        value = getattr(gap, "value", None)
        return value is not None and int(value) != 0

    def size(self, size: int | torch.SymInt) -> Any | None:
        """Return a size of torch as an expression of TVM; None if it is no polynomial."""
        expr = expression(size)
        try:
            return self._polynomial(expr)
        except KeyError:
            return None

    def _polynomial(self, expr: Any) -> Any:
        if expr.is_Integer:
            return tirx.IntImm("int64", int(expr))
        if expr.is_Symbol:
            return self.variables()[str(expr)]
        parts = [self._polynomial(part) for part in expr.args] if expr.is_Add or expr.is_Mul else []
        if not parts:
            raise KeyError(str(expr))
        return sum(parts[1:], parts[0]) if expr.is_Add else math.prod(parts[1:], start=parts[0])

    def variables(self) -> Mapping[str, Any]:
        """Return Relax's variables for open sizes, by the exporter's names."""
        if not self._symbols:
            for node, value in self.env.items():
                if node.op == "placeholder":
                    for size in value.ty.shape:
                        if isinstance(size, tirx.Var):
                            self._symbols.setdefault(size.name, size)
        return self._symbols
