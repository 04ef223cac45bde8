"""How a stage (a fused group of row-wise operations) is cut into steps.

A *step* is an encoder; or a producer of columns (scan, matrix product, load) with the elementwise
operations that follow it applied in registers before anything is stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lutcc.errors import CompileError
from lutcc.ir.module import Function, Operation, Value
from lutcc.schedules.space import Config, Knob, Space
from lutcc.schedules.x86 import (
    block_diagonal_matmul,
    interval_encode,
    linear,
    lut_accumulate,
    nearest_encode,
    tree_encode,
)
from lutcc.schedules.x86.config import KernelConfigs
from lutcc.schedules.x86.defaults import default_configs, default_gather, tile_fits
from lutcc.schedules.x86.isa import Isa
from lutcc.schedules.x86.row_passes import ELEMENTWISE, REDUCTIONS

ENCODERS = {
    "tree_encode": tree_encode,
    "interval_encode": interval_encode,
    "nearest_encode": nearest_encode,
}
#: Operations that have a kernel for rows as they lie only.
HASHES = frozenset({"hadamard", "block_diagonal_matmul", "sign_hash", "weighted_gather"})
#: Row-wise operations that a stage can hold.
SUPPORTED = frozenset({*ENCODERS, *ELEMENTWISE, *REDUCTIONS, *HASHES, "lut_accumulate", "linear"})
#: Producers that elementwise operations cannot join: their results are not finished one by one.
_CLOSED = frozenset({*ENCODERS, "hadamard", "sign_hash"})


@dataclass(frozen=True)
class Step:
    """One loop nest: ``producer`` (None: load the first operand of ``chain[0]``), then ``chain``.

    Attributes
    ----------
    producer
        An encoder, a scan, a matrix product, a reduction, or None.
    chain
        Elementwise operations applied to the producer's values in registers.
    source
        The value that a step without producer loads.
    result
        The value that the step stores.
    folded
        A ``hadamard`` that is part of a block-diagonal product.
    """

    producer: Operation | None
    chain: tuple[Operation, ...]
    source: Value | None
    result: Value
    folded: Operation | None = None

    @property
    def name(self) -> str:
        """The opcodes, joined."""
        ops = ([self.producer] if self.producer else []) + list(self.chain)
        return "+".join(op.opcode for op in ops) or "copy"


def without_repacks(function: Function) -> Function:
    """Return the function with every ``repack`` replaced by what it repacks.

    Inside a stage the layout of each value follows from who makes and who reads it.
    """
    source: dict[str, Value] = {}

    def real(value: Value) -> Value:
        return source.get(value.name, value)

    body = []
    for op in function.body:
        if op.opcode == "repack":
            source[op.results[0].name] = real(op.operands[0])
        else:
            body.append(replace(op, operands=tuple(real(v) for v in op.operands)))
    returns = tuple(real(v) for v in function.returns)
    return replace(function, body=tuple(body), returns=returns)


def plan_steps(function: Function) -> list[Step]:
    """Cut a row-wise function into steps.

    Raises
    ------
    CompileError
        For an operation that has no x86 schedule.
    """
    uses = function.use_counts
    returned = {v.name for v in function.returns}
    body = _gathers_first([op for op in function.body if op.opcode != "constant"])
    done: set[int] = set()
    steps: list[Step] = []
    for index, op in enumerate(body):
        if index in done:
            continue
        if op.opcode not in SUPPORTED:
            raise CompileError(
                f"{op.opcode} has no x86 schedule",
                where=f"@{function.name}",
                fix="compile the torch model instead of the module, so that Relax runs this op",
            )
        folded = None
        if op.opcode == "hadamard":
            reader = _folding_reader(body, op, uses, returned)
            if reader is not None:
                done.add(reader)
                folded, op = op, body[reader]
        if op.opcode in _CLOSED:
            steps.append(Step(op, (), None, op.results[0]))
            continue
        is_producer = op.opcode not in ELEMENTWISE
        chain: list[Operation] = [] if is_producer else [op]
        result = op.results[0]
        while uses[result.name] == 1 and result.name not in returned:
            follower = _follower(body, result)
            if follower is None:
                break
            chain.append(body[follower])
            done.add(follower)
            result = body[follower].results[0]
        producer = op if is_producer else None
        source = None if producer else op.operands[0]
        steps.append(Step(producer, tuple(chain), source, result, folded))
    return steps


def _gathers_first(body: Sequence[Operation]) -> list[Operation]:
    """Let additions of something to the result of a gather name that result first."""
    late: set[str] = set()
    ordered = []
    for op in body:
        if op.opcode == "add" and op.operands[1].name in late:
            op = replace(op, operands=op.operands[::-1])
        if op.opcode == "weighted_gather" or (
            op.opcode in ELEMENTWISE and op.operands[0].name in late
        ):
            late.add(op.results[0].name)
        ordered.append(op)
    return ordered


def _folding_reader(
    body: Sequence[Operation], op: Operation, uses: Mapping[str, int], returned: set[str]
) -> int | None:
    """Return the product that a ``hadamard`` can be folded into, its only reader."""
    name = op.results[0].name
    if uses[name] != 1 or name in returned:
        return None
    for index, other in enumerate(body):
        if other.opcode == "block_diagonal_matmul" and other.operands[0].name == name:
            return index if block_diagonal_matmul.foldable(other) else None
    return None


def _follower(body: Sequence[Operation], value: Value) -> int | None:
    """Return the elementwise operation that takes ``value`` first and can join its producer."""
    defined = {v.name: i for i, op in enumerate(body) for v in op.results}
    producer = defined[value.name]
    for index, op in enumerate(body):
        if op.opcode in ELEMENTWISE and op.operands and op.operands[0].name == value.name:
            others = [defined.get(v.name, -1) for v in op.operands[1:]]
            return index if all(i < producer for i in others) else None
    return None


def row_group(isa: Isa, function: Function) -> int:
    """Return the rows that must be done together: 16, or a byte vector for a widening scan."""
    scans = [op for op in function.body if op.opcode == "lut_accumulate"]
    if all(lut_accumulate.uses_dot(isa, op) for op in scans):
        return 16
    return isa.vector_bytes


def rows_of_a_thread(isa: Isa, function: Function, configs: KernelConfigs) -> int:
    """Return the rows that threads share a batch out by: a group, or less where rows go alone."""
    scans = any(op.opcode == "lut_accumulate" for op in function.body)
    alone = elementwise_only(function) or configs.stage.row_threshold >= ALWAYS
    if scans or hashes(function) or not alone:
        return row_group(isa, function)
    return 8


def default_stage_configs(isa: Isa, function: Function) -> KernelConfigs:
    """Return the hand-picked configs of a stage."""
    scans = [op for op in function.body if op.opcode == "lut_accumulate"]
    configs = default_configs(
        isa,
        dot=row_group(isa, function) == 16,
        mean=any(lut_accumulate.is_mean(op) for op in scans),
        table_bytes=max((_table_bytes(op) for op in scans), default=0),
        entries=max((op.operands[1].type.size(1) for op in scans), default=16),
    )
    gathers = [op for op in function.body if op.opcode == "weighted_gather"]
    if gathers:
        tables = max((op.operands[2].type for op in gathers), key=lambda t: t.itemsize)
        gather = default_gather(tables.itemsize, tables.size(1))
        configs = replace(configs, gather=gather)
    if isa.has_avx512 and any(op.opcode == "block_diagonal_matmul" for op in function.body):
        # Blocks of 64 columns are four chunks: 24 sums, 4 weights and a row's value in registers.
        rows = replace(configs.rows, linear_chunks=4, linear_batch=6, linear_rows=48)
        configs = replace(configs, rows=rows)
    if _only_products(function) or rows_only(function):
        return replace(configs, stage=replace(configs.stage, row_threshold=ALWAYS))
    return configs


def _only_products(function: Function) -> bool:
    """Whether matrix products are all the work, which rows as they lie do best at any size."""
    opcodes = {op.opcode for op in function.body}
    return "linear" in opcodes and not opcodes & {"lut_accumulate", *ENCODERS}


def _table_bytes(scan: Operation) -> int:
    codebooks, entries, outputs = scan.operands[1].type.sizes()
    return codebooks * lut_accumulate.padded_entries(entries) * outputs


def rows_only(function: Function) -> bool:
    """Whether some operation of the stage has no block kernel."""
    return hashes(function) or any(
        op.opcode in REDUCTIONS or (op.opcode == "lut_accumulate" and lut_accumulate.needs_rows(op))
        for op in function.body
    )


def hashes(function: Function) -> bool:
    """Whether the stage holds Hadamard transforms, block-diagonal products, hashes or gathers."""
    return any(op.opcode in HASHES for op in function.body)


def goes_by_images(function: Function) -> bool:
    """Whether the stage is one of convolutions by look-ups, where nothing is to be chosen."""
    return any(op.opcode == "lut_conv2d" for op in function.body)


def rows_at_once(function: Function, configs: KernelConfigs) -> int:
    """Return how many rows go through the stage together where blocks are not used.

    Only matrix products gain: their rows share weights.
    """
    shared = any(op.opcode in ("linear", "block_diagonal_matmul") for op in function.body)
    return configs.rows.linear_rows if shared else 1


def elementwise_only(function: Function) -> bool:
    """Whether the stage is done in straight passes over its rows, with nothing to choose."""
    straight = {*ELEMENTWISE, *REDUCTIONS, "constant", "repack"}
    return all(op.opcode in straight for op in function.body)


#: As ``row_threshold``: each row is done alone, however many there are.
ALWAYS = 2**31 - 1
#: With more rows than this, a stage with look-ups goes by blocks.
_ALONE_AT_MOST = 128
#: Values of each knob that are worth trying.
_VALUES = {
    "stage.row_block": (64, 128, 256, 512, 1024, 2048),
    "encode.singles": (0, 2, 4, 8),
    "accumulate.tile_m": (1, 2, 4, 8, 16),
    "accumulate.tile_r": (1, 2, 3, 4),
    "rows.scan_blocks": (2, 4, 8),
    "rows.prefetch": (0, 8),
    "rows.linear_chunks": (1, 2, 3, 4, 6),
    "rows.linear_batch": (2, 4, 6, 8, 12),
    "rows.linear_rows": (16, 32, 64, 128),
    "gather.rows": (1024, 2048, 4096, 8192),
    "gather.columns": (16, 32, 64, 128),
    "gather.group": (4, 8, 16, 32),
}


def stage_space(isa: Isa, function: Function, rows: int) -> Space:
    """Return the configs worth trying for a stage at a number of rows, as dotted knobs.

    ``stage.row_threshold`` is 0 (blocks of rows) or :data:`ALWAYS` (rows alone); knobs of the other
    way are held at their defaults. A stage of elementwise operations has nothing to choose, and
    beside a scan the tiles of ``linear`` stay as they are.
    """
    default = default_stage_configs(isa, function)
    opcodes = {op.opcode for op in function.body}
    dot = row_group(isa, function) == 16
    straight = elementwise_only(function)
    must = rows_only(function) or _only_products(function) or straight or rows == 1
    alone = must or rows <= default.stage.row_threshold
    values = {"stage.row_threshold": ALWAYS if alone else 0}
    ways = tuple(values.values()) if must or rows > _ALONE_AT_MOST else (0, ALWAYS)
    knobs = [Knob("stage.row_threshold", ways)]
    of_blocks, of_rows = [], []

    def knob(name: str, most: int = ALWAYS) -> None:
        part, _, field = name.partition(".")
        value = getattr(getattr(default, part), field)
        values[name] = value
        (of_rows if part in ("rows", "gather") else of_blocks).append(name)
        knobs.append(Knob(name, tuple(sorted({v for v in _VALUES[name] if v <= most} | {value}))))

    if 0 in ways:
        knob("stage.row_block", most=2 * rows - 1)
    if 0 in ways and opcodes & set(ENCODERS):
        knob("encode.singles")
    if 0 in ways and "lut_accumulate" in opcodes:
        knob("accumulate.tile_m")
        knob("accumulate.tile_r")
    if ALWAYS in ways and "lut_accumulate" in opcodes:
        knob("rows.scan_blocks")
        knob("rows.prefetch")
    if "weighted_gather" in opcodes:
        for field in ("rows", "columns", "group") if rows > 1 else ("columns", "group"):
            knob(f"gather.{field}")
    products = _only_products(function) or "block_diagonal_matmul" in opcodes
    if products and rows >= linear.FEW_ROWS:
        for field in ("linear_chunks", "linear_batch", "linear_rows"):
            knob(f"rows.{field}")

    def valid(config: Config) -> bool:
        idle = of_blocks if config["stage.row_threshold"] else of_rows
        if any(config[name] != values[name] for name in idle):
            return False
        tiles = (
            ("accumulate.tile_m", "accumulate.tile_r", 1 if dot else 2),
            ("rows.linear_chunks", "rows.linear_batch", 1),
        )
        return all(
            tile_fits(isa, int(config[m]), int(config[r]), accumulators=count)
            for m, r, count in tiles
            if m in config
        )

    return Space(tuple(knobs), values, valid)
