"""Exact layers as tasks: what is extracted, that candidates are right, that a choice has effect."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
import tvm_ffi
from torch import nn

from lutcc.errors import CompileError
from lutcc.frontend import import_torch
from lutcc.frontend.relax import build_mixed
from lutcc.ir import cost
from lutcc.tuning import relax_tasks as module_under_test
from lutcc.tuning.relax_tasks import RelaxSubject, model_tasks, relax_tasks
from lutcc.tuning.stages import stage_tasks

ISA = "avx2"


class _Encoder(nn.Module):
    """Attention in plain products, and norms and an activation that stand beside no product."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        q, k, v = (
            layer(x).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        attended = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        return attended.transpose(1, 2), self.norm1(x), self.norm2(x), nn.functional.gelu(x)


def _encoder(width=32):
    return _Encoder(width).eval(), torch.randn(2, 6, width)


@pytest.fixture(scope="module")
def encoder():
    return import_torch(*_encoder())


@pytest.fixture(scope="module")
def tasks(encoder):
    return relax_tasks(encoder, ISA, rows=(1, 5))


def _by_op(tasks, rows):
    return {t.workload.op: t for t in tasks if t.workload.rows == rows}


def test_every_loop_nest_of_an_encoder_is_a_task(tasks):
    ops = {t.workload.op for t in tasks}
    assert {"matmul", "matmul_nt", "softmax", "layer_norm", "gelu"} <= ops
    assert len({t.workload.id for t in tasks}) == len(tasks)
    for rows in (1, 5):
        found = _by_op(tasks, rows)
        assert found["layer_norm"].calls == 2
        assert found["softmax"].calls == 1
        assert found["softmax"].batch == rows
        assert found["softmax"].name == f"softmax(nx4x6x6) -> nx4x6x6, n = {rows}"
    assert {t.workload.kind for t in tasks} == {"relax"}
    assert all(t.workload.kernel_id for t in tasks)


def test_numbers_that_describe_a_kernel(tasks):
    scores = _by_op(tasks, 5)["matmul_nt"].workload
    assert scores.dims["batch"] == 5 * 4
    assert [scores.dims[x] for x in "ijk"] == [6, 6, 8]
    assert scores.cost["flops"] == 2 * 20 * 6 * 6 * 8
    assert scores.cost["bytes"] == 4 * 20 * (6 * 8 + 6 * 8 + 6 * 6)
    assert scores.dims["transposed"] == 1
    softmax = _by_op(tasks, 5)["softmax"].workload
    assert softmax.dims["elements"] == 5 * 4 * 6 * 6
    assert softmax.dims["reduction"] == 6
    assert softmax.cost["flops"] > 10 * softmax.dims["elements"]


def test_kernels_are_known_again_in_another_model(tasks):
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(32)

        def forward(self, anything, wide):
            return self.norm(anything), nn.functional.gelu(wide)

    imported = import_torch(Other().eval(), (torch.randn(4, 6, 32), torch.randn(4, 6, 48)))
    other = _by_op(relax_tasks(imported, ISA, rows=(5,)), 5)
    known = _by_op(tasks, 5)
    assert other["layer_norm"].workload.id == known["layer_norm"].workload.id
    assert other["gelu"].workload.id != known["gelu"].workload.id  # 48 columns, not 32


@pytest.mark.one_in(2)
@pytest.mark.parametrize("op", ["matmul", "matmul_nt", "softmax", "layer_norm", "transpose"])
def test_candidates_are_right_and_wrong_ones_are_seen(tasks, op):
    task = _by_op(tasks, 5)[op]
    subject = pickle.loads(pickle.dumps(task.subject))
    inputs = subject.inputs(3)
    want = subject.reference(inputs)
    configs = list(task.space.configs())
    for config in (configs[0], configs[-1]):
        candidate = subject.candidate(config, ISA, None, inputs)
        assert [candidate.arguments[i].shape for i in candidate.outputs] == [w.shape for w in want]
        for index in candidate.outputs:
            candidate.arguments[index][...] = np.nan
        arguments = (
            tvm_ffi.from_dlpack(a) if isinstance(a, np.ndarray) else a for a in candidate.arguments
        )
        candidate.module[candidate.symbol](*arguments)
        got = [candidate.arguments[i] for i in candidate.outputs]
        assert subject.compare(got, want) is None, config
        got[0].flat[-1] += 0.01 * np.abs(want[0]).max()
        assert "1 of" in (subject.compare(got, want) or "")


def test_numpy_agrees_with_the_reference(tasks):
    subject = _by_op(tasks, 5)["matmul_nt"].subject
    q, k = subject.inputs(0)
    (scores,) = subject.reference([q, k])
    np.testing.assert_allclose(scores, q.astype(np.float64) @ k.transpose(0, 2, 1), atol=1e-5)


