"""Sampled products: what is measured, and that a loss is printed as a loss."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
from rich.console import Console

from lutcc.bench import kernels, sampled
from lutcc.bench.baselines import ONEDNN, PRECISIONS, runs_here
from lutcc.bench.options import BenchOptions
from lutcc.bench.sampled import DTYPES, RATIOS, Candidate, Shape, bench_sampled, prepare, verdict
from lutcc.bench.sampled_report import goal, sampled_tables
from lutcc.bench.timing import Timing
from lutcc.cli.main import main

TINY = Shape(12, 16, 8)


def timing(milliseconds: float) -> Timing:
    best = milliseconds * 1e-3
    return Timing(best, best * 1.1, best, best * 1.2, 9)


def made_up() -> dict[str, Any]:
    """Return a row in which half of the pairs win over all but int8, and a quarter over it too."""
    forward = {"fp32": timing(100), "fp32_onednn": timing(120), "int8_onednn": timing(50)}
    training = {"dense float32": timing(300)}
    for dtype in DTYPES:
        for ratio in RATIOS:
            whole = 110 * ratio + (10 if dtype == "bfloat16" else 0)
            for way, slower in (("lutcc", 1.0), ("index_select", 1.25)):
                label = f"{way} {dtype} {ratio:g}"
                forward[label] = timing(whole * slower)
                forward[f"{label}, product alone"] = timing(whole * slower - 5)
                training[label] = timing(200 * slower)
    verdicts = [verdict(forward, training, dtype, ratio) for dtype in DTYPES for ratio in RATIOS]
    as_json = [
        {k: {"best": t.best, "median": t.median} for k, t in found.items()}
        for found in (forward, training)
    ]
    return {
        "N": 4096, "K": 1024, "M": 512, "isa": "avx2", "bf16_native": False, "bf16_timed": False,
        "forward": as_json[0], "training": as_json[1], "verdicts": verdicts,
    }  # fmt: skip


def text_of(rows: list[dict[str, Any]]) -> str:
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(*sampled_tables(rows))
    return console.export_text()


def test_verdicts_take_the_fastest_dense_candidate_of_a_family() -> None:
    found = made_up()["verdicts"][0]
    assert (found["dtype"], found["ratio"], found["share"]) == ("float32", 0.5, 0.55)
    assert found["speedup"].pop("bfloat16") is None
    expected = {"float32 (MKL)": 1.818, "float32 (oneDNN)": 2.182, "int8": 0.909}
    assert found["speedup"] == pytest.approx(expected, abs=1e-3)
    assert found["index_select"] == found["training_index_select"] == 1.25
    assert found["training"] == 1.5


def test_the_tables_name_wins_losses_and_what_was_left_out() -> None:
    text = text_of([made_up()])
    assert "loss: 1.10x slower" in text  # half of the pairs against int8
    assert "1.82x" in text
    assert "not timed" in text
    assert "this CPU has no bfloat16 products" in text.replace("This", "this")
    assert "not at all for the larger shapes" in text
    assert goal([made_up()]).endswith(
        "4096, 1024, 512 float32 0.55 (goal 0.6: met), "
        "4096, 1024, 512 bfloat16 0.65 (goal 0.6: missed)"
    )


@pytest.mark.parametrize("way", ["fused", "index_select"])
def test_candidates_compute_the_sampled_product(way: str) -> None:
    import lutcc.ops

    before = lutcc.ops.get_sampled_backend()
    try:
        whole, alone = (
            prepare(Candidate(way, "float32", 0.5, part), TINY, 3)()
            for part in ("whole", "product")
        )
        step = prepare(Candidate(way, "bfloat16", 0.25, "training"), TINY, 3)()
    finally:
        lutcc.ops.set_sampled_backend(before)
    draw = torch.Generator().manual_seed(3)
    x, weight = torch.randn(12, 16, generator=draw), torch.randn(8, 16, generator=draw)
    taken = (x.norm(dim=0) * weight.norm(dim=0)).argsort(descending=True)[:8]
    torch.testing.assert_close(whole, x[:, taken] @ weight[:, taken].T)
    torch.testing.assert_close(alone, whole)
    assert [g.dtype for g in step] == [torch.bfloat16] * 2
    assert [int((g != 0).any(0).sum()) for g in step] == [4, 4]


@pytest.mark.thorough
@pytest.mark.isa("avx2")
def test_everything_is_measured() -> None:
    options = BenchOptions(seconds=0.0, rounds=1, quick=True, core=max(os.sched_getaffinity(0)))
    (row,) = bench_sampled(options, shapes=[TINY])
    dense = {p for p in (*PRECISIONS, *ONEDNN) if p != "bf16_cast" and runs_here(p)}
    products = {
        f"{way} {dtype} {ratio:g}{part}"
        for way in ("lutcc", "index_select")
        for dtype in DTYPES
        for ratio in RATIOS
        for part in ("", ", product alone")
    }
    assert {k for k in row["forward"] if not k.endswith("/amx")} == dense | products
    steps = {label for label in products if not label.endswith("alone")} | {"dense float32"}
    assert steps <= set(row["training"])
    assert ("dense bfloat16" in row["training"]) is row["bf16_native"]
    assert len(row["verdicts"]) == len(DTYPES) * len(RATIOS)
    assert row["bf16_timed"]
    text_of([row])


def test_the_command_prints_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampled, "bench_sampled", lambda options, _: [made_up()])
    before = os.sched_getaffinity(0)
    try:
        assert main(["bench", "sampled", "--quick", "--json", "-q"]) == 0
    finally:
        os.sched_setaffinity(0, before)
    (row,) = json.loads(capsys.readouterr().out)["sections"]["sampled"]
    assert row["verdicts"] == made_up()["verdicts"]


@pytest.mark.isa("avx2")
@pytest.mark.parametrize("op", ["sampled_matmul", "sampled_conv2d"])
def test_each_op_is_measured_against_multiply_adds(op: str) -> None:
    rows = kernels.BENCHMARKS[op](BenchOptions(seconds=0.0, rounds=1, quick=True, isa="avx2"))
    assert {row["limit_name"] for row in rows} == {"vfmadd231ps ymm"}
    assert all(row["kernel"] == op and 0.02 < row["share"] < 1.5 for row in rows)
