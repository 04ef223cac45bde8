"""Products that stand in main on their own: sampled, dense, and those with codebook weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from lutcc.errors import CompileError
from lutcc.ir.module import Function, Operation
from lutcc.schedules.x86 import (
    attention,
    codebook_dequantize,
    codebook_matmul,
    conv2d,
    dense,
    sampled_conv2d,
    sampled_matmul,
    sparse_add,
)
from lutcc.schedules.x86.config import AttentionConfig, DenseConfig, FixedConfig, ProductConfig
from lutcc.schedules.x86.context import Scratch
from lutcc.schedules.x86.emit import i64
from lutcc.schedules.x86.isa import Isa

if TYPE_CHECKING:
    from lutcc.codegen.threads import Threads
    from lutcc.codegen.values import Values

Config: TypeAlias = ProductConfig | DenseConfig | AttentionConfig | FixedConfig
SCHEDULES: Mapping[str, Any] = {
    "sampled_matmul": sampled_matmul,
    "sampled_conv2d": sampled_conv2d,
    "codebook_matmul": codebook_matmul,
    "codebook_dequantize": codebook_dequantize,
    "sparse_add": sparse_add,
    "dense": dense,
    "conv2d": conv2d,
    "attention": attention,
}
#: Products of tensors of any rank, whose sizes may all be open.
TENSORS = ("attention",)
#: Operands read through any strides.
STRIDED: Mapping[str, tuple[int, ...]] = {
    "sampled_matmul": (0, 1),
    "sampled_conv2d": (),
    "codebook_matmul": (0,),
    "codebook_dequantize": (0,),
    "sparse_add": (0, 1),
    "dense": (0,),
    "conv2d": (),
    "attention": (),
}
#: Operands that must be constants, which the schedule packs.
PACKED: Mapping[str, tuple[int, ...]] = {
    "codebook_matmul": codebook_matmul.PACKED,
    "codebook_dequantize": codebook_dequantize.PACKED,
    "sparse_add": sparse_add.PACKED,
    "dense": dense.PACKED,
    "conv2d": conv2d.PACKED,
}


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

    def config(self, op: Operation) -> Config:
        """Return the config of a product."""
        given = self.values.get(product_name(op), {}).get(part_name(op), {})
        return default_config(op, self.isa).updated(given)

    def source(self, op: Operation) -> str:
        """Return where the config came from."""
        given = self.values.get(product_name(op))
        if not self.config(op).to_json():
            return "nothing to choose"
        return "default" if given is None else str(given.get("source", "given"))

    def shared_bytes(self, main: Function) -> int:
        """Return what the products of main share among threads, one after the other."""
        most = 0
        for op in products_of(main):
            scratch = Scratch(None, i64(0))
            SCHEDULES[op.opcode].take_shared(op, self.isa, self.config(op), scratch)
            most = max(most, scratch.used)
        return most

    def emit(self, op: Operation, values: Values, threads: Threads, shared: Scratch) -> None:
        """Emit a product.

        Parameters
        ----------
        op
            The product.
        values, threads
            Of the entry function.
        shared
            What threads have in common, :meth:`shared_bytes` of it.
        """
        schedule, config = SCHEDULES[op.opcode], self.config(op)
        strided = STRIDED[op.opcode]
        operands: list[Any] = []
        for index, value in enumerate(op.operands):
            if index in PACKED.get(op.opcode, ()):
                operands.append(values.constant(value))
            elif op.opcode in TENSORS:
                operands.append(values.tensor(value))
            else:
                see = values.external if index in strided else values.view
                operands.append(see(value))
        target = (values.external if strided else values.view)(op.results[0])
        rows = values.rows(op.operands[0])
        taken = schedule.take_shared(op, self.isa, config, shared)
        schedule.emit(op, config, operands, target, rows, taken, threads.loop, threads.scratch)


def product_name(op: Operation) -> str:
    """Return the name under which a product's config is given and recorded."""
    return f"{op.opcode}.{op.results[0].name}"


def part_name(op: Operation) -> str:
    """Return the name of the part of a product's config: ``PART`` of its schedule."""
    return getattr(SCHEDULES[op.opcode], "PART", "product")


def default_config(op: Operation, isa: Isa) -> Config:
    """Return the hand-picked config of a product: ``default_config(op, isa)`` of its schedule."""
    choose = getattr(SCHEDULES[op.opcode], "default_config", None)
    return FixedConfig() if choose is None else choose(op, isa)


def check_constants(main: Function) -> None:
    """Refuse products whose weights are not constants.

    Raises
    ------
    CompileError
        Naming the operand.
    """
    roots: dict[str, str] = {}
    for op in main.body:
        for result in op.results:
            inherits = op.opcode in ("reshape", "repack")
            roots[result.name] = roots.get(op.operands[0].name, "") if inherits else op.opcode
        for index in PACKED.get(op.opcode, ()):
            value = op.operands[index]
            if roots.get(value.name) != "constant":
                raise CompileError(
                    f"weights must be constants: %{value.name} of {op.opcode} is computed, or an "
                    "input",
                    where="@main",
                    fix="make all operands that describe the weights constants of the module",
                )


def packed_alone(main: Function) -> set[str]:
    """Name the constants that nothing but products that pack them reads."""
    packed, read = set(), {value.name for value in main.returns}
    for op in main.body:
        for index, value in enumerate(op.operands):
            (packed if index in PACKED.get(op.opcode, ()) else read).add(value.name)
    return packed - read


def products_of(main: Function) -> list[Operation]:
    """Return the products that stand in main."""
    return [op for op in main.body if op.opcode in SCHEDULES]
