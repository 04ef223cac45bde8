"""Products that stand alone as things to tune: tasks, subjects, and the configs they get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lutcc
from lutcc import ir
from lutcc.cli.main import main
from lutcc.codegen.lower import prepare
from lutcc.errors import CompileError, InputError
from lutcc.ir.types import Sym
from lutcc.schedules.x86.config import MOST_FEW, DenseConfig
from lutcc.schedules.x86.isa import AVX2
from lutcc.tuning.choose import UNTUNED, Chooser
from lutcc.tuning.features import features_of
from lutcc.tuning.logfile import LogFile, path_for
from lutcc.tuning.names import family, short_name
from lutcc.tuning.products import product_tasks
from lutcc.tuning.records import Place
from lutcc.tuning.stages import value_of
from tests.schedules.harness import N
from tests.schedules.test_conv2d import conv2d_module
from tests.schedules.test_dense import dense_module
from tests.tuning.samples import record

ISA = "avx2"


def two_layers(lead: ir.Sym | int = N, *, seed: int = 0) -> ir.Module:
    """Two products of one shape, and one of another."""
    rng = np.random.default_rng(seed)
    b = ir.Builder("main")
    value = b.param("x", ir.TensorType((lead, 24), "float32"))
    for layer, outputs in enumerate((24, 24, 40)):
        arrays = (rng.normal(size=(outputs, 24)), np.ones(outputs), rng.normal(size=outputs))
        names = (f"{name}{layer}" for name in ("w", "u", "b"))
        constants = [
            b.constant(n, a.astype(np.float32)) for n, a in zip(names, arrays, strict=True)
        ]
        value = b.op("dense", value, *constants)
    b.returns(value)
    return b.module()


MODULE = two_layers()


def test_equal_products_are_one_task() -> None:
    tasks = product_tasks(MODULE, ISA, rows=(1, 30))
    found = [(t.workload.op, t.workload.rows, t.workload.dims["width"], t.calls) for t in tasks]
    assert found == [
        ("dense", 1, 24, 2), ("dense", 30, 24, 2), ("dense", 1, 40, 1), ("dense", 30, 40, 1),
    ]  # fmt: skip
    again = product_tasks(two_layers(Sym("n", 16), seed=1), ISA, rows=(2,))
    assert [t.workload.rows for t in again] == [32, 32]
    kernels = {t.workload.kernel_id for t in tasks}
    assert {t.workload.kernel_id for t in again} == kernels  # values and multiples do not matter
    assert {t.batch for t in again} == {2}
    assert family(tasks[0].workload) == "matrix product"
    assert short_name(tasks[0].workload) == "dense 24→24"
    assert tasks[1].workload.cost["flops"] == 2 * 30 * 24 * 24


def test_fixed_rows_are_their_own_kernel() -> None:
    tasks = product_tasks(two_layers(30), ISA, rows=(1, 64))
    assert [(t.workload.rows, t.workload.dims["rows"]) for t in tasks] == [(0, 30), (0, 30)]


def test_sizes_of_several_symbols() -> None:
    assert value_of(Sym("length.n", 3), 2, 10) == 60
    assert value_of(Sym("length.length.n"), 2, 10) == 200
    assert value_of(Sym("rows", 4), 2) == 8
    with pytest.raises(InputError, match="no model leaves a size open other than its batch"):
        lutcc.tune(MODULE, lengths=(16,))
    with pytest.raises(InputError, match=r"lengths is \(0,\)"):
        lutcc.tune(MODULE, lengths=(0,))


@pytest.mark.parametrize("compute", ["float32", "int8"])
def test_the_subject_tells_right_from_wrong(compute: str) -> None:
    (task,) = product_tasks(dense_module(compute, 9, 40), ISA, rows=(7,))
    inputs = task.subject.inputs(0)
    (want,) = task.subject.reference(inputs)
    assert task.subject.compare([want], [want]) is None
    near = want * (1 + 1e-6)
    assert (task.subject.compare([near], [want]) is None) == (compute == "float32")
    far = want.copy()
    far[3, 4] += 0.01
    assert "1 of 63 elements are wrong, first at (3, 4)" in str(task.subject.compare([far], [want]))


def test_convolutions_are_products_of_pixels() -> None:
    module = conv2d_module("int8", (9, 8, 16), 20, (3, 3), padding=(1, 1))
    (task,) = product_tasks(module, ISA, rows=(2,))
    dims = task.workload.dims
    assert (dims["rows"], dims["pixels"], dims["width"], dims["depth"]) == (2, 72, 20, 144)
    assert features_of(task.workload, ISA, task.space.default)["packed.idle_rows"] >= 1
    inputs = task.subject.inputs(0)
    assert [x.shape for x in inputs] == [(2, 9, 8, 16)]
    assert len(list(task.space.configs())) > 1
    assert "conv2d 144→20 int8" in short_name(task.workload)


def test_what_is_sampled_exists() -> None:
    """Indices are an input: those that are measured are distinct and within bounds."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((N, 21), "float32"))
    weight = b.constant("w", np.ones((21, 5), np.float32))
    indices = b.param("indices", ir.TensorType((7,), "int32"))
    scales = b.param("scales", ir.TensorType((7,), "float32"))
    bias = b.constant("bias", np.zeros(5, np.float32))
    b.returns(b.op("sampled_matmul", x, weight, indices, scales, bias, group_size=2))
    (task,) = product_tasks(b.module(), ISA, rows=(3,))
    inputs = task.subject.inputs(0)
    assert inputs[1].tolist() == [0, 1, 3, 4, 6, 7, 9]
    assert task.subject.reference(inputs)[0].shape == (3, 5)


