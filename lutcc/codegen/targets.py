"""Target names: ``host``, an instruction-set level, a CPU that LLVM knows, or several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from difflib import get_close_matches

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import TargetError
from lutcc.schedules.x86.isa import ISAS, Isa

_ALIASES = {"x86-64-v3": "avx2", "x86-64-v4": "avx512"}


@dataclass(frozen=True, slots=True)
class Target:
    """One variant of an artifact.

    Attributes
    ----------
    isa
        The instruction-set level that decides which kernels are made.
    mcpu
        LLVM CPU to tune instruction order for, or None for the level's generic one.
    host
        Whether it was asked for as ``host``: tuning logs of this very processor count first.
    """

    isa: Isa
    mcpu: str | None = None
    host: bool = False


def parse_targets(text: str) -> list[Target]:
    """Return the variants that a target string asks for, the widest level last.

    Parameters
    ----------
    text
        ``host``; ``avx2``, ``avx512``, ``avx512_vbmi_vnni``, ``avx512_bf16``; a CPU name of LLVM
        such as ``znver5``; or several joined by commas.

    Raises
    ------
    TargetError
        For an unknown name, a CPU below AVX2, or two CPUs of one level.

    Examples
    --------
    >>> [t.isa.name for t in parse_targets("avx2,avx512")]
    ['avx2', 'avx512']
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise TargetError("no target is named", fix="write 'host', 'avx2', 'avx512' or a CPU name")
    chosen: dict[str, Target] = {}
    for name in names:
        target = _parse_one(name)
        other = chosen.get(target.isa.name)
        if other is not None and other.mcpu != target.mcpu:
            raise TargetError(
                f"{name!r} and {other.mcpu or 'generic'!r} are both of level {target.isa.name}",
                where="target",
                fix="compile two artifacts, one for each CPU",
            )
        chosen[target.isa.name] = replace(target, host=target.host or bool(other and other.host))
    return [chosen[isa] for isa in ISAS if isa in chosen]


def _parse_one(name: str) -> Target:
    name = _ALIASES.get(name, name)
    if name in ISAS:
        return Target(ISAS[name])
    if name == "host":
        from lutcc.runtime import cpu

        level = cpu.best_isa()
        if level is None:
            raise TargetError(
                "this machine has no AVX2, for which the narrowest kernels are made",
                where="target 'host'",
                fix="name the CPU that the artifact is for, e.g. --target avx2",
            )
        return Target(ISAS[level], host=True)
    return Target(_level_of_cpu(name), name)


def _near(name: str, cpus: list[str]) -> str:
    """Return the targets to choose from, after the names that ``name`` may be a typo of."""
    close = get_close_matches(name, [*cpus, *ISAS, *_ALIASES, "host"], cutoff=0.7)
    typo = f"did you mean {', '.join(map(repr, close))}? Or " if close else ""
    return f"{typo}use host, {', '.join(ISAS)}, or a CPU that LLVM knows, such as znver5"


def _level_of_cpu(name: str) -> Isa:
    import_tvm()
    from tvm.target import Target as TvmTarget
    from tvm.target import codegen

    generic = TvmTarget({"kind": "llvm", "mcpu": "x86-64"})
    known = [str(cpu) for cpu in codegen.llvm_get_cpu_archlist(generic)]
    if name not in known:
        raise TargetError(
            f"there is no target {name!r}",
            where="target",
            fix=_near(name, known),
        )
    has = {str(f) for f in codegen.llvm_get_cpu_features(TvmTarget({"kind": "llvm", "mcpu": name}))}
    wanted = {
        "avx2": {"avx2", "fma"},
        "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
        "avx512_vbmi_vnni": {"avx512bw", "avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512vl"},
        "avx512_bf16": {
            "avx512bw",
            "avx512vbmi",
            "avx512vbmi2",
            "avx512vnni",
            "avx512vl",
            "avx512bf16",
        },
    }
    levels = [isa for isa in ISAS if wanted[isa] <= has]
    if not levels:
        raise TargetError(
            f"{name!r} has no AVX2, for which the narrowest kernels are made",
            where="target",
            fix="choose a CPU of x86-64-v3 or above",
        )
    return ISAS[levels[-1]]
