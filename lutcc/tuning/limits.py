"""The roofline of a processor: how fast one core looks up, multiplies and reads at best.

Measured limits are kept beside the logs they belong to, in ``<log folder>/<cpu>/limits.json``, one
entry for each instruction-set level. Where nothing was measured, :func:`assumed_limits` states what
a plain core of the level does; whoever shows them says that they are assumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

from lutcc.bench.limits import MIXES, PRODUCTS, limit_loop, read_loop, scan_limit
from lutcc.bench.machine import caches
from lutcc.bench.timing import burst, interleave
from lutcc.errors import InputError
from lutcc.runtime import cpu
from lutcc.runtime.files import write_text
from lutcc.schedules.x86.isa import isa_by_name
from lutcc.tuning.workload import Workload

Resource: TypeAlias = Literal["look-ups", "arithmetic", "memory"]

LIMITS_FILE = "limits.json"
_SCHEMA = 1
#: Working sets that reading is timed at; between them the rate is interpolated.
READ_SIZES = tuple(1 << k for k in range(13, 28))
#: What a gather keeps of its tables near the core.
_GATHER_BYTES = 256 << 10
_CLOCK = 3.0e9  # what assumed limits take a core to run at


@dataclass(frozen=True)
class Bound:
    """The least time that a kernel can take, and what takes it.

    Attributes
    ----------
    seconds
        Of one call.
    resource
        ``look-ups``, ``arithmetic`` or ``memory``: the one that takes longest.
    detail
        The limit in words, with its rate.
    """

    seconds: float
    resource: Resource
    detail: str


@dataclass(frozen=True)
class Limits:
    """What one core does at best.

    Attributes
    ----------
    isa, model
        Level of the instructions; what the processor calls itself.
    lookups
        Instruction mix of a scan -> table look-ups a second.
    flops
        float32 operations a second, a multiply-add being two.
    reads
        (bytes of the working set, bytes read a second), ascending.
    caches
        Name -> bytes of the data caches; may be empty.
    measured
        When (ISO 8601, UTC); None: the rates are assumed.
    """

    isa: str
    model: str
    lookups: Mapping[str, float]
    flops: float
    reads: tuple[tuple[int, float], ...]
    caches: Mapping[str, int]
    measured: str | None

    def read_rate(self, nbytes: float) -> float:
        """Return the bytes a second at which a working set of ``nbytes`` is read."""
        sizes = [size for size, _ in self.reads]
        rates = [rate for _, rate in self.reads]
        if nbytes <= sizes[0]:
            return rates[0]
        for i in range(1, len(sizes)):
            if nbytes <= sizes[i]:
                share = math.log(nbytes / sizes[i - 1]) / math.log(sizes[i] / sizes[i - 1])
                return rates[i - 1] ** (1 - share) * rates[i] ** share
        return rates[-1]

    def level(self, nbytes: float) -> str:
        """Return the name of the cache that holds ``nbytes``, or ``memory``."""
        fitting = (name for name, size in sorted(self.caches.items()) if nbytes <= size)
        return next(fitting, "memory") if self.caches else "memory"

    def bound(self, workload: Workload) -> Bound | None:
        """Return the least time of a workload, or None if its cost is not known.

        Several threads have that many times the limits of one core, and share the working set.
        """
        threads = max(1, workload.threads)
        bounds: list[Bound] = []
        lookups = workload.cost.get("lookups", 0)
        if lookups and (itemsize := workload.dims.get("itemsize", 0)):
            rate = self.read_rate(_GATHER_BYTES) * threads
            detail = f"table rows from {self.level(_GATHER_BYTES)}: {rate * 1e-9:.0f} GB/s"
            bounds.append(Bound(lookups * itemsize / rate, "look-ups", detail))
        elif lookups:
            mix = scan_limit(
                self.isa,
                mean=bool(workload.dims.get("mean", 0)),
                entries=int(workload.dims.get("entries", 16)),
            ).name
            rate = self.lookups[mix] * threads
            detail = f"{mix}: {rate * 1e-9:.0f} G look-ups/s"
            bounds.append(Bound(lookups / rate, "look-ups", detail))
        if flops := workload.cost.get("flops", 0):
            itemsize = workload.dims.get("multiplied", 4) or 4  # narrow ones: more at a time
            rate = self.flops * threads * 4 / itemsize
            detail = f"multiply-adds: {rate * 1e-9:.0f} GFLOP/s"
            bounds.append(Bound(flops / rate, "arithmetic", detail))
        if nbytes := workload.cost.get("bytes", 0):
            own = nbytes / threads if workload.cache == "hot" else math.inf
            rate = self.read_rate(own) * threads
            detail = f"reading from {self.level(own)}: {rate * 1e-9:.0f} GB/s"
            bounds.append(Bound(nbytes / rate, "memory", detail))
        return max(bounds, key=lambda b: b.seconds, default=None)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the limits that :meth:`to_json` described.

        Raises
        ------
        KeyError, TypeError, ValueError
            If they are not of that form.
        """
        reads = sorted((int(size), _rate(rate)) for size, rate in data["reads"])
        if not reads or reads[0][0] <= 0:
            raise ValueError("no reading rates")
        isa = isa_by_name(data["isa"]).name
        lookups = {str(name): _rate(rate) for name, rate in data["lookups"].items()}
        if missing := set(_mixes(isa)) - set(lookups):
            raise ValueError(f"no rate of {', '.join(sorted(missing))}")
        return cls(
            isa=isa,
            model=str(data["model"]),
            lookups=lookups,
            flops=_rate(data["flops"]),
            reads=tuple(reads),
            caches={str(name): int(size) for name, size in data["caches"].items()},
            measured=data["measured"] and str(data["measured"]),
        )


