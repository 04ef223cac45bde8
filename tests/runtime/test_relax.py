"""Artifacts that run on Relax's virtual machine."""

from __future__ import annotations

import gc
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest

import lutcc
from lutcc.cli.main import main
from lutcc.errors import ArtifactError, InputError
from lutcc.runtime import Artifact
from lutcc.runtime.threads import THREADS

WEIGHT = np.linspace(-1, 1, 5, dtype=np.float32)
SHAPE = [["n", 1], 5]
TEXT = "lutcc.ir 1, not looked at"


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Relax executable: main(x, w) = (relu(x + w), x * w)."""
    pytest.importorskip("tvm")
    import tvm
    from tvm import relax

    builder = relax.BlockBuilder()
    n = tvm.tirx.Var("n", "int64")
    x = relax.Var("x", relax.TensorType((n, 5), "float32"))
    w = relax.Var("w", relax.TensorType((5,), "float32"))
    with builder.function("main", [x, w]):
        with builder.dataflow():
            total = builder.emit(relax.op.nn.relu(relax.op.add(x, w)))
            product = builder.emit(relax.op.multiply(x, w))
            result = builder.emit_output(relax.Tuple([total, product]))
        builder.emit_func_output(result)
    module = relax.get_pipeline("zero")(builder.get())
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
    path = tmp_path_factory.mktemp("relax") / "model.so"
    tvm.compile(module, target=target).export_library(str(path))
    return path


@pytest.fixture(scope="module")
def saved(executable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the executable on disk."""
    artifact = Artifact.from_relax(
        {"region0": TEXT},
        {"avx2": executable},
        [{"name": "x", "shape": SHAPE, "dtype": "float32"}],
        [{"name": name, "shape": SHAPE, "dtype": "float32"} for name in ("sum", "product")],
        {"w": WEIGHT},
        ["w"],
        {"model": "test"},
    )
    return artifact.save(tmp_path_factory.mktemp("relax-saved") / "model.lutcc")


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact whose executable takes the number of threads: main(x, t) = x + t."""
    tvm = pytest.importorskip("tvm")
    from tvm import relax

    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((tvm.tirx.Var("n", "int64"), 5), "float32"))
    t = relax.Var("t", relax.TensorType((1,), "int64"))
    with builder.function("main", [x, t]):
        with builder.dataflow():
            number = builder.emit(relax.op.astype(t, "float32"))
            total = builder.emit_output(relax.op.add(x, number))
        builder.emit_func_output(total)
    folder = tmp_path_factory.mktemp("counting")
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
    module = relax.get_pipeline("zero")(builder.get())
    tvm.compile(module, target=target).export_library(str(folder / "model.so"))
    artifact = Artifact.from_relax(
        {},
        {"avx2": folder / "model.so"},
        [{"name": "x", "shape": SHAPE, "dtype": "float32"}],
        [{"name": "y", "shape": SHAPE, "dtype": "float32"}],
        {THREADS: np.ones(1, np.int64)},
        [THREADS],
    )
    return artifact.save(folder / "model.lutcc")


def check(artifact: Artifact, x: np.ndarray) -> None:
    total, product = artifact(x)
    np.testing.assert_array_equal(total, np.maximum(np.asarray(x) + WEIGHT, 0))
    np.testing.assert_array_equal(product, np.asarray(x) * WEIGHT)


@pytest.mark.parametrize("n", [1, 2, 7, 300])
def test_numpy(saved: Path, n: int) -> None:
    artifact = lutcc.load(saved)
    assert artifact.kind == "relax"
    base = np.random.default_rng(n).standard_normal((n, 16)).astype(np.float32)
    for x in (base[:, :5].copy(), base[:, :5], base[::-1, 1:6], base[:, 3:8].astype(">f4")):
        check(artifact, x)
    total, _ = artifact(base[:, :5])
    assert total.flags.writeable


def test_regions_are_told_the_number_of_threads(counting: Path) -> None:
    artifact, x = lutcc.load(counting), np.zeros((3, 5), np.float32)
    for count in (1, 2, 7, 1):
        artifact.num_threads = count
        assert (artifact(x) == count).all()


def test_torch(saved: Path) -> None:
    torch = pytest.importorskip("torch")
    artifact = lutcc.load(saved)
    x = torch.randn(9, 6)[:, 1:]  # not aligned to 64 bytes
    total, product = artifact(x)
    assert type(total) is torch.Tensor
    assert torch.equal(total, torch.relu(x + torch.from_numpy(WEIGHT)))
    assert torch.equal(product, x * torch.from_numpy(WEIGHT))


def test_no_rows_and_mistakes(saved: Path) -> None:
    artifact = lutcc.load(saved)
    assert [y.shape for y in artifact(np.zeros((0, 5), np.float32))] == [(0, 5), (0, 5)]
    with pytest.raises(InputError, match=r"(?s)argument 'x'.*must be 5, not 4"):
        artifact(np.zeros((2, 4), np.float32))


def test_results_outlive_the_next_call(saved: Path) -> None:
    artifact = lutcc.load(saved)
    x = np.ones((4, 5), np.float32)
    first, _ = artifact(x)
    copy = first.copy()
    for _ in range(20):
        artifact(x * 7)
    np.testing.assert_array_equal(first, copy)
    del artifact
    gc.collect()
    np.testing.assert_array_equal(first, copy)


def test_eight_threads(saved: Path) -> None:
    artifact = lutcc.load(saved)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(40):
                x = rng.standard_normal((int(rng.integers(1, 50)), 5)).astype(np.float32)
                check(artifact, x)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_memory_does_not_grow(saved: Path) -> None:
    artifact = lutcc.load(saved)
    x = np.ones((64, 5), np.float32)

    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for _ in range(500):
        artifact(x)
    before = resident()
    for _ in range(10_000):
        artifact(x)
    gc.collect()
    assert resident() - before < 4_000_000


def test_explain_and_text(saved: Path) -> None:
    artifact = lutcc.load(saved)
    with pytest.raises(ArtifactError, match=r"(?s)each of its regions \(region0.ir\).*module_text"):
        _ = artifact.module
    assert artifact.module_text("region0") == TEXT
    with pytest.raises(ArtifactError, match="no module 'region1'"):
        artifact.module_text("region1")
    text = str(artifact.explain())
    assert "mixed model" in text
    assert "w: float32 5" in text


def test_parts_that_do_not_fit(executable: Path) -> None:
    spec = [{"name": "x", "shape": SHAPE, "dtype": "float32"}]
    with pytest.raises(ArtifactError, match="param_order names"):
        Artifact.from_relax({}, {"avx2": executable}, spec, spec, {}, ["w"])
    with pytest.raises(ArtifactError, match="cannot name a file"):
        Artifact.from_relax({"../x": ""}, {"avx2": executable}, spec, spec, {}, [])
    with pytest.raises(ArtifactError, match="cannot be read"):
        Artifact.from_relax({}, {"avx2": "/nowhere.so"}, spec, spec, {}, [])


def test_inspect_shows_the_kernels(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(saved), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    artifact = Artifact.read(saved)
    assert data["artifact"]["kind"] == "relax"
    assert [m["ir"] for m in data["modules"].values()] == [
        artifact.module_text(name) for name in artifact.manifest.modules
    ]
