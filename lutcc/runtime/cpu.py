"""What the processor can do: instruction-set levels, feature flags, cores.

Feature names are those of Linux's ``/proc/cpuinfo`` ("avx512_vnni", "abm", ...). A feature counts
if that file lists it for every processor and the processor itself reports it (:mod:`.cpuid`, or
NumPy's detection where that cannot be asked): under user-mode emulation the file is that of
another machine.

``LUTCC_MAX_ISA`` (``none`` or a level: ``avx2``, ``avx512``, ``avx512_vbmi_vnni``, ``avx512_bf16``)
makes this process behave as if the processor had no instruction beyond that level: for tests of the
other variants, and to rule a variant out in the field.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from lutcc.errors import TargetError, suggest
from lutcc.runtime import cpuid

_V3 = ("abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_VBMI_VNNI = (*_V4, "avx512vbmi", "avx512_vbmi2", "avx512_vnni")
_BF16 = (*_VBMI_VNNI, "avx512_bf16")

#: Instruction-set levels from worst to best, and the flags that each one needs.
ISA_FEATURES: dict[str, tuple[str, ...]] = {
    "avx2": _V3,
    "avx512": _V4,
    "avx512_vbmi_vnni": _VBMI_VNNI,
    "avx512_bf16": _BF16,
}

#: Level names, worst to best.
ISA_LEVELS: tuple[str, ...] = tuple(ISA_FEATURES)

MAX_ISA_VARIABLE = "LUTCC_MAX_ISA"

_NUMPY_NAMES = {
    "LZCNT": "abm",
    "AVX": "avx",
    "AVX2": "avx2",
    "F16C": "f16c",
    "FMA3": "fma",
    "AVX512F": "avx512f",
    "AVX512BW": "avx512bw",
    "AVX512CD": "avx512cd",
    "AVX512DQ": "avx512dq",
    "AVX512VL": "avx512vl",
    "AVX512VBMI": "avx512vbmi",
    "AVX512VBMI2": "avx512_vbmi2",
    "AVX512VNNI": "avx512_vnni",
    "AVX512BF16": "avx512_bf16",
}


@dataclass(frozen=True, slots=True)
class Host:
    """The processor of this machine as this process may use it."""

    model: str
    flags: frozenset[str]
    isa: str | None
    allowed_cpus: int
    physical_cores: int
    max_isa: str | None

    def to_dict(self) -> dict[str, object]:
        """Return the facts that a report needs; only the flags that some level asks for."""
        known = sorted(self.flags & set(_BF16))
        return {
            "model": self.model,
            "isa": self.isa,
            "features": known,
            "allowed_cpus": self.allowed_cpus,
            "physical_cores": self.physical_cores,
            "max_isa": self.max_isa,
        }


@lru_cache(maxsize=1)
def _cpuinfo() -> tuple[dict[str, str], ...]:
    """Return the fields of each logical processor in ``/proc/cpuinfo``; empty without one."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    return parse_cpuinfo(text)


def parse_cpuinfo(text: str) -> tuple[dict[str, str], ...]:
    r"""Split the text of ``/proc/cpuinfo`` into one dictionary per logical processor.

    Examples
    --------
    >>> parse_cpuinfo("processor : 0\nflags : fma avx2\n")
    ({'processor': '0', 'flags': 'fma avx2'},)
    """
    processors: list[dict[str, str]] = []
    for block in text.split("\n\n"):
        fields = {}
        for line in block.splitlines():
            key, colon, value = line.partition(":")
            if colon:
                fields[key.strip()] = value.strip()
        if "processor" in fields:
            processors.append(fields)
    return tuple(processors)


def _numpy_flags() -> tuple[frozenset[str], frozenset[str]]:
    """Return the flags that NumPy detects, and all that it looks for."""
    try:
        from numpy._core import _multiarray_umath as umath  # type: ignore[attr-defined]
    except ImportError:
        return frozenset(), frozenset()
    looked = getattr(umath, "__cpu_features__", {})
    known = {flag for name, flag in _NUMPY_NAMES.items() if name in looked}
    flags = {flag for name, flag in _NUMPY_NAMES.items() if looked.get(name)}
    assumed = {"abm", "bmi1", "bmi2", "movbe"}  # NumPy does not ask for all of them
    if flags >= {"avx2", "fma"}:  # every such processor has them
        flags |= assumed
    return frozenset(flags), frozenset(known | assumed)


