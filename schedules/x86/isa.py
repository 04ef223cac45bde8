"""The three x86 instruction-set levels that kernels are made for."""

from __future__ import annotations

from dataclasses import dataclass

from lutcc.errors import TargetError, suggest


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction-set level: what LLVM may use and what a CPU must have.

    Attributes
    ----------
    name
        ``avx2``, ``avx512`` or ``avx512_vbmi_vnni``.
    mcpu, mattr
        LLVM's CPU and feature list for code of this level.
    features
        CPU flags (names of ``/proc/cpuinfo``) that a machine must have to run that code.
    vector_bytes
        Width of a byte vector in look-ups.
    """

    name: str
    mcpu: str
    mattr: tuple[str, ...]
    features: tuple[str, ...]
    vector_bytes: int

    @property
    def has_avx512(self) -> bool:
        """Whether 512-bit registers are there."""
        return self.vector_bytes == 64

    @property
    def has_vbmi_vnni(self) -> bool:
        """Whether ``vpermb`` and ``vpdpbusd`` are there."""
        return self.name == "avx512_vbmi_vnni"

    def llvm_target(self, mcpu: str | None = None) -> dict[str, object]:
        """Return TVM's target description; ``mcpu`` tunes for one CPU of this level."""
        return {"kind": "llvm", "mcpu": mcpu or self.mcpu, "mattr": list(self.mattr)}


_V3 = ("avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "popcnt", "sse4_2")
_V4 = (*_V3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")

AVX2 = Isa("avx2", "x86-64-v3", (), _V3, 32)
AVX512 = Isa("avx512", "x86-64-v4", ("-prefer-256-bit",), _V4, 64)
AVX512_VBMI_VNNI = Isa(
    "avx512_vbmi_vnni",
    "x86-64-v4",
    ("+avx512vbmi", "+avx512vnni", "-prefer-256-bit"),
    (*_V4, "avx512vbmi", "avx512_vnni"),
    64,
)

#: All levels, the least first.
ISAS: dict[str, Isa] = {isa.name: isa for isa in (AVX2, AVX512, AVX512_VBMI_VNNI)}


def isa_by_name(name: str) -> Isa:
    """Return the level called ``name``.

    Raises
    ------
    TargetError
        If there is none; the nearest names are suggested.
    """
    try:
        return ISAS[name]
    except KeyError:
        raise TargetError(
            f"there is no instruction-set level {name!r}", fix=suggest(name, ISAS)
        ) from None