def test_large_kernels_are_judged_by_the_default_schedule(tasks, monkeypatch):
    task = _by_op(tasks, 5)["matmul"]
    subject = replace(task.subject, rows=40)
    inputs = subject.inputs(0)
    loops = subject.reference(inputs)
    monkeypatch.setattr(module_under_test, "NAIVE_FLOPS", task.workload.cost["flops"])
    ran = []
    run = RelaxSubject._run

    def watched(self, function, arrays, rows, isa="avx2"):
        ran.append(rows)
        return run(self, function, arrays, rows, isa)

    monkeypatch.setattr(RelaxSubject, "_run", watched)
    assert subject.compare(subject.reference(inputs), loops) is None
    assert ran == [5, 5, 40]  # loops and default at a smaller batch, then the default
    monkeypatch.setattr(RelaxSubject, "compare", lambda *_: "all wrong")
    with pytest.raises(CompileError, match="all wrong"):
        subject.reference(inputs)


def test_open_number_of_rows_is_tuned_in_two_parts():
    class Scores(nn.Module):
        def forward(self, x, y):
            return torch.softmax(x @ y, -1)

    dims = ({0: torch.export.Dim("rows", min=1)}, None)
    program = torch.export.export(
        Scores(), (torch.randn(3, 32), torch.randn(32, 16)), dynamic_shapes=dims
    )
    found = [
        t
        for t in relax_tasks(import_torch(program), ISA, rows=(1, 4, 64))
        if "many" in str(t.space) or "few" in str(t.space)
    ]
    assert [t.workload.rows for t in found] == [1, 4, 64]
    one, four, many = found
    assert one.workload.kernel_id == four.workload.kernel_id != many.workload.kernel_id
    assert {k.name.split(".")[0] for k in one.space.knobs} == {"few"}
    assert {k.name.split(".")[0] for k in many.space.knobs} == {"many"}


def test_tasks_of_a_whole_model(encoder, tasks):
    whole = model_tasks(encoder, isa=ISA, rows=(1, 5))
    stages = [t for t in whole if t.workload.kind == "stage"]
    assert {t.workload.id for t in whole if t.workload.kind == "relax"} == {
        t.workload.id for t in tasks
    }
    assert len({t.workload.id for t in whole}) == len(whole)
    expected = [t for r in encoder.regions for t in stage_tasks(r.module, ISA, rows=(1, 5))]
    assert sum(t.calls for t in stages) == sum(t.calls for t in expected)
    assert all(t.name.startswith("region") for t in stages)


def test_tasks_of_a_model_without_exact_layers():
    model = nn.Sequential(nn.Linear(8, 5), nn.ReLU()).eval()
    module = import_torch(model, torch.randn(2, 8)).module
    assert module is not None
    assert cost(module, 1).total.flops
    ids = [t.workload.id for t in stage_tasks(module, ISA, rows=(3,))]
    for given in ((module,), (model, torch.randn(2, 8)), (import_torch(model, torch.randn(2, 8)),)):
        assert [t.workload.id for t in model_tasks(*given, isa=ISA, rows=(3,))] == ids


def test_chosen_configs_reach_regions_and_exact_layers(encoder, tasks, tmp_path):
    task = _by_op(tasks, 5)["softmax"]
    config = {"rows.reduce": 4, "rows.map": 4}
    assert config in task.space

    class Chosen:
        def stage_configs(self, module, isa):
            calls = {str(op.attr("callee")) for op in module.main.body if op.opcode == "call"}
            return {name: {"linear": {"tile_m": 1}, "source": "tuned here"} for name in calls}

        def relax_config(self, kernel_id, isa):
            return (config, "tuned there") if kernel_id == task.workload.kernel_id else None

    folders = [tmp_path / "default", tmp_path / "tuned"]
    for folder in folders:
        folder.mkdir()
    plain = build_mixed(encoder, [ISA], folders[0])
    tuned = build_mixed(encoder, [ISA], folders[1], choice=Chosen(), mcpus={ISA: "haswell"})
    sources = {k["stage"]: k["source"] for k in tuned.kernels[ISA]}
    assert sources["softmax"] == "tuned there"
    assert {s for name, s in sources.items() if name.startswith("region")} == {"tuned here"}
    assert sources["layer_norm"] == "default, untuned"
    (record,) = (k for k in tuned.kernels[ISA] if k["stage"] == "softmax")
    assert record["config"] == config
    (region, *_) = (k for k in tuned.kernels[ISA] if k["stage"].startswith("region0"))
    assert region["config"]["linear"]["tile_m"] == 1
    assert plain.so_paths[ISA].read_bytes() != tuned.so_paths[ISA].read_bytes()
    results = [_run(build, encoder) for build in (plain, tuned)]
    np.testing.assert_allclose(results[0], results[1], atol=1e-5)


def _run(build, imported):
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(tvm.runtime.load_module(str(build.so_paths[ISA])), tvm.cpu())
    shape = [3 if not isinstance(d, int) else d for d in imported.inputs[0].shape]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    answer = machine["main"](*map(tvm.runtime.tensor, (x, *build.params.values())))
    return (answer if hasattr(answer, "numpy") else answer[0]).numpy()