def test_features_tell_what_is_read_and_idle() -> None:
    (task,) = product_tasks(dense_module("float32", 40, 300), ISA, rows=(10,))
    default = dict(task.space.default)
    more = default | {"dense.tile_rows": 2, "dense.panel_bytes": 8 << 10}

    def found(config: dict[str, Any]) -> dict[str, float]:
        return features_of(task.workload, ISA, config, default)

    assert found(default)["packed.idle_rows"] == pytest.approx(1.2)
    assert found(more)["packed.idle_rows"] == pytest.approx(1.0)
    assert (found(default)["packed.passes"], found(more)["packed.passes"]) == (1, 2)
    alone = dict(product_tasks(dense_module("float32", 40, 300), ISA, rows=(1,))[0].space.default)
    assert "packed.passes" not in features_of(task.workload, ISA, alone | {"dense.few": 16}, alone)


# -- the config that a product gets ----------------------------------------------------------------


def log(folder: Path, rows: int, module: ir.Module = MODULE, **knobs: int) -> None:
    """Log that the default of the first product with some knobs changed is best."""
    task = product_tasks(module, ISA, rows=(rows,))[0]
    config = dict(task.space.default) | {f"dense.{name}": value for name, value in knobs.items()}
    at = Place("znver5", "Some CPU", ISA, None, ())
    LogFile(path_for(folder, "znver5", ISA)).append(
        record(0.5, config, "final", of=task.workload, at=at)
    )


def choose(folder: Path, module: ir.Module = MODULE) -> list[dict[str, Any]]:
    return list(Chooser(ISA, "znver5", [folder]).stage_configs(prepare(module)).values())


def test_few_rows_and_many_come_from_their_own_records(tmp_path: Path) -> None:
    assert choose(tmp_path) == [{"source": UNTUNED}] * 3
    log(tmp_path, 2, prefetch=2048)
    log(tmp_path, 6, few=MOST_FEW)
    log(tmp_path, 20, tile_rows=2)
    log(tmp_path, 100, tile_rows=5, vectors=2, block_rows=60)
    first, second, third = choose(tmp_path)
    assert first == second
    assert first["source"] == "tuned on znver5 (rows 2, 6, 20, 100)"
    assert (first["dense"]["prefetch"], first["dense"]["few"]) == (2048, 6)
    assert (first["dense"]["tile_rows"], first["dense"]["block_rows"]) == (5, 60)
    assert third == {"source": UNTUNED}


