"""The name of the processor: LLVM's, unless the flags say otherwise."""

from __future__ import annotations

import time

import pytest

from lutcc.errors import TargetError
from lutcc.runtime import cpu
from lutcc.tuning import host

V3 = "fpu sse4_2 abm avx avx2 bmi1 bmi2 f16c fma movbe"
SKYLAKE = f"{V3} adx rdseed clflushopt 3dnowprefetch"
V4 = f"{SKYLAKE} clwb avx512f avx512bw avx512cd avx512dq avx512vl"
ICELAKE = (
    f"{V4} avx512ifma avx512vbmi avx512_vbmi2 avx512_vnni avx512_bitalg avx512_vpopcntdq gfni vaes "
    "vpclmulqdq sha_ni rdpid wbnoinvd"
)
SAPPHIRE = (
    f"{ICELAKE} avx_vnni avx512_bf16 avx512_fp16 movdiri movdir64b serialize cldemote "
    "amx_tile amx_int8 amx_bf16"
)
ZEN4 = f"{ICELAKE} avx512_bf16 sse4a"
ZEN5 = f"{ZEN4} avx_vnni avx512_vp2intersect movdiri movdir64b"


def cpuinfo(vendor: str, flags: str) -> str:
    block = f"processor : {{}}\nvendor_id : {vendor}\nmodel name : Some CPU\nflags : {flags}\n"
    return "\n".join(block.format(number) for number in range(2))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Return a function that makes this process believe in another processor."""
    from tvm.target import codegen

    def forget() -> None:
        cpu._machine_flags.cache_clear()
        host._detected.cache_clear()

    def become(vendor: str, flags: str, told: str) -> None:
        text = cpuinfo(vendor, flags)
        monkeypatch.setattr(cpu, "_cpuinfo", lambda: cpu.parse_cpuinfo(text))
        monkeypatch.setattr(cpu.cpuid, "flags", lambda: cpu.cpuid.KNOWN)
        monkeypatch.setattr(codegen, "llvm_get_system_cpu", lambda: told)
        monkeypatch.delenv(host.CPU_NAME_VARIABLE, raising=False)
        forget()

    yield become
    monkeypatch.undo()
    forget()


@pytest.mark.parametrize(
    ("vendor", "flags", "told", "name"),
    [
        ("AuthenticAMD", ZEN5, "znver5", "znver5"),
        ("AuthenticAMD", ZEN4, "znver4", "znver4"),
        ("GenuineIntel", SAPPHIRE, "sapphirerapids", "sapphirerapids"),
        ("GenuineIntel", SAPPHIRE, "emeraldrapids", "emeraldrapids"),
        ("GenuineIntel", V3, "haswell", "haswell"),
        ("GenuineIntel", SKYLAKE, "skylake", "skylake"),
    ],
)
def test_an_honest_machine(machine, vendor, flags, told, name):
    machine(vendor, flags, told)
    assert host.cpu_name() == name


@pytest.mark.parametrize(
    ("vendor", "flags", "told", "name"),
    [
        # too old for its flags
        ("GenuineIntel", SAPPHIRE, "rocketlake", "sapphirerapids"),
        ("GenuineIntel", ICELAKE, "skylake-avx512", "icelake-server"),
        ("AuthenticAMD", ZEN5, "znver3", "znver5"),
        ("AuthenticAMD", ZEN4, "x86-64", "znver4"),
        # too new for its flags: a guest without AVX-512, or without any
        ("GenuineIntel", SKYLAKE, "sapphirerapids", "skylake"),
        ("AuthenticAMD", SKYLAKE + " sha_ni sse4a", "znver5", "znver1"),
    ],
)
def test_a_hypervisor_that_lies(machine, vendor, flags, told, name):
    machine(vendor, flags, told)
    assert host.cpu_name() == name


def test_a_guest_without_amx_keeps_its_name(machine):
    flags = SAPPHIRE.replace(" amx_tile amx_int8 amx_bf16", "")
    machine("GenuineIntel", flags, "sapphirerapids")
    assert host.cpu_name() == "sapphirerapids"
    machine("GenuineIntel", flags, "rocketlake")
    assert host.cpu_name() == "sapphirerapids"


@pytest.mark.parametrize(
    ("flags", "told", "name"),
    [
        (ICELAKE, "generic", "x86-64-v4"),
        (SKYLAKE, "x86-64", "x86-64-v3"),
        ("fpu sse4_2", "x86-64-v2", "x86-64-v2"),
        (ZEN5, "znver5", "znver5"),  # LLVM knows it by its features
    ],
)
def test_an_unknown_vendor(machine, flags, told, name):
    machine("MysteryChips", flags, told)
    assert host.cpu_name() == name


def test_without_cpuinfo_llvm_is_believed(machine, monkeypatch):
    machine("GenuineIntel", V3, "haswell")
    monkeypatch.setattr(cpu, "_machine_flags", frozenset)
    assert host.cpu_name() == "haswell"
    host._detected.cache_clear()
    monkeypatch.undo()


def test_the_variable_overrides(machine, monkeypatch):
    machine("AuthenticAMD", ZEN5, "znver5")
    monkeypatch.setenv(host.CPU_NAME_VARIABLE, "znver4")
    assert host.cpu_name() == "znver4"
    monkeypatch.setenv(host.CPU_NAME_VARIABLE, "znver55")
    with pytest.raises(TargetError, match=r"LUTCC_CPU_NAME.*znver55[\s\S]*znver5"):
        host.cpu_name()


def test_place(machine, monkeypatch):
    machine("GenuineIntel", SAPPHIRE, "rocketlake")
    monkeypatch.setenv(cpu.MAX_ISA_VARIABLE, "avx2")
    place = host.place("avx2", "skylake")
    assert (place.cpu, place.model, place.isa, place.mcpu) == (
        "sapphirerapids",
        "Some CPU",
        "avx2",
        "skylake",
    )
    assert {"amx_tile", "avx512_vnni", "avx2"} <= set(place.features)
    assert list(place.features) == sorted(place.features)
    assert "fpu" not in place.features


def test_every_listed_processor_is_one_of_llvm():
    names = {name for listed in host.PROCESSORS.values() for name in listed}
    assert names <= host._known_names()
    assert host.vendor_of("znver4") == "AuthenticAMD"
    assert host.vendor_of("x86-64-v3") is None


def test_it_is_cheap():
    host.cpu_name()
    start = time.perf_counter()
    for _ in range(100):
        host.cpu_name()
    assert time.perf_counter() - start < 0.1
