"""Made-up tuning logs that look like real ones: several ops, failures, noise, two sessions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from lutcc.schedules.space import Config
from lutcc.tuning.logfile import path_for
from lutcc.tuning.records import Outcome, Phase, Place, Record, Status, Timing
from lutcc.tuning.schema import to_line
from lutcc.tuning.workload import Workload

LOOKUP = "tree_encode+lut_accumulate+lut_dequantize"
SAPPHIRE_RAPIDS = Place(
    "sapphirerapids",
    "Intel(R) Xeon(R) Processor",
    "avx512_vbmi_vnni",
    None,
    ("amx_int8", "avx2", "avx512_vnni", "avx512bw", "avx512f", "avx512vbmi", "fma"),
)
ZEN5 = replace(SAPPHIRE_RAPIDS, cpu="znver5", model="AMD EPYC 9755", isa="avx512", mcpu="znver5")
VERSIONS = {"lutcc": "0.2.0", "apache-tvm": "0.27.0.post1", "numpy": "2.4.0"}
DEFAULT = {
    "stage.row_threshold": 0,
    "stage.row_block": 256,
    "accumulate.tile_m": 4,
    "accumulate.tile_r": 4,
}
_VALUES = {
    "stage.row_block": (64, 128, 256, 512, 1024),
    "accumulate.tile_m": (1, 2, 4, 8, 16),
    "accumulate.tile_r": (1, 2, 3, 4, 6),
}
_FAILURES: tuple[tuple[Status, str], ...] = (
    ("compile_error", "LLVM ERROR: ran out of registers during register allocation"),
    ("wrong_result", "output 0: 3 of 524288 elements are wrong, first at (0, 17): 1.0 not 2.0"),
    ("timeout", "no answer within 10 s"),
    ("crash", "the worker died of signal 11 (SIGSEGV)"),
)


def lookup(rows: int, columns: int, outputs: int, codebooks: int, **dims: float) -> Workload:
    """A MADDNESS layer."""
    entries = dims.get("entries", 16)
    sizes = {
        "rows": rows, "columns_in": columns, "columns_out": outputs, "outputs": outputs,
        "codebooks": codebooks, "entries": entries, "mean": 0, "encoders": 1, "ops": 3,
    }  # fmt: skip
    nbytes = 4 * rows * (columns + outputs) + codebooks * entries * outputs
    return Workload(
        kind="stage",
        op=LOOKUP,
        kernel=f"lutcc.ir 1\nfunc @main(%x: f32[n, {columns}]) // <{codebooks}x{outputs}> & {dims}",
        rows=rows,
        dims=sizes | dims,
        cost={"lookups": rows * codebooks * outputs, "flops": rows * outputs, "bytes": nbytes},
    )


def plain(op: str, rows: int, columns: int, width: int = 0) -> Workload:
    """An exact layer, an encoder, or an elementwise op."""
    cost = {
        "lookups": 0,
        "flops": 0 if op.endswith("_encode") else 2 * rows * columns * max(width, 1),
        "bytes": 4 * (rows * (columns + (width or columns)) + columns * width),
    }
    dims = {"rows": rows, "columns_in": columns, "columns_out": width or columns}
    if op.startswith("fused"):
        dims = {"elements": rows * width, "width": width, "batch": 1, "i": rows}
        dims |= {"j": width, "k": columns, "reduction": columns, "blocks": 2, "transposed": 0}
    if op == "linear":
        dims |= {"depth": columns, "width": width}
    return Workload(
        "relax" if op.startswith("fused") else "stage", op, f"{op} {columns} {width}", rows,
        dims=dims, cost=cost,
    )  # fmt: skip


WORKLOADS = (
    lookup(1, 512, 512, 64),
    lookup(64, 512, 512, 64),
    lookup(1024, 512, 512, 64),
    lookup(1024, 512, 512, 64, mean=1),
    lookup(4096, 1024, 1024, 64),
    lookup(1024, 256, 256, 32, entries=64),
    replace(lookup(1024, 64, 30, 16), op="+".join([LOOKUP] * 3)),
    replace(lookup(1024, 64, 512, 64), op="lut_accumulate"),
    plain("tree_encode", 1024, 512, 64),
    plain("linear", 16, 512, 512),
    plain("linear", 1024, 768, 768),
    plain("fused_matmul_add_relu", 256, 256, 1024),
    plain("relu", 16384, 512),
    plain("add", 16, 512),
)


def session(
    workloads: Sequence[Workload] = WORKLOADS,
    *,
    place: Place = SAPPHIRE_RAPIDS,
    trials: int = 48,
    seed: int = 0,
    start: str = "2026-11-20T09:00:00+00:00",
    failure_rate: float = 0.06,
    finals: bool = True,
    earlier: Iterable[Record] = (),
) -> Iterator[Record]:
    """Yield the records of a session in the order in which one writes them.

    A session goes on from what it is told of earlier ones.
    """
    history = list(earlier)
    rng = np.random.default_rng(seed)
    clock = datetime.fromisoformat(start)
    name = f"{clock:%Y%m%dT%H%M%S}-{seed:06x}"

    def record(
        workload: Workload, config: Config, phase: Phase, outcome: Outcome,
        relative: float | None,
    ) -> Record:  # fmt: skip
        nonlocal clock
        clock += timedelta(seconds=outcome.total_s)
        return Record(
            workload, config, place, outcome, relative, phase, name, seed,
            clock.astimezone(UTC).isoformat(), VERSIONS,
        )  # fmt: skip

    def good(seconds: float, ratio: float) -> Outcome:
        spread = float(rng.gamma(2, 0.015))
        time = seconds * math.exp(rng.normal(0, 0.01))
        timing = Timing(time * 0.97, time, time * (1 - spread / 2), time * (1 + spread / 2), 200)
        measured = float(rng.uniform(0.1, 0.2))
        extra = float(rng.gamma(9, 0.012))
        return Outcome(
            "ok", timing, ratio, stopped=ratio > 2.5, build_s=extra, measure_s=measured,
            total_s=measured + extra, spread=spread,
        )  # fmt: skip

    for workload in workloads:
        own = np.random.default_rng(int(workload.kernel_id, 16) + workload.rows)
        taste = {knob: int(own.integers(len(values))) for knob, values in _VALUES.items()}
        if own.random() < 0.25:  # nothing to gain
            taste = {knob: values.index(DEFAULT[knob]) for knob, values in _VALUES.items()}
        weight = float(own.uniform(0.02, 0.15))
        base = max(2e-7, _time(workload) * float(own.uniform(1.3, 2.5)))

        def speed(config: dict, taste: dict = taste, weight: float = weight) -> float:
            far = [abs(_VALUES[k].index(config[k]) - best) for k, best in taste.items()]
            near = [abs(_VALUES[k].index(DEFAULT[k]) - best) for k, best in taste.items()]
            return math.exp(weight * (sum(far) - sum(near)))

        yield record(workload, dict(DEFAULT), "default", good(base, 1.0), 1.0)
        known: dict[str, tuple[float, dict]] = {
            str(r.config): (r.relative, dict(r.config))
            for r in history
            if r.workload == workload and r.phase == "search" and r.relative is not None
        }
        for trial in range(trials):
            config = {k: v[int(rng.integers(len(v)))] for k, v in _VALUES.items()}
            if known and rng.random() < trial / trials:  # a search steps from the best
                config = dict(min(known.values(), key=lambda item: item[0])[1])
                knob = list(_VALUES)[int(rng.integers(3))]
                config[knob] = _VALUES[knob][int(rng.integers(len(_VALUES[knob])))]
            config = DEFAULT | config
            if rng.random() < failure_rate:
                status, message = _FAILURES[int(rng.integers(len(_FAILURES)))]
                outcome = Outcome(status, message=message, build_s=0.1, total_s=0.2)
                yield record(workload, config, "search", outcome, None)
                continue
            relative = speed(config) * math.exp(rng.normal(0, 0.02))
            known[str(config)] = (relative, config)
            yield record(workload, config, "search", good(base * relative, relative), relative)
        if finals:
            ranked = sorted(known.values(), key=lambda item: item[0])
            ranked = [item for item in ranked if item[1] != DEFAULT][:3]
            for config in (dict(DEFAULT), *(config for _, config in ranked)):
                relative = 1.0 if config == DEFAULT else speed(config)
                yield record(workload, config, "final", good(base * relative, relative), relative)


def _time(workload: Workload) -> float:
    cost = workload.cost
    return max(cost["lookups"] / 2e11, cost["flops"] / 2.2e11, cost["bytes"] / 1.5e10)


def write_log(folder: Path, records: Iterable[Record]) -> Path:
    """Append records to their logs in a folder; return the folder."""
    for record in records:
        path = path_for(folder, record.place.cpu, record.place.isa)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(to_line(record) + "\n")
    return folder


def two_sessions() -> list[Record]:
    """A session over everything, and one that goes on with some of it a day later."""
    first = list(session())
    later = "2026-11-21T10:00:00+00:00"
    return first + list(session(WORKLOADS[:9], seed=1, trials=24, start=later, earlier=first))
