"""What the cost model sees of a config: numbers from the knobs, the op's cost and the processor.

Features have names, so that records of other workloads, processors and spaces can be learnt from
together; one that a config does not have is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from lutcc.schedules.space import Config
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.schedules.x86.lut_accumulate import padded_entries
from lutcc.schedules.x86.pack import CHUNK
from lutcc.tuning.workload import Workload

Features: TypeAlias = dict[str, float]

#: Bytes of the first- and second-level data cache that a kernel can count on: the least that a
#: processor of these levels has. The trees place their own thresholds.
L1_BYTES = 32 << 10
L2_BYTES = 1 << 20
_ROW_COLUMNS = 64  # output columns of one register of bytes


def features_of(
    workload: Workload, isa: str, config: Config, default: Config | None = None
) -> Features:
    """Return the features of one config of a workload.

    Parameters
    ----------
    workload
        Its ``dims``, ``cost`` and ``kind`` count.
    isa
        Instruction-set level of the kernel.
    config
        Any knobs; those of a stage give more features than knobs that nobody knows.
    default
        The hand-picked config, where it is known: how far the config is from it tells much.

    Examples
    --------
    >>> work = Workload("stage", "linear", "", 64, dims={"depth": 8, "width": 32})
    >>> found = features_of(work, "avx2", {"linear.tile_m": 4, "linear.tile_r": 2})
    >>> found["linear.cells"], found["linear.loads"]
    (8.0, 0.75)
    """
    found = _of_knobs(config)
    if default is not None:
        found |= _from_default(config, default)
    found |= {f"dims.{name}": _log(value) for name, value in workload.dims.items()}
    found |= {f"cost.{name}": _log(value) for name, value in workload.cost.items()}
    found["isa.width"] = float(isa_by_name(isa).vector_bytes)
    found["isa.vbmi_vnni"] = float(isa_by_name(isa).has_vbmi_vnni)
    found["threads"] = float(workload.threads)
    found["cold"] = float(workload.cache == "cold")
    if workload.kind == "stage":
        _of_stage(found, workload, isa, config)
    elif workload.kind == "product":
        found |= _of_packed(workload, isa, config)
    else:
        found |= _of_matmul(workload, isa, config)
    return found


def _log(value: float) -> float:
    """Return log2(1 + value), with its sign: linear near 0, and products become sums."""
    return math.copysign(math.log2(1 + abs(value)), value)


def _of_knobs(config: Config) -> Features:
    """Return each number's logarithm, each word as a flag, and what pairs of numbers multiply to.

    Products let one split of a tree tell configs apart that take as many registers or bytes.
    """
    found: Features = {}
    logs: Features = {}
    for name, value in sorted(config.items()):
        if isinstance(value, str):
            found[f"{name}={value}"] = 1.0
        else:
            found[name] = logs[name] = _log(value)
    names = list(logs)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            if first.rpartition(".")[0] == second.rpartition(".")[0]:
                found[f"{first}*{second}"] = logs[first] + logs[second]
                found[f"{first}/{second}"] = logs[first] - logs[second]
    return found


def _from_default(config: Config, default: Config) -> Features:
    """Return the doublings that each number is away from the default, and how many knobs differ."""
    found: Features = {"default.differing": 0.0}
    for name, value in sorted(config.items()):
        usual = default.get(name)
        found["default.differing"] += value != usual
        if isinstance(value, int) and isinstance(usual, int):
            found[f"default.{name}"] = _log(value) - _log(usual)
    return found


class _Dims:
    """The dimensions of a stage, with defaults for what a kernel does not have."""

    def __init__(self, workload: Workload, isa: str) -> None:
        def get(name: str) -> float:
            return max(0.0, float(workload.dims.get(name, 0)))

        level = isa_by_name(isa)
        self.rows = max(1.0, get("rows") or workload.rows)
        self.columns_in = get("columns_in")
        self.columns_out = get("columns_out")
        self.codebooks, self.outputs = get("codebooks"), get("outputs")
        self.entries = padded_entries(int(get("entries")))
        self.depth, self.width = get("depth"), get("width")
        self.itemsize, self.gather_entries = get("itemsize") or 4.0, get("entries")
        self.dot = level.has_vbmi_vnni and not get("mean") and self.entries <= 32
        self.lanes = 16 if self.dot else level.vector_bytes
        self.registers = 28 if level.has_avx512 else 12
        self.vector_bytes = level.vector_bytes


def _of_stage(found: Features, workload: Workload, isa: str, config: Config) -> None:
    dims = _Dims(workload, isa)
    alone = int(config.get("stage.row_threshold", 0)) >= dims.rows
    found["stage.alone"] = float(alone)
    if alone:
        found |= _of_rows_alone(dims, config)
        return
    block = min(float(config.get("stage.row_block", 256)), dims.rows)
    found |= _of_rows(dims, block)
    if dims.codebooks and "accumulate.tile_m" in config:
        found |= _of_scan(dims, block, config)
    if dims.depth and "linear.tile_m" in config:
        found |= _of_product(dims, block, config)


def _of_rows_alone(dims: _Dims, config: Config) -> Features:
    """Return how rows that are done one by one (a product: some together) are cut."""
    found: Features = {}
    tables = dims.codebooks * dims.entries * dims.outputs
    if dims.codebooks and "rows.scan_blocks" in config:
        blocks = math.ceil(dims.outputs / _ROW_COLUMNS)
        together = min(float(config["rows.scan_blocks"]), blocks) or 1.0
        found |= {
            "alone.passes": _log(blocks // together + blocks % together),
            "alone.rest": blocks % together,
            "alone.registers": 2 * together / dims.registers,
            "alone.entry_bytes": _log(together * _ROW_COLUMNS),
            "alone.tables/L1": _log(tables) - math.log2(L1_BYTES),
            "alone.tables/L2": _log(tables) - math.log2(L2_BYTES),
            "alone.ahead": _log(float(config["rows.prefetch"]) * together * _ROW_COLUMNS),
        }
    if "gather.group" in config:
        columns, group = float(config["gather.columns"]), float(config["gather.group"])
        row = columns * dims.itemsize
        found |= {
            "gather.piece/L2": _log(group * dims.gather_entries * row) - math.log2(L2_BYTES),
            "gather.registers": columns / 16 / dims.registers,
            "gather.sums/loads": _log(2 * 4 * columns / (group * row)),
            "gather.blocks": _log(math.ceil(dims.rows / float(config.get("gather.rows", 4096)))),
        }
    if dims.depth and "rows.linear_chunks" in config:
        chunks, batch = float(config["rows.linear_chunks"]), float(config["rows.linear_batch"])
        together = min(float(config["rows.linear_rows"]), dims.rows)
        found |= _of_tile("product", chunks, batch, together, dims.registers)
        found |= {
            "product.column_tail": math.ceil(dims.width / CHUNK) % chunks,
            "product.row_tail": dims.rows % together / dims.rows,
            "product.blocks": _log(math.ceil(dims.rows / together)),
            "product.panel/L1": _log(4 * CHUNK * chunks * dims.depth) - math.log2(L1_BYTES),
            "product.rows/L1": _log(4 * together * dims.depth) - math.log2(L1_BYTES),
            "product.rows/L2": _log(4 * together * dims.depth) - math.log2(L2_BYTES),
            "product.weights/L2": _log(4 * dims.width * dims.depth) - math.log2(L2_BYTES),
        }
    return found


def _of_rows(dims: _Dims, block: float) -> Features:
    """Return how the rows are cut, and whether what a block touches stays in the caches."""
    codes = block * dims.codebooks
    columns = 4 * block * (dims.columns_in + dims.columns_out)
    tables = dims.codebooks * dims.entries * dims.outputs + 4 * dims.depth * dims.width
    blocks = math.ceil(dims.rows / block)
    return {
        "rows.blocks": _log(blocks),
        "rows.tail": (dims.rows % block) / block,
        "rows.padding": -dims.rows % dims.lanes / dims.rows,
        "rows.codes/L1": _log(codes) - math.log2(L1_BYTES),
        "rows.columns/L1": _log(columns) - math.log2(L1_BYTES),
        "rows.columns/L2": _log(columns) - math.log2(L2_BYTES),
        "rows.touched/L2": _log(codes + columns + tables) - math.log2(L2_BYTES),
        "rows.table_bytes": _log(tables * blocks / dims.rows),
    }


def _of_tile(name: str, m: float, r: float, groups: float, registers: float) -> Features:
    """Return what a register tile of ``m`` columns and ``r`` row groups costs."""
    tiles, rest = divmod(groups, r)
    return {
        f"{name}.cells": m * r,
        f"{name}.registers": (m * r + m + r) / registers,
        f"{name}.loads": 1 / m + 1 / r,
        f"{name}.aspect": math.log2(m / r),
        f"{name}.tail": rest / groups,
        f"{name}.tiles": _log(tiles),
        f"{name}.loads_with_tail": (tiles * r * (1 / m + 1 / r) + rest * (1 / m + 1)) / groups,
    }


def _of_scan(dims: _Dims, block: float, config: Config) -> Features:
    m, r = float(config["accumulate.tile_m"]), float(config["accumulate.tile_r"])
    groups = math.ceil(block / dims.lanes)
    registers = dims.registers / (1 if dims.dot else 2)
    found = _of_tile("scan", m, r, groups, registers)
    chunk = CHUNK * dims.codebooks * dims.entries
    steps = dims.codebooks / (4 if dims.dot else 1)
    loads = found["scan.loads_with_tail"]
    work = groups * math.ceil(dims.outputs / CHUNK) * CHUNK * steps
    return found | {
        "scan.chunk/L1": _log(chunk) - math.log2(L1_BYTES),
        "scan.tile_tables/L1": _log(chunk * m / CHUNK) - math.log2(L1_BYTES),
        "scan.codes_of_tile": _log(r * dims.lanes * dims.codebooks),
        "scan.steps": _log(steps),
        "scan.work": _log(work * (2 + loads) / (block * max(1.0, dims.outputs))),
        "scan.column_tail": -dims.outputs % CHUNK / max(1.0, dims.outputs),
    }


def _of_product(dims: _Dims, block: float, config: Config) -> Features:
    m, r = float(config["linear.tile_m"]), float(config["linear.tile_r"])
    groups = math.ceil(block / 16)
    found = _of_tile("linear", m, r, groups, dims.registers)
    return found | {
        "linear.columns/L1": _log(4 * 16 * r * dims.depth) - math.log2(L1_BYTES),
        "linear.weights/L1": _log(4 * CHUNK * dims.depth) - math.log2(L1_BYTES),
        "linear.weights/L2": _log(4 * dims.width * dims.depth) - math.log2(L2_BYTES),
        "linear.column_tail": -dims.width % CHUNK / dims.width,
    }


def _of_matmul(workload: Workload, isa: str, config: Config) -> Features:
    """Return what the register tile of a product outside lutcc's own kernels costs."""
    knobs = {name.rpartition(".")[2]: value for name, value in config.items()}
    i, j, k = (float(workload.dims.get(name, 0)) for name in "ijk")
    if not (i and j and k and isinstance(knobs.get("rows"), int)):
        return {}
    rows, vectors = float(knobs["rows"]), float(knobs.get("vectors", 1))
    level = isa_by_name(isa)
    width = vectors * level.vector_bytes / 4
    panel = 4 * width * k
    return _of_tile("matmul", vectors, rows, i, 32 if level.has_avx512 else 16) | {
        "matmul.row_tail": i % rows / i,
        "matmul.column_tail": -j % width / j,
        "matmul.panels": _log(math.ceil(j / width)),
        "matmul.panel/L1": _log(panel) - math.log2(L1_BYTES),
        "matmul.group/L2": _log(panel * float(knobs.get("group", 1))) - math.log2(L2_BYTES),
        "matmul.b/L2": _log(4 * j * k) - math.log2(L2_BYTES),
    }


