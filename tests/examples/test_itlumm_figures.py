"""The figures of ITLUMM in kind: a quick run, its files, what is read again, and the verdict."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lutcc.bench.network_speed import NetworkSpeed
from lutcc.report.accuracy_log import read_runs
from lutcc.report.itlumm import Point, divergences, objectives, table, told, verdict

ROOT = Path(__file__).resolve().parents[2]


def timed(exact: Any, networks: Any, rows: Any, **_: Any) -> list[NetworkSpeed]:
    """Return times without compiling: tests/bench/test_network_speed.py does that."""
    exact_times = {f"lutcc {name}": 2e-6 for name in ("float32", "bfloat16", "int8")}
    return [NetworkSpeed(n, dict.fromkeys(networks, 1e-6), exact_times) for n in (1, 1024)]


@pytest.mark.thorough
def test_quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / "itlumm_figures.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "network_speeds", timed)
    page, log = tmp_path / "page.md", tmp_path / "log.jsonl"
    parts = ("classifier", "network")
    names = [f"itlumm-{part}{kind}" for kind in ("", "-mnist") for part in parts]
    page.write_text("\n".join(f"<!-- {n}:begin -->\n<!-- {n}:end -->" for n in names))
    given = ["--quick", "--output", str(tmp_path), "--docs", str(page), "--log", str(log)]
    points = module.main(given)
    methods = {p.method for p in points if p.part == "network"}
    assert {"maddness", "r2-kld", "opq-mse, layer by layer"} <= methods
    assert {p.method for p in points if p.part == "classifier"} >= {"r2-mse, before softmax"}
    assert all(0 < p.value <= 1 and 0.5 < p.exact <= 1 for p in points)
    written = page.read_text(encoding="utf-8")
    assert "| r2-kld, layer by layer |" in written
    assert "| faster than int8, 1024 rows | yes, 2.00x |" in written
    assert "Above plain MADDNESS, by their means:" in written
    picture = (tmp_path / "itlumm-figures.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
    assert len(read_runs(log)) == len(points)
    for part in parts:
        own = [p for p in points if (p.part == "classifier") == (part == "classifier")]
        kept = json.loads((tmp_path / f"{part}0.json").read_text())
        assert [Point(**each) for each in kept] == own
        assert module.one_seed(part, 0, "digits", True, tmp_path) == own
    assert "<!-- itlumm-network-mnist:begin -->\n<!-- itlumm-network-mnist:end -->" in written
    # What is there already is read: the same networks, as if they were of other images.
    mnist = [*given[:-2], "--data", "mnist-5k", "--no-times"]
    assert {p.part for p in module.main([*mnist, "--network-seeds", "0"])} == {"classifier"}
    assert (
        "<!-- itlumm-network-mnist:begin -->\n<!-- itlumm-network-mnist:end -->" in page.read_text()
    )
    few = (tmp_path / "itlumm-figures-mnist.png").read_bytes()
    assert few.startswith(b"\x89PNG")
    assert module.main(mnist) == points
    again = page.read_text(encoding="utf-8")
    assert again.startswith(written.partition("<!-- itlumm-classifier-mnist")[0])
    assert again.count("| r2-kld, layer by layer |") == 2
    assert again.count("| faster than int8, 1024 rows | yes, 2.00x |") == 2, "of digits alone"
    assert len((tmp_path / "itlumm-figures-mnist.png").read_bytes()) > len(few), "more panels"


@pytest.fixture
def points() -> list[Point]:
    found = {
        "maddness": ([0.8, 0.8], [0.9, 0.9]),
        "r2-mse": ([0.7, 0.9], [0.95, 0.95]),
        "r2-kld": ([0.9, 0.9], [0.9, 0.96]),
    }
    return [
        Point("network", method, codebooks, seed, value, 1.0)
        for method, sizes in found.items()
        for codebooks, values in zip((4, 8), sizes, strict=True)
        for seed, value in enumerate(values)
    ]


def test_the_verdict_names_what_misses(points: list[Point]) -> None:
    assert verdict(points, "network") == (
        "Above plain MADDNESS, by their means: 3 of 4 (not: r2-mse at 4 (+0.0000 ± 0.1000)). "
        "The divergence above the squared error, by their means: 1 of 2 "
        "(not: r2-kld at 8 (-0.0200 ± 0.0300))."
    )


def test_exact_accuracies_are_of_seeds_not_of_points(points: list[Point]) -> None:
    points = [replace(p, exact=1 - p.seed / 2) for p in points]
    assert "\n\n2 seeds, exact networks: 0.750 ± 0.250. Above plain" in told(points, "network", [])
    single = told([p for p in points if p.seed == 1], "network", [])
    assert "| r2-mse | 1.800 | 1.900 |" in single
    assert "\n\nA single seed, exact network: 0.500. Above plain" in single


def test_trained_layers_are_held_to_both_baselines() -> None:
    """Layer by layer: above plain MADDNESS, but not above MADDNESS layer by layer."""
    trained = ", layer by layer"
    values = {"maddness": 0.8, "maddness" + trained: 0.9, "r2-mse" + trained: 0.85}
    found = verdict([Point("network", m, 4, 0, v, 1.0) for m, v in values.items()], "network")
    assert "Above plain MADDNESS, by their means: 1 of 1. " in found
    assert f"0 of 1 (not: r2-mse{trained} at 4 (-0.0500))." in found


def test_divergences_of_the_classifier() -> None:
    given = {"r2-mse": (0.4, 0.1), "r2-kld": (0.2, 0.3)}
    points = [
        Point("classifier", method, count, seed, 0.9, 1.0, value + 0.02 * seed * (value > 0.15))
        for method, values in given.items()
        for count, value in zip((4, 8), values, strict=True)
        for seed in (0, 1)
    ]
    assert "| r2-mse | 0.410 | 0.100 |" in divergences(points, "classifier")
    text = objectives(points, "classifier")
    against = "against MSE behind softmax"
    assert f"| r2, divergence, {against} | -0.2000 ± 0.0000 | +0.2100 ± 0.0100 |" in text
    assert text.endswith(
        "Against MSE behind softmax: accuracy better in 0 of 2, over all +0.0000 ± 0.0000; "
        "divergence better in 1 of 2, over all +0.0050 ± 0.0050."
    )


def test_the_squared_error_before_softmax_is_another_objective() -> None:
    """Of contiguous groups it is plain MADDNESS; what has no such method is not compared."""
    methods = {"maddness": 0.8, "contiguous-kld": 0.9, "r2-mse, before softmax": 0.85}
    methods |= {"r2-kld": 0.84, "opq-kld": 0.7}
    text = objectives(
        [Point("classifier", m, 4, 0, v, 1.0, 1 - v) for m, v in methods.items()], "classifier"
    )
    assert "| contiguous, accuracy, against MSE before softmax | +0.1000 |" in text
    assert "| r2, accuracy, against MSE before softmax | -0.0100 |" in text
    assert "opq" not in text
    assert "accuracy better in 1 of 2, over all +0.0450" in text


def test_the_table_has_means_deviations_and_losses(points: list[Point]) -> None:
    times = {"lutcc int8": 2e-6, "lutcc float32": 4e-6, "lutcc bfloat16": 3e-6, "bf16_onednn": 1e-6}
    speed = NetworkSpeed(1, {"4": 1.5e-6, "8": 3e-6}, times)
    lines = table(points, "network", [speed]).splitlines()
    assert lines[3] == "| r2-mse | 0.800 ± 0.100 | 0.950 ± 0.000 |"
    assert "| faster than int8, 1 row | yes, 1.33x | no, 0.67x |" in lines
    assert "| faster than bfloat16, 1 row | no, 0.67x | no, 0.33x |" in lines
