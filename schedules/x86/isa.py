"""The x86 instruction-set levels that kernels are made for."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lutcc.errors import TargetError, suggest


@dataclass(frozen=True, slots=True)
class Isa:
    """An instruction-set level: what LLVM may use and what a CPU must have.

    Attributes
    ----------
    name
        ``avx2``, ``avx512``, ``avx512_vbmi_vnni`` or ``avx512_bf16``.
    mcpu, mattr
        LLVM's CPU and feature list for code of this level.
    features
        CPU flags (names of ``/proc/cpuinfo``) that a machine must have to run that code.
    vector_bytes
        Width of a byte vector in look-ups.
    has_vbmi_vnni
        Whether ``vpermb`` and ``vpdpbusd`` are there.
    has_bf16
        Whether ``vdpbf16ps`` is there.
    emulated
        Whether code of this level runs on AVX2, see :meth:`emulation`.
    """

    name: str
    mcpu: str
    mattr: tuple[str, ...]
    features: tuple[str, ...]
    vector_bytes: int
    has_vbmi_vnni: bool = False
    has_bf16: bool = False
    emulated: bool = False

    @property
    def has_avx512(self) -> bool:
        """Whether 512-bit registers are there."""
        return self.vector_bytes == 64

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels whose instructions this one has: those below it, the least first, and itself."""
        names = list(ISAS)
        return tuple(names[: names.index(self.name.removesuffix(_EMULATED)) + 1])

    @property
    def tuned_as(self) -> tuple[str, ...]:
        """Levels whose tuning records serve this one, itself first.

        What ``avx512_bf16`` adds matters to bfloat16 products only; all other kernels are those of
        the level below.
        """
        return (self.name, AVX512_VBMI_VNNI.name) if self.has_bf16 else (self.name,)

    def emulation(self) -> Isa:
        """Return this level made of AVX2 instructions: for tests of its kernels on any CPU.

        Its name and its features exist nowhere else: no target string asks for it, and an
        artifact made for it does not load.
        """
        return replace(
            self,
            name=self.name + _EMULATED,
            mcpu=AVX2.mcpu,
            mattr=AVX2.mattr,
            features=(*AVX2.features, "lutcc_emulation"),
            emulated=True,
        )

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
    ("+avx512vbmi", "+avx512vbmi2", "+avx512vnni", "-prefer-256-bit"),
    (*_V4, "avx512vbmi", "avx512_vbmi2", "avx512_vnni"),
    64,
    has_vbmi_vnni=True,
)
AVX512_BF16 = Isa(
    "avx512_bf16",
    "x86-64-v4",
    ("+avx512vbmi", "+avx512vbmi2", "+avx512vnni", "+avx512bf16", "-prefer-256-bit"),
    (*AVX512_VBMI_VNNI.features, "avx512_bf16"),
    64,
    has_vbmi_vnni=True,
    has_bf16=True,
)

#: All levels, the least first.
ISAS: dict[str, Isa] = {isa.name: isa for isa in (AVX2, AVX512, AVX512_VBMI_VNNI, AVX512_BF16)}

_EMULATED = "+emulated"


def isa_by_name(name: str) -> Isa:
    """Return the level called ``name``, or its emulation for ``name`` of :meth:`Isa.emulation`.

    Raises
    ------
    TargetError
        If there is none; the nearest names are suggested.
    """
    base = name.removesuffix(_EMULATED)
    try:
        return ISAS[name] if base == name else ISAS[base].emulation()
    except KeyError:
        raise TargetError(
            f"there is no instruction-set level {name!r}", fix=suggest(name, ISAS)
        ) from None