def test_fixed_rows_take_the_nearest(tmp_path: Path) -> None:
    log(tmp_path, 20, tile_rows=2)
    log(tmp_path, 100, block_rows=60)
    first = choose(tmp_path, two_layers(90))[0]
    assert (first["dense"]["block_rows"], first["source"]) == (60, "tuned on znver5 (rows 100)")
    assert choose(tmp_path, two_layers(30))[0]["dense"]["tile_rows"] == 2


@pytest.mark.parametrize("knobs", [{"tile_rows": 7}, {"vectors": 3}, {"few": 3}, {"unknown": 1}])
def test_what_the_space_does_not_have_is_ignored_with_a_note(tmp_path: Path, knobs) -> None:
    log(tmp_path, 20, **knobs)
    chooser = Chooser(ISA, "znver5", [tmp_path])
    assert chooser.stage_configs(prepare(MODULE))["dense." + name_of(MODULE)] == {"source": UNTUNED}
    assert any("1 tuning record ignored" in note for note in chooser.notes)


def name_of(module: ir.Module) -> str:
    return next(op.results[0].name for op in prepare(module).main.body if op.opcode == "dense")


def test_configs_of_older_versions_are_read() -> None:
    """They had two fields; what came later keeps its default."""
    (op,) = (op for op in dense_module("float32", 9, 40).main.body if op.opcode == "dense")
    from lutcc.codegen.products import default_config

    default = default_config(op, AVX2)
    assert isinstance(default, DenseConfig)
    old = default.updated({"few": 1, "prefetch": 0})
    assert isinstance(old, DenseConfig)
    assert (old.few, old.prefetch, old.tile_rows) == (1, 0, default.tile_rows)
    for wrong in ({"few": 9}, {"tile_rows": 0}, {"vectors": 3}, {"block_rows": "many"}):
        with pytest.raises(CompileError, match="in the config of a product"):
            default.updated(wrong)


@pytest.mark.thorough
@pytest.mark.isa("avx2")
def test_tune_then_compile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.ir").write_text(ir.to_text(MODULE))
    logs = str(tmp_path / "logs")
    words = ["tune", str(tmp_path / "m.ir"), "-t", "avx2", "--rows", "3,20", "--trials", "2"]
    assert main([*words, "--log-dir", logs]) == 0
    shown = capsys.readouterr().out
    assert "dense 24→24, N 3" in shown
    assert "dense 24→40, N 20" in shown
    assert main(["logs", "validate", logs]) == 0
    assert main(["logs", "best", logs, "--all"]) == 0
    assert "dense" in capsys.readouterr().out
    artifact = lutcc.compile(MODULE, target="avx2", tuning_logs=logs)
    kernels = artifact.explain().kernels
    assert all(k.source.startswith("tuned on") for k in kernels)
    x = np.random.default_rng(0).normal(size=(20, 24)).astype(np.float32)
    (want,) = ir.interpret(MODULE, [x])
    np.testing.assert_allclose(artifact(x), want, rtol=1e-4, atol=1e-4)


def test_attention_is_tuned_where_one_size_is_open() -> None:
    """Several open sizes leave it at its defaults."""

    def tasks(length: int | ir.Sym) -> list[Any]:
        b = ir.Builder("main")
        shape = (ir.Sym("n"), length, 16)
        rows = [b.param(name, ir.TensorType(shape, "float32")) for name in "qkv"]
        none = b.constant("mask", np.zeros((1, 1, 1, 1), np.float32))
        b.returns(b.op("attention", *rows, none, heads=2, kv_heads=2, scale=0.3))
        return product_tasks(b.module(), "avx2", rows=(2,))

    assert tasks(ir.Sym("length")) == []
    (task,) = tasks(33)
    assert task.workload.op == "attention"
    assert task.space.default in task.space
