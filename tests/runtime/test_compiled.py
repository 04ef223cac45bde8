"""Artifacts that lutcc.compile makes, run by the runtime, against the interpreter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lutcc
from lutcc import ir
from lutcc.runtime import Artifact, cpu
from lutcc.runtime.kernel import LookupKernel

COLUMNS, CODEBOOKS, LEVELS, OUTPUTS = 20, 6, 4, 24
pytestmark = pytest.mark.skipif(cpu.best_isa() is None, reason="the CPU lacks AVX2")


def maddness_module() -> ir.Module:
    """One layer of look-ups: encode, accumulate, dequantise with relu."""
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), COLUMNS), "float32"))
    dims = rng.integers(0, COLUMNS, (CODEBOOKS, LEVELS)).astype(np.int32)
    values = rng.standard_normal((CODEBOOKS, 2**LEVELS)).astype(np.float32)
    lut = rng.integers(0, 256, (CODEBOOKS, 2**LEVELS, OUTPUTS)).astype(np.uint8)
    scale, offset = rng.standard_normal((2, OUTPUTS)).astype(np.float32)
    codes = b.op("tree_encode", x, b.constant("dims", dims), b.constant("values", values))
    sums = b.op("lut_accumulate", codes, b.constant("lut", lut))
    y = b.op(
        "lut_dequantize",
        sums,
        b.constant("scale", scale),
        b.constant("offset", offset),
        activation="relu",
    )
    b.returns(y)
    return b.module()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with every ISA level that this CPU has."""
    artifact = lutcc.compile(maddness_module(), target=",".join(cpu.supported_isas()))
    return artifact.save(tmp_path_factory.mktemp("compiled") / "layer.lutcc")


def rows(n: int) -> np.ndarray:
    return np.random.default_rng(n).standard_normal((n, COLUMNS)).astype(np.float32)


@pytest.mark.parametrize("isa", cpu.ISA_LEVELS)
@pytest.mark.parametrize("n", [0, 1, 2, 63, 64, 65, 257])
def test_every_variant_is_the_interpreter(saved: Path, isa: str, n: int) -> None:
    if isa not in cpu.supported_isas():
        pytest.skip(f"the CPU lacks {isa}")
    artifact, module, x = lutcc.load(saved, isa=isa), maddness_module(), rows(n)
    (want,) = ir.interpret(module, [x])
    np.testing.assert_array_equal(artifact(x), want)
    np.testing.assert_array_equal(artifact(np.asfortranarray(x)), want)
    assert np.array_equal(artifact(torch.from_numpy(x)).numpy(), want)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_thread_counts(saved: Path, count: int) -> None:
    artifact, module = lutcc.load(saved), maddness_module()
    artifact.num_threads = count
    kernel = artifact.kernel
    assert isinstance(kernel, LookupKernel)
    n = 3 * kernel.parallel_rows + 5
    assert kernel.threads_for(n) == min(count, int(n * kernel.threads_per_row))
    x = rows(n)
    np.testing.assert_array_equal(artifact(x), ir.interpret(module, [x])[0])


def test_what_it_says_of_itself(saved: Path) -> None:
    artifact = lutcc.load(saved)
    explanation = artifact.explain()
    assert explanation.chosen is not None
    assert explanation.chosen.isa == cpu.best_isa()
    assert explanation.kernels
    assert explanation.work_per_row["lookups"] == CODEBOOKS * OUTPUTS
    assert explanation.packed_bytes
    # What the artifact says it computes is what was compiled.
    x = rows(9)
    (want,) = ir.interpret(maddness_module(), [x])
    np.testing.assert_array_equal(ir.interpret(artifact.module, [x])[0], want)


def test_a_static_batch(tmp_path: Path) -> None:
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((6, COLUMNS), "float32"))
    weight = np.random.default_rng(1).standard_normal(COLUMNS).astype(np.float32)
    b.returns(b.op("affine", x, b.constant("scale", weight), b.constant("shift", weight)))
    module = b.module()
    artifact = lutcc.load(lutcc.compile(module).save(tmp_path / "static.lutcc"))
    assert isinstance(artifact, Artifact)
    x6 = rows(6)
    np.testing.assert_array_equal(artifact(x6), ir.interpret(module, [x6])[0])
    with pytest.raises(lutcc.errors.InputError, match="must be 6, not 5"):
        artifact(x6[:5])
