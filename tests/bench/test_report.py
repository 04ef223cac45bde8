"""Tables, picture and README blocks from a made-up result with wins and losses."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from rich.console import Console

from lutcc.bench.machine import describe
from lutcc.bench.readme import demo_block, layers_block, markdown_table, replace_block
from lutcc.cli import bench
from lutcc.errors import UsageError
from lutcc.report import picture, tables

ROOT = Path(__file__).resolve().parents[2]


def timing(microseconds: float) -> dict[str, float | int]:
    best = microseconds * 1e-6
    return {"best": best, "median": best * 1.1, "p20": best, "p80": best * 1.2, "calls": 9}


@pytest.fixture
def result() -> dict:
    machine = describe(0) | {"flags": ["avx2", "avx512vbmi", "amx_tile", "amx_int8", "amx_bf16"]}
    models = [
        {"label": f"lutcc {c}", "kind": "lutcc", "ncodebooks": c, "accuracy": 0.8 + c / 200,
         "relative_accuracy": 0.9, "isa": "avx512_vbmi_vnni", "bytes": 9000 * c,
         "table_bytes": 800 * c, "times": {1: timing(c), 64: timing(3 * c)}}
        for c in (4, 16)
    ] + [
        {"label": label, "kind": "dense", "precision": label.removesuffix("/amx"), "accuracy": 0.97,
         "relative_accuracy": 1.0, "isa": None, "bytes": 4000,
         "times": {1: timing(20), 64: timing(at)}}
        for label, at in (("fp32", 100), ("int8_onednn/amx", 10), ("int8_onednn", 30))
    ]  # fmt: skip
    verdict = {
        "fastest": "int8_onednn/amx",
        "speedup": 0.5,
        "fastest_without_amx": "fp32",
        "speedup_without_amx": 2.5,
    }
    layer = {"name": "0", "in": 64, "out": 30, "relu": True, "ncodebooks": 16, "isa": "avx2"}
    return {
        "machine": machine, "models": models, "exact_accuracy": 0.97, "test_rows": 540,
        "layers": [layer | {"batches": {1: verdict, 64: verdict}}],
    }  # fmt: skip


def text_of(*renderables) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    for renderable in renderables:
        console.print(renderable)
    return console.export_text()


def test_tables_name_wins_and_losses(result):
    models = text_of(tables.models_table(result))
    assert "lutcc, 16 codebooks" in models
    assert "torch int8 (oneDNN), AMX" in models
    assert "torch int8 (oneDNN), without AMX" in models
    layers = text_of(tables.layers_table(result))
    assert "dense int8 (oneDNN), AMX is 2.00x faster" in layers
    assert "pays: 2.50x (float32)" in layers
    assert "0: 64 to 30 + ReLU" in layers


def test_no_amx_no_mention_of_it(result):
    result["machine"]["flags"] = ["avx2"]
    result["models"] = [row for row in result["models"] if not row["label"].endswith("/amx")]
    assert "AMX" not in text_of(tables.models_table(result), tables.layers_table(result)).replace(
        "int8 (oneDNN), AMX", ""
    )


def test_picture_is_a_png_of_the_right_shape(result, tmp_path: Path):
    path = tmp_path / "picture.png"
    picture.draw(result, path)
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width > height > 400
    assert len(data) > 20_000


def test_bench_table_and_readme_blocks(result):
    row = {
        "N": 1, "D": 512, "M": 512, "C": 64, "isa": "avx2",
        "fastest": "int8_onednn/amx", "speedup": 0.5,
        "fastest_without_amx": "fp32", "speedup_without_amx": 4.0,
        "times": {
            "lutcc": timing(2), "fp32": timing(8), "bf16/amx": timing(3),
            "bf16_cast/amx": timing(5),
            "bf16": timing(30), "int8_onednn/amx": timing(1),
            "int8_onednn": timing(12),
            "int8_x86": timing(11),
        },
    }  # fmt: skip
    shown = text_of(bench.layers_table([row]))
    assert "dense torch int8 (oneDNN), AMX is 2.00x faster" in shown
    assert "without AMX: look-ups are 4.00x faster than torch float32" in shown
    block = layers_block({"machine": result["machine"], "sections": {"layers": [row]}})
    assert (
        "| 1 x 512 x 512, 64 | 2.00 | 8.00 | 3.00 | 30.0 | 1.00 | 11.0 | 0.50x | 4.00x |" in block
    )
    assert "| lutcc, 16 codebooks | 0.8800 | 12,800 | 16.0 (17.6) | 48.0 (52.8) |" in demo_block(
        result
    )


def test_blocks_are_replaced_between_markers():
    text = "a\n<!-- x:begin -->old\n<!-- x:end -->\nb"
    once = replace_block(text, "x", "new \\1")
    assert once == "a\n<!-- x:begin -->\nnew \\1\n<!-- x:end -->\nb"
    assert replace_block(once, "x", "new \\1") == once
    with pytest.raises(UsageError, match="no markers"):
        replace_block(text, "y", "")


def test_the_readme_has_the_markers_and_figures():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in ("demo", "layers", "sampled"):
        inside = readme.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]
        assert inside.count("|") > 50, "run make readme"


def test_markdown_table_alignment():
    assert markdown_table(["a", "b"], [["1", "2"]]).splitlines()[1] == "| --- | ---: |"
