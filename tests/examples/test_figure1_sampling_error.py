"""The figure's example: its files, its error, and the orderings that the paper states."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
RATIOS = [0.05, 0.1, 0.4, 0.5, 0.75, 0.9, 1.0]
RUNS = 60


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = ROOT / "examples" / "figure1_sampling_error.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("figure1")


@pytest.fixture(scope="module")
def points(example: ModuleType, folder: Path) -> list[Any]:
    ratios = [str(ratio) for ratio in RATIOS]
    return example.main(["--runs", str(RUNS), "--ratios", *ratios, "-o", str(folder)])


@pytest.fixture(scope="module")
def errors(points: list[Any]) -> dict[tuple[str, str, float], float]:
    return {(p.case, p.method, p.ratio): p.error for p in points}


Errors = dict[tuple[str, str, float], float]
METHODS = ("crs", "crs_uniform", "bernoulli", "bernoulli_uniform", "topk", "topk_weights")


def test_files_hold_every_point(points: list[Any], folder: Path) -> None:
    result = json.loads((folder / "figure1.json").read_text(encoding="utf-8"))
    assert (result["size"], result["runs"], result["seed"]) == (100, RUNS, 0)
    assert [p["error"] for p in result["points"]] == [p.error for p in points]
    assert {(p.case, p.method) for p in points} == {
        (case, method) for case in "ab" for method in (*METHODS, "wta_crs")
    }
    assert {(p.ratio, p.k) for p in points} == {(ratio, round(100 * ratio)) for ratio in RATIOS}
    assert (folder / "figure1.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_error_is_that_of_the_product(example: ModuleType) -> None:
    """Equation 18 from the product itself, for every mode."""
    rng = np.random.default_rng(3)
    a, b = rng.normal(1, 1, (100, 100)), rng.normal(0, 1, (100, 100))
    scales = example.scale_of_pairs(a, b, [0.1, 0.5], 7)
    got = example.errors_of(a, b, scales)
    for place in np.ndindex(got.shape):
        error = np.linalg.norm(a @ b - (a * scales[place]) @ b)
        assert got[place] == pytest.approx(
            error / (np.linalg.norm(a) * np.linalg.norm(b)), rel=1e-9
        )
    taken = (scales > 0).sum(-1)
    for method, count in zip(example.METHODS, taken.tolist(), strict=True):
        if method.startswith("topk"):
            assert count == [10, 50]
            assert set(np.unique(scales[list(example.METHODS).index(method)])) == {0.0, 1.0}
        elif method.startswith("crs"):
            assert count[0] <= 10
            assert count[1] < 50  # some are drawn twice
        elif method.startswith("bernoulli"):
            assert 0 < count[0] < count[1] < 100


def test_random_modes_err_as_their_formulas_say(errors: Errors) -> None:
    """Equation 5 with the norms' limits: |a_i|^2 = 200, |b_i|^2 = 200 or 100, all alike."""
    for case, square in (("a", 0.25), ("b", 0.01)):  # ||AB||^2 / (||A|| ||B||)^2
        for ratio in RATIOS:
            crs = math.sqrt((1 - square) / (100 * ratio))
            bernoulli = math.sqrt((1 - ratio) / ratio * 0.01)
            for kind in ("", "_uniform"):
                assert errors[case, f"crs{kind}", ratio] == pytest.approx(crs, rel=0.1)
                assert errors[case, f"bernoulli{kind}", ratio] == pytest.approx(
                    bernoulli, rel=0.12, abs=1e-9
                )


def test_with_a_mean_of_zero_top_k_is_best_and_bernoulli_beats_crs(errors: Errors) -> None:
    """Figure 1 (b), as the paper says; choosing by the second factor alone costs little."""
    for ratio in RATIOS[:-1]:
        best = errors["b", "topk", ratio]
        assert all(
            best < errors["b", method, ratio]
            for method in (*METHODS[:4], "topk_weights", "wta_crs")
        )
        assert errors["b", "topk_weights", ratio] < 1.1 * best
        if ratio < 0.8:
            assert best < 0.85 * errors["b", "bernoulli", ratio]
        if ratio >= 0.4:  # below, the difference is within the noise of so few runs
            assert errors["b", "bernoulli", ratio] < 0.9 * errors["b", "crs", ratio]


def test_with_a_mean_of_one_bernoulli_beats_crs_at_higher_ratios(errors: Errors) -> None:
    """Figure 1 (a): above a quarter, where 1 - r falls below 3 / 4 (equation 5); not below."""
    for kind in ("", "_uniform"):
        for ratio in (0.4, 0.5, 0.75, 0.9):
            crs, bernoulli = (
                errors["a", f"crs{kind}", ratio],
                errors["a", f"bernoulli{kind}", ratio],
            )
            assert bernoulli < 0.95 * crs
        assert errors["a", f"bernoulli{kind}", 0.05] > errors["a", f"crs{kind}", 0.05]


def test_with_a_mean_of_one_top_k_misses_the_mean_of_the_rest(errors: Errors) -> None:
    """Theorem 2 needs a mean of zero: here half the product's norm is in the mean."""
    for ratio in RATIOS[:-1]:
        for method in ("topk", "topk_weights"):
            lost = errors["a", method, ratio] / (0.5 * (1 - ratio))
            assert 0.85 < lost < 1.05
            assert errors["a", method, ratio] > errors["a", "bernoulli", ratio]
        assert errors["a", "topk", ratio] < errors["a", "topk_weights", ratio]
    # It beats draws with replacement again where those draw most pairs more than once.
    assert errors["a", "topk", 0.5] > errors["a", "crs", 0.5]
    assert errors["a", "topk", 0.9] < errors["a", "crs", 0.9]


def test_at_the_full_ratio_only_crs_errs(errors: Errors) -> None:
    for case in "ab":
        for method in (*METHODS, "wta_crs"):
            exact = not method.startswith("crs")
            assert (errors[case, method, 1.0] < 1e-6) == exact
        # Norms are nearly alike, so few pairs are worth taking for certain.
        for ratio in (0.1, 0.5):
            crs = errors[case, "crs", ratio]
            assert errors[case, "wta_crs", ratio] == pytest.approx(crs, rel=0.08)


@pytest.mark.parametrize("arguments", [["--runs", "1"], ["--ratios", "0"], ["--ratios", "1.5"]])
def test_arguments_are_checked(
    example: ModuleType, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        example.main(arguments)
    assert arguments[0] in capsys.readouterr().err
