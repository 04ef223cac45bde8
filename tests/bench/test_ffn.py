"""Feed-forward blocks: what is measured, and that a loss is printed as a loss."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from rich.console import Console

from lutcc.bench import ffn, kernels
from lutcc.bench.baselines import ONEDNN, PRECISIONS, runs_here
from lutcc.bench.compare import Comparison
from lutcc.bench.ffn import (
    FAMILIES,
    TABLES,
    Shape,
    bench_ffn,
    dense_block,
    family_of,
    lookup_block,
    options_of,
    two_cores,
    verdicts,
)
from lutcc.bench.ffn_report import errors, ffn_table
from lutcc.bench.limits import BF16_PRODUCT, PRODUCTS, product_limit
from lutcc.bench.machine import describe, has_amx
from lutcc.bench.options import BenchOptions
from lutcc.bench.readme import ffn_block, hadamard_block
from lutcc.bench.timing import Timing
from lutcc.cli.main import main
from lutcc.runtime import cpu

TINY = Shape(64, 8, 4)


def timing(microseconds: float) -> dict[str, float | int]:
    best = microseconds * 1e-6
    return {"best": best, "median": best * 1.1, "p20": best, "p80": best * 1.2, "calls": 9}


def made_up(amx: bool) -> list[dict]:
    """Return rows in which int8 tables win over all but AMX, and float32 tables lose to int8."""
    times = {"lutcc float32": 102, "lutcc bfloat16": 60, "lutcc int8": 40, "fp32": 401}
    times |= {"fp32_onednn": 202, "bf16": 90, "bf16_onednn": 80, "int8_onednn": 70, "int8_x86": 75}
    times |= {"bf16/amx": 25, "int8_onednn/amx": 20} if amx else {}
    measured = {label: timing(t) for label, t in times.items()}
    as_timings = {label: Timing(**t) for label, t in measured.items()}  # type: ignore[arg-type]
    tables = {
        t: {**options_of(t, "avx512_bf16" if amx else "avx2"), "table_bytes": 1, "error": error}
        | verdicts(as_timings, f"lutcc {t}")
        for t, error in zip(TABLES, (0.0, 0.002, 0.011), strict=True)
    }
    row = {"d": 512, "h": 128, "tau": 8, "isa": "avx2", "times": measured, "tables": tables}
    return [
        row | {"batch": 1, "two_cores": None, "bf16_native": amx},
        row | {"batch": 4096, "two_cores": {"float32": 1.9}, "bf16_native": amx},
    ]


def text_of(renderable) -> str:
    console = Console(width=300, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_every_candidate_has_a_family() -> None:
    families = {label: family_of(label) for label in (*PRECISIONS, *ONEDNN)}
    assert set(families.values()) == set(FAMILIES)
    assert families["fp32"] != families["fp32_onednn"]
    assert families["bf16_onednn"] == families["bf16_cast"] == "bfloat16"


def test_verdicts_take_the_fastest_of_a_family() -> None:
    got = made_up(amx=True)[0]["tables"]["int8"]
    assert got["fastest"] == "int8_onednn/amx"
    assert got["speedup"] == {
        "float32 (MKL)": 10.025, "float32 (oneDNN)": 5.05, "bfloat16": 0.625, "int8": 0.5,
    }  # fmt: skip
    assert got["speedup_without_amx"]["bfloat16"] == 2.0
    assert got["speedup_without_amx"]["int8"] == 1.75


def test_the_table_names_wins_and_losses() -> None:
    with_amx = text_of(ffn_table(made_up(amx=True)))
    assert "2.00x slower, without AMX 1.75x" in with_amx
    assert "10.03x" in with_amx
    assert "torch int8 (oneDNN), AMX" in with_amx
    assert "no bfloat16 products" not in with_amx
    assert "With int8 tables" not in with_amx
    assert "with int8 tables projections are bfloat16" in with_amx
    without = text_of(ffn_table(made_up(amx=False)))
    assert "AMX" not in without
    assert "1.46x slower" in without  # float32 tables against int8
    assert "This CPU has no bfloat16 products" in without
    assert "bfloat16 0.20%, int8 1.10%" in errors(made_up(amx=False))


@pytest.mark.parametrize("amx", [True, False])
def test_the_readme_has_a_line_for_each_batch(amx: bool) -> None:
    machine = describe(0)
    block = ffn_block({"machine": machine, "sections": {"ffn": {"blocks": made_up(amx)}}})
    header, rule, *lines = block.split("\n\n")[0].splitlines()
    assert len(lines) == 2
    assert all(line.count("|") == header.count("|") == rule.count("|") for line in lines)
    assert lines[0].startswith("| 512, 128, 8 | 1 | 102 | 60.0 | 40.0 | 401 | 202 |")
    assert ("bfloat16, AMX" in header) is amx
    assert ("2.00x slower" in lines[0]) is amx
    assert machine["cpu"] in block
    assert "Two cores against one, d=512 h=128 tau=8 batch 4096: float32 1.90x" in block


def test_the_readme_compares_transforms_with_memcpy() -> None:
    row = {"workload": "N=4096 n=512", "isa": "avx2", "best": 1e-3, "share": 0.8}
    data = {"machine": describe(0), "sections": {"ffn": {"hadamard": [row]}}}
    assert "| N=4096 n=512 | avx2 | 1,000 | 1.25x |" in hadamard_block(data)


def test_the_command_measures_blocks_and_transforms(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    transform = {
        "kernel": "hadamard", "workload": "N=4096 n=512", "isa": "avx2", "best": 1e-3,
        "median": 2e-3, "rate": 8.0, "unit": "GB/s", "limit": 10.0, "share": 0.8,
        "limit_name": "memcpy of the input",
    }  # fmt: skip
    monkeypatch.setattr(ffn, "bench_ffn", lambda options, _: made_up(amx=options.full))
    monkeypatch.setattr(kernels, "bench_hadamard", lambda options: [transform])
    before = os.sched_getaffinity(0)
    try:
        assert main(["bench", "ffn", "--full", "--json", "-q"]) == 0
    finally:
        os.sched_setaffinity(0, before)
    found = json.loads(capsys.readouterr().out)["sections"]["ffn"]
    assert [row["batch"] for row in found["blocks"]] == [1, 4096]
    assert "int8_onednn/amx" in found["blocks"][0]["times"]  # the option has arrived
    assert found["hadamard"] == [transform]


def test_layers_differ_in_their_tables_only() -> None:
    layers = {t: lookup_block(TINY, t, "avx2", seed=3) for t in TABLES}
    first, *others = (layer.state_dict() for layer in layers.values())
    for state in others:
        assert state.keys() == first.keys()
        assert all(torch.equal(state[key], first[key]) for key in first)
    assert options_of("bfloat16", "avx512_vbmi_vnni")["projection_dtype"] == "float32"
    bf16 = {t: options_of(t, "avx512_bf16") for t in TABLES}
    assert [bf16[t]["projection_dtype"] for t in TABLES] == ["float32", "bfloat16", "bfloat16"]
    assert [bf16[t]["score_dtype"] for t in TABLES] == ["float32", "bfloat16", "float32"]


def test_the_dense_block_is_four_times_as_wide() -> None:
    assert [w.shape for w, _ in dense_block(64, 0)] == [(256, 64), (64, 256)]


@pytest.mark.thorough
@pytest.mark.isa("avx2")
def test_everything_is_measured() -> None:
    core = max(os.sched_getaffinity(0))
    options = BenchOptions(seconds=0.0005, rounds=2, quick=True, core=core)
    rows = bench_ffn(options, shapes=[TINY])
    assert [row["batch"] for row in rows] == [1, 64]
    expected = {f"lutcc {t}" for t in TABLES} | {p for p in (*PRECISIONS, *ONEDNN) if runs_here(p)}
    for row in rows:
        plain = {label for label in row["times"] if not label.endswith("/amx")}
        assert plain == expected
        assert any(label.endswith("/amx") for label in row["times"]) is has_amx()
        assert row["isa"] == cpu.best_isa()
        found = [row["tables"][t]["error"] for t in TABLES]
        assert found[0] == 0
        # projections in bfloat16, where the CPU multiplies them, change the signs of a few
        assert 1e-4 < found[1] < (0.15 if cpu.best_isa() == "avx512_bf16" else 0.01)
        assert found[1] < found[2] < 0.2
    assert rows[0]["two_cores"] is None
    many = two_cores(core)
    assert (rows[1]["two_cores"] is None) is (many is None)
    if many:
        assert set(rows[1]["two_cores"]) == set(TABLES)
    text_of(ffn_table(rows))


def test_batches_rotate(tmp_path) -> None:
    """Calls on an input with a batch take the next rows each time."""
    from lutcc.bench.baselines import write_chain

    path = tmp_path / "chain.safetensors"
    write_chain(str(path), [(torch.eye(4), None)])
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    with Comparison() as compare:
        compare.add_input("x", x, 2)
        (subject,) = compare.add_dense("chain", path, ["fp32"])
        for first in (0, 2, 4, 0):
            output, _ = compare.output(subject, "x")
            np.testing.assert_allclose(output, x[first : first + 2], rtol=1e-5)


@pytest.mark.one_in(2)
@pytest.mark.isa("avx2")
@pytest.mark.parametrize(
    ("op", "limit"),
    [
        ("hadamard", "memcpy of the input"),
        ("block_diagonal_matmul", "vfmadd231ps ymm"),
        ("sign_hash", "memcpy of the input"),
        ("weighted_gather", "L2 reads, 256 KiB"),
    ],
)
def test_each_op_is_measured_against_a_limit(op: str, limit: str) -> None:
    rows = kernels.BENCHMARKS[op](BenchOptions(seconds=0.0, rounds=1, quick=True, isa="avx2"))
    assert {row["limit_name"] for row in rows} == {limit}
    assert all(row["kernel"] == op and 0.001 < row["share"] < 20 for row in rows)


def test_products_have_a_limit() -> None:
    assert product_limit("avx512_bf16", bfloat16=True) is BF16_PRODUCT
    assert product_limit("avx512_bf16") is PRODUCTS["avx512"]
    assert product_limit("avx2", bfloat16=True) is PRODUCTS["avx2"]
