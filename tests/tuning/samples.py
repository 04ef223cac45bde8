"""Records for the tests of logs: real in form, with numbers as the test wants them."""

from __future__ import annotations

from typing import Any

from lutcc.schedules.space import Config
from lutcc.tuning.records import Outcome, Phase, Place, Record, Timing
from lutcc.tuning.workload import Workload

DEFAULT: Config = {"stage.row_block": 256, "accumulate.tile_m": 4}
FASTER: Config = {"stage.row_block": 512, "accumulate.tile_m": 4}
FASTEST: Config = {"stage.row_block": 1024, "accumulate.tile_m": 8}


def workload(rows: int = 16, kernel: str = "lutcc.ir kernel", **changes: Any) -> Workload:
    values: dict[str, Any] = {
        "kind": "stage",
        "op": "tree_encode+lut_accumulate+lut_dequantize",
        "kernel": kernel,
        "rows": rows,
        "dims": {"columns_in": 64.0, "columns_out": 32.0, "codebooks": 16.0, "entries": 16.0},
        "cost": {"lookups": 8192.0, "flops": 0.0, "bytes": 65536.0},
    }
    return Workload(**values | changes)


def place(cpu: str = "znver5", isa: str = "avx512") -> Place:
    return Place(cpu, "Some CPU", isa, None, ("avx2", "avx512f"))


def record(
    relative: float | None = 1.0,
    config: Config = DEFAULT,
    phase: Phase = "search",
    *,
    session: str = "s1",
    time: str = "2026-01-01T00:00:00+00:00",
    of: Workload | None = None,
    at: Place | None = None,
    status: Any = "ok",
    stopped: bool = False,
    seed: int = 0,
) -> Record:
    timing = None
    if status == "ok":
        seconds = 1e-4 * (relative or 1.0)
        timing = Timing(seconds, seconds * 1.1, seconds * 1.05, seconds * 1.2, 50)
    outcome = Outcome(
        status, timing, relative, stopped, "" if status == "ok" else "it broke", 0.1, 0.2, 0.35, 0.1
    )
    return Record(
        of or workload(),
        dict(config),
        at or place(),
        outcome,
        relative if status == "ok" else None,
        phase,
        session,
        seed,
        time,
        {"lutcc": "0.1.0"},
    )
