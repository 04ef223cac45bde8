"""Feed-forward blocks: LookupFFN against the dense block d -> 4d -> d (GELU) that it replaces.

Every candidate runs on one core, float32 row-major in and out unless it says otherwise, in turns.
Batches are taken in turn from 4096 rows of random input (at most 256 of them), so that a small
batch does not find the table rows of the last call in the nearest cache; dense weights stay
wherever the last call left them. Tables and hashes are random: their values do not matter to the
speed, and the error that is reported is that of a table type alone, against the same layer with
float32 tables.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.bench.baselines import ONEDNN, PRECISIONS, runs_here, write_chain
from lutcc.bench.compare import Comparison, Subject
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import OnRow, collected
from lutcc.bench.timing import Timing
from lutcc.runtime import cpu

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Shape:
    """A block of ``d`` columns: LookupFFN with h tables of 2**tau rows, dense with 4 d columns."""

    d: int
    h: int
    tau: int

    def __str__(self) -> str:
        return f"d={self.d} h={self.h} tau={self.tau}"


SHAPES = (Shape(512, 128, 8), Shape(512, 64, 8), Shape(512, 256, 8), Shape(768, 170, 9))
BATCHES = (1, 16, 4096)
LARGE_BATCH = 32768
QUICK_BATCHES = (1, 64)
TABLES = ("float32", "bfloat16", "int8")
#: Name of a group of dense candidates -> what their labels begin with.
FAMILIES = {
    "float32 (MKL)": ("fp32",),
    "float32 (oneDNN)": ("fp32_onednn",),
    "bfloat16": ("bf16",),
    "int8": ("int8",),
}
_ERROR_ROWS = 512
_POOL_ROWS = 4096
_POOL = 256


def family_of(label: str) -> str:
    """Return the family of a dense candidate.

    Examples
    --------
    >>> family_of("fp32"), family_of("bf16_cast/amx"), family_of("int8_x86")
    ('float32 (MKL)', 'bfloat16', 'int8')
    """
    base = label.partition("/")[0]
    exact = next((name for name, labels in FAMILIES.items() if base in labels), None)
    return exact or next(n for n, labels in FAMILIES.items() if base.startswith(labels))


def options_of(table_dtype: str, isa: str) -> dict[str, Any]:
    """Return LookupFFN's types that go with a type of tables on a level.

    bfloat16 projections and scores pay only where the CPU multiplies bfloat16; elsewhere float32 is
    faster and more exact.
    """
    from lutcc.schedules.x86.isa import isa_by_name

    bf16 = isa_by_name(isa).has_bf16
    return {
        "table_dtype": table_dtype,
        "projection_dtype": "bfloat16" if bf16 and table_dtype != "float32" else "float32",
        "score_dtype": "bfloat16" if bf16 and table_dtype == "bfloat16" else "float32",
    }


def lookup_block(shape: Shape, table_dtype: str, isa: str, seed: int) -> torch.nn.Module:
    """Return a LookupFFN in eval mode; layers of one shape and seed have the same parameters."""
    import torch

    from lutcc.nn import LookupFFN

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = LookupFFN(
            shape.d,
            shape.d,
            num_tables=shape.h,
            code_length=shape.tau,
            **options_of(table_dtype, isa),
        )
    return layer.eval()


def dense_block(d: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return weights and biases of d -> 4d -> d."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    sizes = ((4 * d, d), (d, 4 * d))
    return [
        (torch.randn(size, generator=draw) * size[1] ** -0.5, torch.zeros(size[0]))
        for size in sizes
    ]


def bench_ffn(
    options: BenchOptions,
    on_row: OnRow = None,
    shapes: Sequence[Shape] | None = None,
) -> list[dict[str, Any]]:
    """Measure every shape of :data:`SHAPES`, or the given ones, at every batch.

    Returns
    -------
    list
        A row for each shape and batch: ``times`` of all candidates (seconds), ``tables`` with, for
        each table type, its error, bytes and speed-up over each family of dense candidates, and
        at the largest batches ``two_cores`` (time on one core over time on two); whether the CPU
        multiplies bfloat16 (``bf16_native``), without which torch's bfloat16 is slow.
    """
    chosen = shapes or (SHAPES[:1] if options.quick else SHAPES)
    batches = (*BATCHES, LARGE_BATCH) if options.full else BATCHES
    return collected(_rows(options, chosen, QUICK_BATCHES if options.quick else batches), on_row)


def _rows(
    options: BenchOptions, shapes: Iterable[Shape], batches: Sequence[int]
) -> Iterator[dict[str, Any]]:
    random = np.random.default_rng(options.seed)
    isa = options.isa or cpu.best_isa() or "avx2"
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="lutcc-bench-") as name, Comparison() as compare:
            folder = Path(name)
            facts = _compile(folder, shape, isa, options.seed)
            own = [
                compare.add_artifact(f"lutcc {t}", folder / f"{t}.lutcc", isa=isa)[0]
                for t in TABLES
            ]
            dense = folder / "dense.safetensors"
            write_chain(str(dense), dense_block(shape.d, options.seed), activation="gelu")
            precisions = [p for p in (*PRECISIONS, *ONEDNN) if runs_here(p)]
            others = compare.add_dense("ffn", dense, precisions)
            compare.add_input("error", _normal(random, _ERROR_ROWS, shape.d))
            _add_errors(compare, own, facts)
            for batch in batches:
                compare.add_input(
                    str(batch), _normal(random, max(batch, _POOL_ROWS), shape.d)[: batch * _POOL],
                    batch,
                )  # fmt: skip
                times = compare.measure(
                    [*own, *others], str(batch), seconds=options.seconds, rounds=options.rounds
                )
                scaling = None
                if batch == max(batches):
                    scaling = _two_cores(compare, folder, own, isa, str(batch), options)
                yield {
                    "d": shape.d, "h": shape.h, "tau": shape.tau, "batch": batch, "isa": isa,
                    "times": {label: asdict(timing) for label, timing in times.items()},
                    "tables": {t: facts[t] | verdicts(times, f"lutcc {t}") for t in TABLES},
                    "two_cores": scaling, "bf16_native": _multiplies_bfloat16(),
                }  # fmt: skip


def _multiplies_bfloat16() -> bool:
    return bool({"avx512_bf16", "amx_bf16"} & cpu.flags())


def _normal(random: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return random.normal(size=(rows, columns)).astype(np.float32)


def _compile(folder: Path, shape: Shape, isa: str, seed: int) -> dict[str, dict[str, Any]]:
    """Write an artifact for each table type; returns what is known of each."""
    import torch

    import lutcc

    facts = {}
    for table_dtype in TABLES:
        layer = lookup_block(shape, table_dtype, isa, seed)
        artifact = lutcc.compile(layer, torch.zeros(8, shape.d), target=isa)
        artifact.save(folder / f"{table_dtype}.lutcc")
        facts[table_dtype] = {**options_of(table_dtype, isa), "table_bytes": layer.table_bytes}
    return facts


def _add_errors(
    compare: Comparison, own: Sequence[Subject], facts: dict[str, dict[str, Any]]
) -> None:
    """Note how far each table type's output is from float32 tables', relative to its norm."""
    outputs = [compare.output(subject, "error")[0].astype(np.float64) for subject in own]
    for table_dtype, output in zip(TABLES, outputs, strict=True):
        error = np.linalg.norm(output - outputs[0]) / np.linalg.norm(outputs[0])
        facts[table_dtype]["error"] = float(error)


def _two_cores(
    compare: Comparison,
    folder: Path,
    own: Sequence[Subject],
    isa: str,
    batch: str,
    options: BenchOptions,
) -> dict[str, float] | None:
    """Return for each table type the time on one core over that on two; None without two."""
    cores = two_cores(options.core)
    if cores is None:
        return None
    found = {}
    for subject, table_dtype in zip(own, TABLES, strict=True):
        label = f"{subject.label}, two cores"
        path = folder / f"{table_dtype}.lutcc"
        both, _ = compare.add_artifact(label, path, isa=isa, cores=cores)
        times = compare.measure(
            [subject, both], batch, seconds=options.seconds, rounds=options.rounds
        )
        found[table_dtype] = round(times[subject.label].best / times[label].best, 3)
    return found


def two_cores(core: int) -> list[int] | None:
    """Return the core that is measured on and another one of this machine, if there is one."""
    others = [c for c in range(os.cpu_count() or 1) if c != core]
    for other in others:
        before = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {core, other})
        except OSError:  # not ours to use
            continue
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, before)
        if allowed == {core, other}:
            return [core, other]
    return None


def verdicts(times: dict[str, Timing], own: str) -> dict[str, Any]:
    """Compare one candidate with each family of dense ones.

    Returns
    -------
    dict
        ``speedup``: family -> (time of its fastest candidate) / (own time): below 1 is a loss;
        ``speedup_without_amx``: the same without the candidates that used AMX; ``fastest``: label
        of the fastest dense candidate.
    """
    dense = {k: t.best for k, t in times.items() if not k.startswith("lutcc")}
    plain = {k: best for k, best in dense.items() if not k.endswith("/amx")}
    mine = times[own].best

    def by_family(among: dict[str, float]) -> dict[str, float]:
        return {
            family: round(min(b for k, b in among.items() if family_of(k) == family) / mine, 3)
            for family in FAMILIES
        }

    return {
        "fastest": min(dense, key=dense.__getitem__),
        "speedup": by_family(dense),
        "speedup_without_amx": by_family(plain),
    }