def _rate(value: Any) -> float:
    rate = float(value)
    if not 0 < rate < math.inf:
        raise ValueError(f"{value!r} is no rate")
    return rate


def _mixes(isa: str) -> tuple[str, ...]:
    """Return the mixes that bound some scan of a level."""
    cases = [(True, 16), (False, 16), (False, 128)]
    return tuple(dict.fromkeys(scan_limit(isa, mean=m, entries=k).name for m, k in cases))


def measure_limits(isa: str, *, seconds: float = 0.01, rounds: int = 5) -> Limits:
    """Time the loops of a level on this machine, in turns; takes about a second.

    Bind the process to one core first (:func:`lutcc.bench.timing.pin_to_core`), as a session does.

    Parameters
    ----------
    isa
        A level that this processor has.
    seconds, rounds
        Length of one turn and number of turns of each loop.

    Raises
    ------
    InputError
        If this processor does not have the level.

    Examples
    --------
    >>> measure_limits("avx2").flops > 1e9  # doctest: +SKIP
    True
    """
    if isa not in cpu.supported_isas():
        raise InputError(
            f"this processor has no {isa}",
            where="measure_limits",
            fix=f"measure {', '.join(cpu.supported_isas()) or 'on another machine'}",
        )
    loops = {name: limit_loop(name) for name in (*_mixes(isa), PRODUCTS[isa].name)}
    loops |= {f"read {size}": read_loop(isa, size) for size in READ_SIZES}
    times = interleave(
        {name: lambda s, once=once: burst(once, s) for name, (once, _) in loops.items()},
        seconds=seconds,
        rounds=rounds,
    )
    rates = {name: work / times[name].best for name, (_, work) in loops.items()}
    return Limits(
        isa=isa,
        model=cpu.model_name(),
        lookups={name: rates[name] for name in _mixes(isa)},
        flops=rates[PRODUCTS[isa].name],
        reads=tuple((size, rates[f"read {size}"]) for size in READ_SIZES),
        caches={name: _bytes(text) for name, text in caches().items()},
        measured=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _bytes(size: str) -> int:
    """Return the bytes of a cache's size as Linux writes it (``48K``)."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return int(size.rstrip("KMG")) * units.get(size[-1:], 1)


def assumed_limits(isa: str) -> Limits:
    """Return what a core of a level does at 3 GHz with one port for permutes, two for the rest.

    Examples
    --------
    >>> assumed_limits("avx2").measured is None
    True
    """
    wide = isa_by_name(isa).has_avx512
    vector = 64 if wide else 32
    # Cycles of each body: instructions over the ports that take them.
    cycles = {name: max(1.0, len(MIXES[name].body) / 2) for name in _mixes(isa)}
    return Limits(
        isa=isa,
        model="assumed: 3 GHz, one permute and two other vector instructions a cycle",
        lookups={name: MIXES[name].work / cycles[name] * _CLOCK for name in cycles},
        flops=vector * _CLOCK,
        reads=(
            (32 << 10, 2 * vector * _CLOCK),
            (1 << 20, 48 * _CLOCK),
            (16 << 20, 10 * _CLOCK),
            (256 << 20, 5 * _CLOCK),
        ),
        caches={"L1": 32 << 10, "L2": 1 << 20, "L3": 16 << 20},
        measured=None,
    )


def load_limits(folder: str | Path) -> dict[str, Limits]:
    """Return the limits kept in a folder of logs, by level; empty if there are none.

    Raises
    ------
    InputError
        If the file is there but cannot be understood.

    Examples
    --------
    >>> load_limits("tuning_logs/no-such-cpu")
    {}
    """
    path = Path(folder) / LIMITS_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        data = json.loads(text)
        if data["schema"] != _SCHEMA:
            raise ValueError(f"its schema is {data['schema']!r}, not {_SCHEMA}")
        return {entry.isa: entry for entry in map(Limits.from_json, data["levels"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"does not hold limits ({type(error).__name__}: {error})",
            where=str(path),
            fix="delete the file and measure again: lutcc report tuning --measure",
        ) from error


def save_limits(folder: str | Path, limits: Limits) -> Path:
    """Keep limits in a folder of logs, beside those of other levels; return the file.

    Examples
    --------
    >>> save_limits("tuning_logs/znver5", measure_limits("avx512"))  # doctest: +SKIP
    PosixPath('tuning_logs/znver5/limits.json')
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    known = load_limits(folder) | {limits.isa: limits}
    data = {"schema": _SCHEMA, "levels": [known[isa].to_json() for isa in sorted(known)]}
    path = folder / LIMITS_FILE
    write_text(path, json.dumps(data, indent=1) + "\n")
    return path