def _listed_flags() -> frozenset[str] | None:
    """Return the flags that ``/proc/cpuinfo`` has for every processor (hybrid machines differ)."""
    processors = _cpuinfo()
    if not processors or "flags" not in processors[0]:
        return None
    return frozenset.intersection(
        *(frozenset(fields.get("flags", "").split()) for fields in processors)
    )


@lru_cache(maxsize=1)
def _machine_flags() -> frozenset[str]:
    said, known = cpuid.flags(), cpuid.KNOWN
    if said is None:
        said, known = _numpy_flags()
    listed = _listed_flags()
    return said if listed is None else listed - (known - said)


def max_isa() -> str | None:
    """Return the cap set through ``LUTCC_MAX_ISA``, or None.

    Raises
    ------
    TargetError
        When the variable holds an unknown level.
    """
    value = os.environ.get(MAX_ISA_VARIABLE, "").strip()
    if not value:
        return None
    if value != "none" and value not in ISA_FEATURES:
        raise TargetError(
            f"{value!r} is no instruction-set level",
            where=f"environment variable {MAX_ISA_VARIABLE}",
            fix=f"use none, {', '.join(ISA_LEVELS)}, or unset it ({suggest(value, ISA_LEVELS)})",
        )
    return value


def flags(*, capped: bool = True) -> frozenset[str]:
    """Return the processor's feature flags, capped by ``LUTCC_MAX_ISA`` unless told otherwise.

    Examples
    --------
    >>> from lutcc.runtime import cpu
    >>> isinstance(cpu.flags(), frozenset)
    True
    """
    found, cap = _machine_flags(), max_isa() if capped else None
    if cap is None or cap == ISA_LEVELS[-1]:
        return found
    allowed = set(ISA_FEATURES.get(cap, ()))
    beyond = set(_BF16) - allowed
    return frozenset(
        flag
        for flag in found
        if flag in allowed or not (flag in beyond or flag.startswith(("avx512", "avx10", "amx")))
    )


def missing(features: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``features`` that this processor lacks, in the given order."""
    have = flags()
    return tuple(feature for feature in features if feature not in have)


def supports(features: Iterable[str]) -> bool:
    """Tell whether this processor has all of ``features``."""
    return not missing(features)


def best_isa() -> str | None:
    """Return the best level this processor supports, or None when it has not even AVX2.

    Examples
    --------
    >>> from lutcc.runtime import cpu
    >>> cpu.best_isa() in (None, *cpu.ISA_LEVELS)
    True
    """
    have = flags()
    fitting = [isa for isa, needs in ISA_FEATURES.items() if have.issuperset(needs)]
    return fitting[-1] if fitting else None


def supported_isas() -> tuple[str, ...]:
    """Return all levels this processor supports, worst to best."""
    have = flags()
    return tuple(isa for isa, needs in ISA_FEATURES.items() if have.issuperset(needs))


def model_name() -> str:
    """Return the processor's marketing name."""
    processors = _cpuinfo()
    if processors and processors[0].get("model name"):
        return processors[0]["model name"]
    return platform.processor() or platform.machine() or "unknown processor"


def vendor() -> str:
    """Return who made the processor, as it says itself (``GenuineIntel``); empty if unknown."""
    processors = _cpuinfo()
    return processors[0].get("vendor_id", "") if processors else ""


def _cgroup_quota() -> int | None:
    """Return the CPU quota of this process's control group in whole CPUs, or None without one."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()[:2]
        return None if quota == "max" else max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def allowed_cpus() -> int:
    """Return how many logical CPUs this process may use (affinity mask and control-group quota)."""
    count = len(_affinity()) or 1
    quota = _cgroup_quota()
    return count if quota is None else min(count, quota)


def physical_cores() -> int:
    """Return how many distinct cores lie behind the allowed logical CPUs."""
    allowed = _affinity()
    cores = {
        (fields.get("physical id", "0"), fields["core id"])
        for fields in _cpuinfo()
        if "core id" in fields
        and fields["processor"].isdigit()
        and int(fields["processor"]) in allowed
    }
    return len(cores) or len(allowed) or 1


def host() -> Host:
    """Return everything lutcc wants to know of the processor.

    Examples
    --------
    >>> from lutcc.runtime import cpu
    >>> cpu.host().allowed_cpus >= 1
    True
    """
    return Host(model_name(), flags(), best_isa(), allowed_cpus(), physical_cores(), max_isa())
