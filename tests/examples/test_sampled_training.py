"""The examples of sampled training: they train, go on where they stopped, and report."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lutcc.errors import InputError
from lutcc.ops import set_sampled_backend

ROOT = Path(__file__).resolve().parents[2]


def load(name: str) -> ModuleType:
    path = ROOT / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def example():
    yield load("sampled_training")
    set_sampled_backend("auto")


@pytest.fixture(scope="module")
def distributed() -> ModuleType:
    return load("distributed_sampling")


@pytest.mark.thorough
def test_trains_goes_on_and_reports(example, tmp_path, capsys):
    arguments = ["--quick", "--epochs", "2", "--output", str(tmp_path)]
    page = tmp_path / "page.md"
    page.write_text("# Page\n<!-- runs:begin -->\n<!-- runs:end -->\n")
    methods = ["exact", "topk 50%", "wta_crs 10%", "crs 10%", "topk 33%"]
    found = example.main([*arguments, "--docs", str(page), "--methods", *methods])
    printed = capsys.readouterr()
    assert [[m.name for m in task.methods] for task in found] == [
        ["exact", "topk 50%", "crs 10%", "wta_crs 10%"],
        ["exact", "topk 33%"],
    ]
    mlp, cnn = found
    assert all(len(m.runs) == 2 for task in found for m in task.methods)
    assert mlp.baseline.accuracy.mean > 0.8
    assert mlp.baseline.compute == 1
    # Forward exact: a third. Backward: 50 % of both gradients.
    assert mlp.methods[1].compute == pytest.approx(1 / 3 + 2 / 3 * 0.5, abs=0.01)
    # A third of the channels (21 of 64) of both large convolutions.
    assert 0.33 < cnn.methods[1].compute < 0.38
    assert "topk 33%: " in printed.out
    assert "wta_crs 10% less crs 10%: " in printed.out
    assert "mlp, topk 50%, seed 1: accuracy" in printed.err
    names = {path.name for path in tmp_path.iterdir()}
    assert {"runs.jsonl", "report.html", "report.png", "page.md", "page.png"} == names
    text = page.read_text()
    assert "| topk 50% | 2 |" in text
    assert "![" in text

    # Again: nothing is trained twice, a run that was cut off is.
    log = tmp_path / "runs.jsonl"
    before = log.read_text()
    example.main([*arguments, "--methods", *methods])
    assert log.read_text() == before
    assert capsys.readouterr().err == ""
    lines = before.splitlines(keepends=True)
    log.write_text("".join(lines[:-1]))
    example.main([*arguments, "--methods", *methods])
    assert "cnn, topk 33%, seed 1" in capsys.readouterr().err
    again = log.read_text().splitlines()
    assert len(again) == len(lines)
    old, new = json.loads(lines[-1]), json.loads(again[-1])
    assert (old["loss"], old["accuracy"]) == (new["loss"], new["accuracy"]), "the same, to the bit"
    with pytest.raises(InputError, match="epochs 2 -> 3"):
        example.main([*arguments[:1], *arguments[3:], "--methods", *methods])


def test_other_images(example, tmp_path, capsys):
    """CIFAR's files, made up: three channels, and pixels that tell the class."""
    random = np.random.default_rng(0)
    for index, name in enumerate(["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]):
        labels = random.integers(0, 10, 40 if index else 30)
        pixels = random.integers(0, 60, (len(labels), 3072)) + 19 * labels[:, None]
        rows = np.concatenate([labels[:, None], pixels], axis=1).astype(np.uint8)
        rows.tofile(tmp_path / f"{name}.bin")
    arguments = ["--quick", "--epochs", "1", "--seeds", "1", "--tasks", "cnn"]
    arguments += ["--dataset", "cifar10", "--data", str(tmp_path), "--output", str(tmp_path / "o")]
    (task,) = example.main([*arguments, "--methods", "exact", "topk 33%"])
    assert "cifar10" in task.name
    with pytest.raises(SystemExit):
        example.main(["--dataset", "mnist"])
    assert "needs --data" in capsys.readouterr().err


def test_workers_send_less_and_stay_equal(distributed, capsys):
    results = distributed.main(["--epochs", "1", "--hidden", "128", "--ratio", "0.25"])
    assert len(results) == 2
    for worker in results:
        dense, whole, packed = worker
        assert all(method["equal"] for method in worker)
        assert (whole["accuracy"], whole["loss"]) == (packed["accuracy"], packed["loss"])
        parameters = 64 * 128 + 128 + 128 * 128 + 128 + 1290
        assert dense["bytes"] == 4 * parameters * dense["steps"]
        sent = 64 * 128 + 128 + 128 * 32 + 128 + 10 * 32 + 10
        assert 4 * sent * 19 < packed["bytes"] < 4 * sent * 19 * 1.25
        if packed["kernel_bytes"] is not None:  # on the wire, headers of gloo's messages included
            assert packed["bytes"] < packed["kernel_bytes"] < 1.2 * packed["bytes"]
            assert packed["kernel_bytes"] < 0.65 * dense["kernel_bytes"]
    assert "sampled, packed" in capsys.readouterr().out
