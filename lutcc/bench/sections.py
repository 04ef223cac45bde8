"""The sections of ``lutcc bench`` that run in this process: limits and kernels, as rows."""

from __future__ import annotations

from collections.abc import Callable

from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import Row
from lutcc.bench.timing import burst, interleave
from lutcc.errors import UsageError, suggest
from lutcc.runtime import cpu

COPIES = {"256 KiB": 2**18, "4 MiB": 2**22, "256 MiB": 2**28}


def limit_rows(options: BenchOptions) -> list[Row]:
    """Measure the register-only loops of every level that the CPU has, and memcpy."""
    from lutcc.bench.limits import MIXES, limit_loop, memcpy

    levels = [options.isa] if options.isa else list(cpu.supported_isas())
    calls: dict[str, tuple[Callable[[], object], float, str]] = {}
    for name, mix in MIXES.items():
        if mix.isa in levels:
            loop, lookups = limit_loop(name)
            calls[name] = (loop, lookups, "G look-ups/s")
    for name, nbytes in COPIES.items():
        if not (options.quick and nbytes > 2**24):
            calls[f"memcpy {name}"] = (memcpy(nbytes), nbytes, "GB/s copied")

    def turn(call: Callable[[], object]) -> Callable[[float], list[int]]:
        return lambda seconds: burst(call, seconds)

    times = interleave(
        {name: turn(call) for name, (call, _, _) in calls.items()},
        seconds=options.seconds,
        rounds=options.rounds,
    )
    return [
        {
            "limit": name,
            "isa": MIXES[name].isa if name in MIXES else None,
            "best": times[name].best,
            "median": times[name].median,
            "rate": work / times[name].best / 1e9,
            "unit": unit,
        }
        for name, (_, work, unit) in calls.items()
    ]


def kernel_rows(
    options: BenchOptions, only: str | None, progress: Callable[[str], None]
) -> list[Row]:
    """Run the benchmarks of every op, or of those whose name contains ``only``.

    Raises
    ------
    UsageError
        When no op's name contains ``only``.
    """
    from lutcc.bench.kernels import BENCHMARKS

    chosen = [name for name in BENCHMARKS if only is None or only in name]
    if not chosen:
        raise UsageError(
            f"no kernel's name contains {only!r}",
            where="--only",
            fix=suggest(only or "", BENCHMARKS),
        )
    rows: list[Row] = []
    for name in chosen:
        progress(f"kernel {name}")
        rows += BENCHMARKS[name](options)
    return rows
