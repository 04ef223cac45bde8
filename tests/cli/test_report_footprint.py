"""`lutcc report footprint`: the numbers, the page, the picture, the command."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lutcc.compress import compress_checkpoint, load_compressed, read_records
from lutcc.recipes import Codebook
from lutcc.report.figure_style import COLOURS
from lutcc.report.footprint_data import FootprintReport, summarise
from lutcc.report.footprint_page import page, to_json
from tests.cli.support import Outcome
from tests.html_reader import Reader

ACTIVATIONS = 8 * 4000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hold an exact checkpoint, and the compressed one."""
    made = tmp_path_factory.mktemp("footprint")
    random = torch.Generator().manual_seed(0)
    state = {f"{i}.weight": torch.randn(64, 32 + 32 * i, generator=random) for i in range(3)}
    state["tied.weight"] = state["0.weight"].clone()
    state["norm.weight"] = torch.ones(32)
    save_file(state, made / "exact.safetensors")
    options = Codebook(alpha=4, clustering="kmeans")
    compress_checkpoint(made / "exact.safetensors", made / "small", options, exact=["1"])
    return made


@pytest.fixture(scope="module")
def report(folder: Path) -> FootprintReport:
    return summarise(folder / "small", folder / "exact.safetensors", activations=ACTIVATIONS)


def test_numbers(folder: Path, report: FootprintReport) -> None:
    records = read_records(folder / "small").records
    assert [layer.record for layer in report.layers] == list(records.values())
    before = 16 * (64 * 32 + 64 * 64 + 64 * 96 + 32)
    after = sum(r.footprint.bits for r in records.values() if not r.same_as)
    assert (report.weights_before, report.weights_after) == (before, after)
    assert report.alpha == pytest.approx(before / after)
    assert report.alpha_with_activations == pytest.approx(
        (before + ACTIVATIONS) / (after + ACTIVATIONS)
    )
    assert sum(layer.share for layer in report.layers) + ACTIVATIONS / (
        after + ACTIVATIONS
    ) == pytest.approx(1)
    assert report.goal == 4
    assert report.bytes_before == (folder / "exact.safetensors").stat().st_size
    stored = load_compressed(folder / "small")
    for layer in report.compressed:
        assert layer.weight_error == pytest.approx(layer.record.error, rel=1e-4)
        assert stored[layer.record.name] is not None
    shared = [layer for layer in report.layers if layer.record.same_as]
    assert [(layer.bits, layer.before, layer.share) for layer in shared] == [(0, 0, 0)]


def test_page(report: FootprintReport) -> None:
    html = page(report, sources=["small"], made="2026-11-26 00:00 UTC")
    text = Reader(html).text
    for layer in report.layers:
        record = layer.record
        assert record.name in text
        assert f"{record.footprint.bits_per_weight:.3f}" in text
        if layer.is_compressed:
            assert f"{100 * record.error:.2f}" in text
    assert f"{report.alpha:.2f} ×" in text
    assert "smaller with activations" in text
    assert "http" not in html
    assert "<script" not in html
    body = html[html.index("<body>") :]
    assert not re.findall(r"#[0-9a-f]{6}\b", body), "every colour is a variable"
    assert set(re.findall(r"var\(--([a-z0-9]+)\)", html)) - {"font"} <= set(COLOURS)


def test_command(
    lutcc_command: Callable[..., Outcome], folder: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, report: FootprintReport,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    done = lutcc_command("report", "footprint", folder / "small", "--png", "a.png")
    assert (done.code, done.err) == (0, "")
    assert "Written: footprint-report.html, a.png" in done.out
    assert "not known here" in Reader(Path("footprint-report.html").read_text("utf-8")).text
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    np.save("x.npy", np.zeros((3, 64), np.float32))
    words = ["--before", folder / "exact.safetensors", "--model", "digits-mlp"]
    done = lutcc_command(
        "report", "footprint", folder / "small", "--json", *words, "--inputs", "x.npy"
    )
    assert done.json["activation_bits"] == 16 * (64 + 30 + 30)
    wanted = to_json(report)
    assert done.json["weight_bits"] == wanted["weight_bits"]
    assert [x["weight_error"] for x in done.json["layers"]] == pytest.approx(
        [x["weight_error"] for x in wanted["layers"]]
    )


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["nowhere"], "there is no such file", 1),
        (["exact.safetensors"], "is no compressed model", 1),
        (["small", "--before", "small"], "are missing or of another shape", 1),
        (["small", "--model", "digits-mlp"], "give both --model and --inputs", 2),
        (["small", "--png", "a.txt"], "does not end in .png", 2),
    ],
)
def test_wrong_use(
    lutcc_command: Callable[..., Outcome], folder: Path, monkeypatch: pytest.MonkeyPatch,
    words: list[str], message: str, code: int,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    done = lutcc_command("report", "footprint", *words, "--json")
    assert message in done.err
    assert done.code == code
