"""The dense baselines compute what they should, in the precision and on the units they name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lutcc.bench.baselines import (
    ONEDNN,
    ONEDNN_CAST,
    PRECISIONS,
    WITHOUT_AMX,
    dense_chain,
    in_turn,
    prepare,
    read_chain,
    runs_here,
    write_chain,
)
from lutcc.bench.compare import Comparison, Worker
from lutcc.bench.machine import caches, describe, has_amx, one_line
from lutcc.errors import BackendError, UsageError

TOLERANCE = {
    "fp32": 1e-6, "bf16": 2e-2, "bf16_cast": 2e-2, "int8_onednn": 5e-2, "int8_x86": 5e-2,
    "fp32_onednn": 1e-6, "bf16_onednn": 2e-2, "bf16_onednn_cast": 2e-2,
}  # fmt: skip


def pairs(bias: bool = True) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    draw = torch.Generator().manual_seed(0)
    weights = [torch.randn(24, 40, generator=draw), torch.randn(7, 24, generator=draw)]
    return [(w, torch.randn(len(w), generator=draw) if bias else None) for w in weights]


@pytest.mark.parametrize("precision", [*PRECISIONS, *ONEDNN, ONEDNN_CAST])
@pytest.mark.parametrize("rows", [1, 33])
@pytest.mark.parametrize(
    ("bias", "activation"), [(True, "relu"), (False, "relu"), (True, "gelu"), (False, "gelu")]
)
def test_every_precision_is_near_float64(precision: str, rows: int, bias: bool, activation: str):
    if not runs_here(precision):
        pytest.skip(f"this CPU has not what {precision} needs")
    x = torch.randn(rows, 40, generator=torch.Generator().manual_seed(1))
    (first, b1), (second, b2) = pairs(bias)
    function = {"relu": torch.relu, "gelu": torch.nn.functional.gelu}[activation]
    hidden = function(x.double() @ first.double().T + (0 if b1 is None else b1.double()))
    exact = hidden @ second.double().T + (0 if b2 is None else b2.double())
    with torch.inference_mode():
        got = prepare(dense_chain(pairs(bias), activation=activation), precision, x)()
    bf16 = precision in ("bf16", "bf16_onednn")
    assert got.dtype == (torch.bfloat16 if bf16 else torch.float32)
    error = (got.double() - exact).norm() / exact.norm()
    assert error < TOLERANCE[precision]
    assert "fp32" in precision or error > 1e-6, "that is not the precision it says"


def test_unknown_precision():
    with pytest.raises(UsageError, match="did you mean 'bf16'"):
        prepare(dense_chain(pairs()), "bf61", torch.zeros(1, 40))


@pytest.mark.parametrize("relu_last", [True, False])
def test_chains_are_stored_and_read_back(tmp_path: Path, relu_last: bool):
    path = str(tmp_path / "chain.safetensors")
    write_chain(path, pairs(bias=False), relu_last=relu_last)
    x = torch.randn(5, 40)
    expected = dense_chain(pairs(bias=False), relu_last=relu_last)(x)
    assert torch.equal(read_chain(path)(x), expected)
    assert bool((expected >= 0).all()) is relu_last
    write_chain(path, pairs(bias=False), activation="gelu")
    smooth = dense_chain(pairs(bias=False), activation="gelu")(x)
    assert torch.equal(read_chain(path)(x), smooth)
    assert not torch.equal(smooth, dense_chain(pairs(bias=False))(x))


def test_inputs_take_turns():
    inputs = [torch.full((1, 40), float(i)) for i in range(3)]
    model = dense_chain(pairs())
    with torch.inference_mode():
        call = prepare(model, "fp32", *inputs)
        for x in (*inputs, inputs[0]):
            assert torch.equal(call(), model(x))
    calls = [lambda: 1, lambda: 2]
    assert in_turn(calls[:1]) is calls[0]


def test_onednn_is_what_it_says():
    script = (
        "import torch; from lutcc.bench.baselines import dense_chain, prepare\n"
        "model = dense_chain([(torch.ones(8, 8), None)] * 2, activation='gelu')\n"
        "with torch.inference_mode(): prepare(model, '{}', torch.ones(16, 8))()\n"
    )
    for precision, fused in (("fp32", False), ("fp32_onednn", True)):
        ran = subprocess.run(
            [sys.executable, "-c", script.format(precision)],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"ONEDNN_VERBOSE": "1"},
        )
        products = [line for line in ran.stdout.splitlines() if ",exec,cpu,inner_product" in line]
        assert ["post-ops:eltwise_gelu" in line for line in products] == [True, False] * fused


def onednn_kernels(environment: dict[str, str]) -> str:
    script = (
        "import torch; from lutcc.bench.baselines import prepare; "
        "x = torch.randn(64, 256); model = torch.nn.Linear(256, 256);\n"
        "with torch.inference_mode():\n"
        "    prepare(model, 'bf16', x)(); prepare(model, 'int8_onednn', x)()\n"
    )
    env = os.environ | {"ONEDNN_VERBOSE": "1"} | environment
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env
    )
    return "\n".join(line for line in ran.stdout.splitlines() if "exec" in line)


def test_without_amx_means_without_amx():
    if not has_amx():
        pytest.skip("this CPU has no AMX")
    assert "amx" in onednn_kernels({})
    capped = onednn_kernels(WITHOUT_AMX)
    assert "exec" in capped
    assert "amx" not in capped


def test_comparison_measures_and_returns_outputs(tmp_path: Path):
    path = tmp_path / "chain.safetensors"
    write_chain(str(path), pairs())
    x = np.random.default_rng(0).normal(size=(9, 40)).astype(np.float32)
    with Comparison() as compare, torch.inference_mode():
        compare.add_input("x", x)
        subjects = compare.add_dense("chain", path, ["fp32", "int8_onednn"])
        labels = [subject.label for subject in subjects]
        assert labels == (
            ["fp32", "int8_onednn/amx", "int8_onednn"] if has_amx() else ["fp32", "int8_onednn"]
        )
        output, saw_torch = compare.output(subjects[0], "x")
        assert saw_torch
        np.testing.assert_allclose(
            output, dense_chain(pairs())(torch.from_numpy(x)), rtol=1e-4, atol=1e-4
        )
        times = compare.measure(subjects, "x", seconds=0.001, rounds=2)
    assert list(times) == labels
    assert all(0 < timing.best <= timing.median and timing.calls >= 6 for timing in times.values())


def test_a_failing_request_is_an_error_with_its_reason(tmp_path: Path):
    worker = Worker()
    try:
        with pytest.raises(BackendError, match=r"artifact gone[\s\S]*no-such\.lutcc"):
            worker.ask("artifact", name="gone", path="no-such.lutcc", isa=None, threads=1)
        with pytest.raises(BackendError, match="nothing of the name 'ghost'"):
            worker.ask("burst", name="ghost", input="x", seconds=0.0)
    finally:
        worker.close()


def test_a_dying_process_is_an_error_with_what_it_said():
    worker = Worker({"PYTHONPATH": os.devnull, "PYTHONHOME": os.devnull})
    with pytest.raises(BackendError, match="ended with code"):
        worker.ask("input", name="x", path="x.npy")
    worker.close()


def test_the_machine_is_described():
    machine = describe(core=0)
    assert machine["cpu"]
    assert set(machine["versions"]) == {"lutcc", "torch", "apache-tvm", "apache-tvm-ffi", "numpy"}
    assert "absent" not in machine["versions"].values()
    assert machine["cpu"] in one_line(machine)
    assert all(size.endswith(("K", "M")) for size in caches().values())
