"""Loops of exact layers wake threads only where there is enough to do."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

tvm = pytest.importorskip("tvm")

from lutcc import ir  # noqa: E402
from lutcc.codegen.tvm_setup import import_tvm  # noqa: E402
from lutcc.frontend.relax import pipeline, thread_choice  # noqa: E402
from lutcc.frontend.relax.kernels import compile_region  # noqa: E402
from lutcc.frontend.relax.nests import loop_nest  # noqa: E402

WIDTH = 64


def lowered(function: Any) -> str:
    """Return the text of a PrimFunc after the passes below Relax."""
    from tvm.tirx import compilation_pipeline

    from lutcc.schedules.x86.isa import isa_by_name

    import_tvm()
    passes, *_ = compilation_pipeline.PIPELINE_MAP[pipeline.loop_pipeline()]()
    target = tvm.target.Target(isa_by_name("avx2").llvm_target())
    named = function.with_attr("global_symbol", "kernel")
    module = tvm.IRModule({"kernel": named})
    bound = tvm.tirx.transform.BindTarget(target.with_host(target))(module)
    return passes(bound).script()


def exponential(rows: Any) -> Any:
    """Return the scheduled PrimFunc of exp over (rows, 64)."""
    from tvm import te, topi

    x = te.placeholder((rows, WIDTH), "float32", name="x")
    function = te.create_prim_func([x, topi.exp(x)], index_dtype_override="int64")
    nest = loop_nest(function, "avx2")
    assert nest is not None
    return nest.scheduled


def test_small_loops_are_serial_and_large_ones_parallel() -> None:
    assert "T.parallel" not in lowered(exponential(8))
    text = lowered(exponential(100_000))
    assert "T.parallel" in text
    assert text.count("T.exp") == 1


def test_an_open_size_decides_when_it_runs() -> None:
    from tvm import tirx

    text = lowered(exponential(tirx.Var("n", "int64")))
    assert text.count("T.parallel") == 1
    assert text.count("T.exp") == 2
    (condition,) = [line for line in text.splitlines() if "<= n:" in line]
    least = int(condition.split("T.int64(")[1].split(")")[0])
    # Rows of 8 registers, each with a store and one exponential.
    row = 8 * (4 + 80)
    assert least == -(-thread_choice.WORTH // row)


def test_the_twin_is_the_same_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serial, parallel or chosen: one result."""
    from tvm import tirx

    x = np.random.default_rng(0).standard_normal((57, WIDTH)).astype(np.float32)
    results = []
    for worth in (1, 2**40):
        monkeypatch.setattr(thread_choice, "WORTH", worth)
        library = pipeline.build_loops(exponential(tirx.Var("n", "int64")), "avx2")
        tensors = [tvm.runtime.tensor(x), tvm.runtime.tensor(np.zeros_like(x))]
        library["kernel"](*tensors)
        results.append(tensors[1].numpy())
    np.testing.assert_allclose(results[0], np.exp(x), rtol=1e-5)
    assert np.array_equal(*results)


@pytest.mark.parametrize(("outputs", "least", "most"), [(8, 100, 500), (4096, 1, 2)])
def test_regions_share_loops_where_rows_are_worth_it(outputs: int, least: int, most: int) -> None:
    """A kernel of lutcc counts its threads from the caller's number and its rows."""
    rng = np.random.default_rng(0)
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), WIDTH), "float32"))
    weight = b.constant("w", rng.standard_normal((outputs, WIDTH)).astype(np.float32))
    b.returns(b.op("linear", x, weight, b.constant("b", np.zeros(outputs, np.float32))))
    kernel = compile_region("region0", b.module(), "avx2")
    assert kernel.takes_threads
    text = lowered(kernel.function)
    assert text.count("T.parallel") == 1
    found = re.search(r"T.max\(T.min\(buffer_\d\[T.int64\(0\)\], n( // T.int64\((\d+)\))?\)", text)
    assert found is not None
    assert least <= int(found[2] or 1) <= most
