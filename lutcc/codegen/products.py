"""Products that stand in main on their own: sampled ones, whose operands all may be inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lutcc.ir.module import Function, Operation
from lutcc.schedules.x86 import sampled_conv2d, sampled_matmul
from lutcc.schedules.x86.config import ProductConfig, default_product
from lutcc.schedules.x86.context import Scratch
from lutcc.schedules.x86.emit import Expr, i64
from lutcc.schedules.x86.isa import Isa

SCHEDULES: Mapping[str, Any] = {"sampled_matmul": sampled_matmul, "sampled_conv2d": sampled_conv2d}
#: Operands read through any strides.
STRIDED: Mapping[str, tuple[int, ...]] = {"sampled_matmul": (0, 1), "sampled_conv2d": ()}


@dataclass(frozen=True)
class Products:
    """The products of a module and their configs.

    Attributes
    ----------
    isa
        The level.
    values
        What replaces the defaults, by :func:`product_name`.
    """

    isa: Isa
    values: Mapping[str, Mapping[str, Any]]

    def config(self, op: Operation) -> ProductConfig:
        """Return the config of a product."""
        given = {k: v for k, v in self.values.get(product_name(op), {}).items() if k != "source"}
        return default_product(self.isa).updated(given.get("product", {}))

    def source(self, op: Operation) -> str:
        """Return where the config came from."""
        given = self.values.get(product_name(op))
        return "default" if given is None else str(given.get("source", "given"))

    def shared_bytes(self, main: Function) -> int:
        """Return what the products of main share among threads, one after the other."""
        most = 0
        for op in products_of(main):
            scratch = Scratch(None, i64(0))
            SCHEDULES[op.opcode].take_shared(op, self.isa, self.config(op), scratch)
            most = max(most, scratch.used)
        return most

    def emit(
        self,
        op: Operation,
        operands: list[Any],
        target: Any,
        rows: Expr,
        shared: Scratch,
        thread_loop: Callable[[], Any],
        private: Callable[[Expr], Scratch],
    ) -> None:
        """Emit a product."""
        schedule, config = SCHEDULES[op.opcode], self.config(op)
        taken = schedule.take_shared(op, self.isa, config, shared)
        schedule.emit(op, config, operands, target, rows, taken, thread_loop, private)


def product_name(op: Operation) -> str:
    """Return the name under which a product's config is given and recorded."""
    return f"{op.opcode}.{op.results[0].name}"


def products_of(main: Function) -> list[Operation]:
    """Return the products that stand in main."""
    return [op for op in main.body if op.opcode in SCHEDULES]
