"""Instruction-set levels: their order, their names, and what emulations may not do."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lutcc import ir
from lutcc.codegen import build_module, lower
from lutcc.codegen.targets import Target, parse_targets
from lutcc.compiler import compile_module
from lutcc.errors import TargetError
from lutcc.runtime import cpu
from lutcc.schedules.x86.isa import (
    AVX2,
    AVX512_BF16,
    AVX512_VBMI_VNNI,
    ISAS,
    Isa,
    isa_by_name,
)
from tests.schedules.harness import ALL_ISA_PARAMS, ISA_PARAMS, N, maddness

EMULATIONS = [isa.emulation() for isa in ISAS.values() if isa is not AVX2]


def test_compiler_and_loader_know_the_same_levels() -> None:
    assert list(ISAS) == list(cpu.ISA_LEVELS)
    for isa in ISAS.values():
        beyond = {f for f in isa.features if f.startswith("avx512")}
        assert beyond == {f for f in cpu.ISA_FEATURES[isa.name] if f.startswith("avx512")}


def test_each_level_has_all_of_the_one_below() -> None:
    levels = list(ISAS.values())
    for below, above in itertools.pairwise(levels):
        assert set(below.features) < set(above.features)
        assert above.levels == (*below.levels, above.name)
        assert above.has_vbmi_vnni >= below.has_vbmi_vnni
    assert AVX512_BF16.has_bf16
    assert not AVX512_VBMI_VNNI.has_bf16


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("znver3", "avx2"),
        ("skylake-avx512", "avx512"),
        ("cooperlake", "avx512"),  # has BF16 and no VBMI
        ("icelake-server", "avx512_vbmi_vnni"),
        ("znver4", "avx512_bf16"),
        ("sapphirerapids", "avx512_bf16"),
    ],
)
def test_levels_of_processors(name: str, level: str) -> None:
    assert [target.isa.name for target in parse_targets(name)] == [level]


@pytest.mark.parametrize(
    ("flags", "level"), [("", "avx512_vbmi_vnni"), (" avx512_bf16", "avx512_bf16")]
)
def test_bf16_decides_between_the_two_widest(
    monkeypatch: pytest.MonkeyPatch, flags: str, level: str
) -> None:
    has = frozenset([*cpu.ISA_FEATURES["avx512_vbmi_vnni"], *flags.split()])
    monkeypatch.setattr(cpu, "_machine_flags", lambda: has)
    monkeypatch.delenv(cpu.MAX_ISA_VARIABLE, raising=False)
    assert cpu.best_isa() == level
    monkeypatch.setenv(cpu.MAX_ISA_VARIABLE, "avx512_vbmi_vnni")
    assert cpu.best_isa() == "avx512_vbmi_vnni"
    assert cpu.missing(["avx512_bf16"]) == ("avx512_bf16",)


@pytest.mark.parametrize("isa", EMULATIONS, ids=lambda isa: isa.name)
def test_emulations_have_a_name_and_no_more(isa: Isa) -> None:
    native = ISAS[isa.name.removesuffix("+emulated")]
    assert isa_by_name(isa.name) == isa
    assert (isa.levels, isa.vector_bytes) == (native.levels, native.vector_bytes)
    assert isa.llvm_target() == AVX2.llvm_target()
    with pytest.raises(TargetError):
        parse_targets(isa.name)


def test_there_is_no_emulation_of_what_is_no_level() -> None:
    for name in ("avx3+emulated", "avx512+emulated+emulated", "+emulated"):
        with pytest.raises(TargetError, match="no instruction-set level"):
            isa_by_name(name)


@pytest.mark.isa("avx2")
def test_an_emulated_artifact_cannot_be_had() -> None:
    module, target = maddness(16, 4, 16), Target(isa_by_name("avx512+emulated"))
    with pytest.raises(TargetError, match=r"'avx512\+emulated' is no instruction-set level"):
        compile_module(module, [target])


def test_kernels_without_bfloat16_are_the_same_on_the_two_widest_levels() -> None:
    """Why most kernel tests need not run on the widest level."""
    assert {p.values for p in ALL_ISA_PARAMS} - {p.values for p in ISA_PARAMS} == {
        (AVX512_BF16.name,)
    }
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, 40), "float32"))
    weight = b.constant("w", rng.normal(size=(24, 40)).astype(np.float32))
    b.returns(b.op("linear", x, weight, b.constant("b", np.ones(24, np.float32))))
    modules = [
        b.module(),
        maddness(40, 10, 40, entries=16),
        maddness(40, 10, 40, entries=64),
        maddness(40, 10, 40, accumulate="mean"),
    ]
    for module in modules:
        texts = []
        for isa in (AVX512_VBMI_VNNI, AVX512_BF16):
            built = build_module(lower(module, isa.name, parallel=False))
            texts.append(built.inspect_source("asm"))
        assert texts[0] == texts[1]
        assert "zmm" in texts[0]
