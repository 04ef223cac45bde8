"""Which processor this is, under the name that LLVM has for it: the folder of its tuning logs.

LLVM goes by family and model, which hypervisors fake: a guest on Sapphire Rapids may be told that
it runs on a Rocket Lake, and has AMX all the same. So the name only counts if it fits the flags.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import TargetError, suggest
from lutcc.runtime import cpu
from lutcc.tuning.records import Place

CPU_NAME_VARIABLE = "LUTCC_CPU_NAME"

#: LLVM's processors of each vendor, the oldest first.
PROCESSORS: dict[str, tuple[str, ...]] = {
    "GenuineIntel": (
        "haswell", "broadwell", "skylake", "skylake-avx512", "cascadelake", "cannonlake",
        "icelake-client", "cooperlake", "icelake-server", "tigerlake", "rocketlake", "alderlake",
        "raptorlake", "sapphirerapids", "emeraldrapids", "sierraforest", "arrowlake", "lunarlake",
        "graniterapids", "clearwaterforest", "novalake", "diamondrapids",
    ),
    "AuthenticAMD": ("znver1", "znver2", "znver3", "znver4", "znver5"),
}  # fmt: skip
_GENERIC = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")

# LLVM's name of a feature -> the flag of /proc/cpuinfo.
_LEVELS = {
    "avx2": "avx2", "fma": "fma", "avx512f": "avx512f", "avx512bw": "avx512bw",
    "avx512cd": "avx512cd", "avx512dq": "avx512dq", "avx512vl": "avx512vl",
    "avx512vbmi": "avx512vbmi", "avx512vnni": "avx512_vnni",
}  # fmt: skip
_VECTOR = {
    "avx512ifma": "avx512ifma", "avx512vbmi2": "avx512_vbmi2", "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq", "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16", "avx512vp2intersect": "avx512_vp2intersect",
    "avxvnni": "avx_vnni", "gfni": "gfni", "vaes": "vaes", "vpclmulqdq": "vpclmulqdq",
}  # fmt: skip
_MATRIX = {"amx-tile": "amx_tile", "amx-int8": "amx_int8", "amx-bf16": "amx_bf16"}
_MINOR = {
    "adx": "adx", "rdseed": "rdseed", "clflushopt": "clflushopt", "clwb": "clwb", "sha": "sha_ni",
    "rdpid": "rdpid", "wbnoinvd": "wbnoinvd", "movdiri": "movdiri", "movdir64b": "movdir64b",
    "serialize": "serialize", "cldemote": "cldemote", "prfchw": "3dnowprefetch", "sse4a": "sse4a",
}  # fmt: skip
_TELLING = {**_LEVELS, **_VECTOR, **_MATRIX}


def cpu_name() -> str:
    """Return LLVM's name of this machine's processor.

    LLVM's own answer counts if it fits the processor's flags; if not, the processor of the same
    vendor that fits them best does. The environment variable ``LUTCC_CPU_NAME`` overrides both.

    Raises
    ------
    TargetError
        If the variable holds a name that LLVM does not know.

    Examples
    --------
    >>> cpu_name()  # doctest: +SKIP
    'znver5'
    """
    given = os.environ.get(CPU_NAME_VARIABLE, "").strip()
    if not given:
        return _detected()
    if given not in _known_names():
        raise TargetError(
            f"LLVM knows no processor {given!r}",
            where=f"environment variable {CPU_NAME_VARIABLE}",
            fix=f"unset it, or give a name of LLVM ({suggest(given, _known_names())})",
        )
    return given


def place(isa: str, mcpu: str | None = None) -> Place:
    """Return this machine as the place where kernels of a level run.

    Parameters
    ----------
    isa
        Instruction-set level of the kernels.
    mcpu
        CPU that LLVM orders instructions for, or None.
    """
    telling = cpu.flags(capped=False) & set(_TELLING.values())
    return Place(cpu_name(), cpu.model_name(), isa, mcpu, tuple(sorted(telling)))


def vendor_of(name: str) -> str | None:
    """Return the vendor of a processor that LLVM calls ``name``, or None where it is not listed.

    Examples
    --------
    >>> vendor_of("znver4")
    'AuthenticAMD'
    """
    return next((vendor for vendor, names in PROCESSORS.items() if name in names), None)


def name_for(
    vendor: str,
    flags: Collection[str],
    told: str,
    features_of: Callable[[str], Collection[str]],
) -> str:
    """Return the name of the processor with these flags.

    Parameters
    ----------
    vendor
        ``vendor_id`` of ``/proc/cpuinfo``.
    flags
        Its flags.
    told
        What LLVM says by family and model.
    features_of
        LLVM's features of a processor.
    """
    have = {llvm for llvm, flag in _TELLING.items() if flag in flags}

    def telling(name: str) -> set[str]:
        return set(_TELLING) & set(features_of(name))

    # A guest may be denied AMX and the like on a true processor, but has nothing beyond it.
    if told not in (*_GENERIC, "generic"):
        claimed = telling(told)
        if claimed & set(_LEVELS) <= have <= claimed:
            return told
    listed = PROCESSORS.get(vendor, ())
    names = [name for name in listed if telling(name) - set(_MATRIX) <= have]
    if not names:
        return [n for n in _GENERIC if telling(n) <= have][-1]

    def fit(name: str) -> tuple[int, int, int]:
        features = features_of(name)
        minor = sum((llvm in features) == (flag in flags) for llvm, flag in _MINOR.items())
        return len(telling(name) & have), minor, -listed.index(name)

    return max(names, key=fit)


@functools.cache
def _detected() -> str:
    """Ask LLVM and the flags."""
    import_tvm()
    from tvm.target import codegen

    flags = cpu.flags(capped=False)
    told = str(codegen.llvm_get_system_cpu())
    if not flags:
        return told
    return name_for(cpu.vendor(), flags, told, llvm_features)


@functools.cache
def llvm_features(name: str) -> frozenset[str]:
    """Return LLVM's features of a processor it knows."""
    import_tvm()
    from tvm.target import Target, codegen

    target = Target({"kind": "llvm", "mcpu": name})
    return frozenset(str(feature) for feature in codegen.llvm_get_cpu_features(target))


@functools.cache
def _known_names() -> frozenset[str]:
    import_tvm()
    from tvm.target import Target, codegen

    generic = Target({"kind": "llvm", "mcpu": "x86-64"})
    return frozenset(str(name) for name in codegen.llvm_get_cpu_archlist(generic))
