"""One trial as it is logged: what was run, where, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias

from lutcc.schedules.space import Config, config_id
from lutcc.tuning.workload import Workload

SCHEMA_VERSION = 1
Status: TypeAlias = Literal["ok", "compile_error", "wrong_result", "timeout", "crash"]
Phase: TypeAlias = Literal["default", "search", "final"]


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: best, median and percentiles of ``calls`` timed calls."""

    best: float
    median: float
    p20: float
    p80: float
    calls: int

    @property
    def spread(self) -> float:
        """(p80 - p20) / median: how noisy the machine was."""
        return (self.p80 - self.p20) / self.median


@dataclass(frozen=True)
class Place:
    """The processor a trial ran on and the code it was built for.

    Attributes
    ----------
    cpu
        LLVM's name of the processor (``znver5``); the folder of the log.
    model
        What the processor calls itself.
    isa, mcpu
        Instruction-set level of the kernels; CPU that LLVM scheduled instructions for, or None.
    features
        Flags of the processor that decide between kernels, sorted.
    """

    cpu: str
    model: str
    isa: str
    mcpu: str | None
    features: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What the runner says of one candidate.

    Attributes
    ----------
    status
        ``ok`` only if the result was right.
    timing
        Of the candidate, where it ran to the end.
    ratio
        Time of the candidate over that of the incumbent, both interleaved in this very trial: the
        median over rounds. Below 1 is faster.
    stopped
        The candidate was so slow that it was not measured to the end.
    message
        Of an error: the last telling line.
    build_s, measure_s, total_s
        Seconds of wall time: to build; to time both; all in all.
    spread
        (p80 - p20) / median of the incumbent, the noise of the machine.
    """

    status: Status
    timing: Timing | None = None
    ratio: float | None = None
    stopped: bool = False
    message: str = ""
    build_s: float = 0.0
    measure_s: float = 0.0
    total_s: float = 0.0
    spread: float = 0.0

    @property
    def overhead_s(self) -> float:
        """What a trial costs beyond the measurement."""
        return self.total_s - self.measure_s


@dataclass(frozen=True)
class Record:
    """One line of a tuning log.

    Attributes
    ----------
    workload, config, place
        What was run where.
    outcome
        What came of it.
    relative
        Time over that of the default config on the same machine (product of interleaved ratios);
        comparable between sessions where seconds are not. None where the trial failed.
    phase
        ``default``: the default config's own measurement; ``search``: a trial; ``final``: one of
        the best, measured again and longer at the end of a session.
    session, seed
        Which session made it.
    time
        ISO 8601, UTC.
    versions
        Of lutcc, TVM, ...
    """

    workload: Workload
    config: Config
    place: Place
    outcome: Outcome
    relative: float | None
    phase: Phase
    session: str
    seed: int
    time: str
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def config_id(self) -> str:
        """Identity of the config."""
        return config_id(self.config)

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        timing = self.outcome.timing
        return {
            "schema": SCHEMA_VERSION,
            "op": self.workload.op,
            "workload_id": self.workload.id,
            "workload": self.workload.to_json(),
            "config_id": self.config_id,
            "config": dict(self.config),
            "target": {
                "cpu": self.place.cpu,
                "model": self.place.model,
                "isa": self.place.isa,
                "mcpu": self.place.mcpu,
                "features": list(self.place.features),
                "threads": self.workload.threads,
            },
            "status": self.outcome.status,
            "phase": self.phase,
            "seconds": None
            if timing is None
            else {
                "best": timing.best,
                "median": timing.median,
                "p20": timing.p20,
                "p80": timing.p80,
                "calls": timing.calls,
            },
            "relative": self.relative,
            "ratio": self.outcome.ratio,
            "stopped": self.outcome.stopped,
            "spread": self.outcome.spread,
            "message": self.outcome.message,
            "build_s": self.outcome.build_s,
            "measure_s": self.outcome.measure_s,
            "total_s": self.outcome.total_s,
            "session": self.session,
            "seed": self.seed,
            "time": self.time,
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the record that :meth:`to_json` described; ``data`` is valid by the schema."""
        target, seconds = data["target"], data["seconds"]
        return cls(
            workload=Workload.from_json(data["workload"]),
            config=data["config"],
            place=Place(
                target["cpu"],
                target["model"],
                target["isa"],
                target["mcpu"],
                tuple(target["features"]),
            ),
            outcome=Outcome(
                status=data["status"],
                timing=None if seconds is None else Timing(**seconds),
                ratio=data["ratio"],
                stopped=data["stopped"],
                message=data["message"],
                build_s=data["build_s"],
                measure_s=data["measure_s"],
                total_s=data["total_s"],
                spread=data["spread"],
            ),
            relative=data["relative"],
            phase=data["phase"],
            session=data["session"],
            seed=data["seed"],
            time=data["time"],
            versions=data["versions"],
        )