def _of_packed(workload: Workload, isa: str, config: Config) -> Features:
    """Return what a product of rows with packed weights touches, and what its tiles leave idle."""
    knobs = {name.rpartition(".")[2]: value for name, value in config.items()}
    numbers = {name: float(value) for name, value in knobs.items() if isinstance(value, int)}
    level, dims = isa_by_name(isa), workload.dims
    rows = max(1.0, float(dims.get("rows", 0)) * max(1.0, float(dims.get("pixels", 0))))
    depth, width = max(1.0, dims.get("depth", 0)), max(1.0, dims.get("width", 0))
    itemsize = float(dims.get("multiplied", 4))
    registers = 32.0 if level.has_avx512 else 16.0
    if numbers.get("few", 0.0) >= rows:
        return {"packed.alone": 1.0, "packed.ahead": _log(numbers.get("prefetch", 0.0))}
    found: Features = {"packed.alone": 0.0}
    tile = numbers.get("tile_rows", 0.0)
    if not tile:
        return found
    if "tile_chunks" in numbers:
        chunks, terms = numbers["tile_chunks"], numbers.get("depth", 256.0)
        block = tile * numbers.get("row_panels", 1.0)
        panel, passes = 16 * chunks * 4 * min(terms, depth), math.ceil(depth / terms)
        found |= _of_tile("packed", chunks, tile, rows, registers)
        columns = 16 * chunks
    else:
        vectors = numbers.get("vectors", 4.0)
        columns = vectors * level.vector_bytes / 16
        whole = columns * itemsize * depth
        passes = math.ceil(whole / max(1.0, numbers.get("panel_bytes", whole)))
        panel, block = whole / passes, min(numbers.get("block_rows", rows), rows)
        found |= _of_tile("packed", vectors, tile, rows, registers)
    blocks = math.ceil(rows / block)
    each = math.ceil(rows / blocks / tile) * tile
    return found | {
        "packed.idle_rows": each * blocks / rows,
        "packed.idle_columns": -width % columns / width,
        "packed.passes": float(passes),
        "packed.blocks": _log(blocks),
        "packed.panel/L1": _log(panel) - math.log2(L1_BYTES),
        "packed.panel/L2": _log(panel) - math.log2(L2_BYTES),
        "packed.rows/L2": _log(each * depth / passes * itemsize) - math.log2(L2_BYTES),
        "packed.both/L2": _log(panel + each * depth / passes * itemsize) - math.log2(L2_BYTES),
        "packed.sums": _log(passes * each * columns * numbers.get("together", 1.0)),
        "packed.weights_read": _log(blocks * depth * width * itemsize),
    }


class FeatureTable:
    """Turns features into columns of one matrix, the same for all workloads.

    Parameters
    ----------
    names
        Names of the columns; features under other names are left out.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(sorted(names))
        self._column = {name: i for i, name in enumerate(self.names)}

    @classmethod
    def over(cls, rows: Sequence[Mapping[str, float]]) -> FeatureTable:
        """Return the table that has a column for every feature of ``rows``."""
        return cls(sorted({name for row in rows for name in row}))

    def matrix(self, rows: Sequence[Mapping[str, float]]) -> np.ndarray:
        """Return the features (rows, columns) float32; NaN where a row has none of a name.

        Words count as 0 where a row has another word.
        """
        result = np.full((len(rows), len(self.names)), np.nan, np.float32)
        flags = [i for name, i in self._column.items() if "=" in name]
        result[:, flags] = 0.0
        for i, row in enumerate(rows):
            for name, value in row.items():
                if name in self._column:
                    result[i, self._column[name]] = value
        return result
