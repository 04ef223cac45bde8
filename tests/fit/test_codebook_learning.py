"""What learning codebooks and indices does to the output error, on layers that tests can check."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from lutcc.codebook_options import CodebookOptions
from lutcc.codebook_weights import CodebookWeights, Outliers
from lutcc.fit.codebook_learning import learn
from lutcc.fit.codebook_regions import Regions
from lutcc.fit.error_compensation import compensate, descend, refit_codebooks, refit_scales
from lutcc.fit.output_error import Calibration, OutputError
from lutcc.fit.soft_assignments import first_logits

M, K, N = 12, 80, 300


def layer(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return W, correlated inputs X with a mean, and a bias."""
    random = np.random.default_rng(seed)
    W = random.normal(size=(M, K)) * random.uniform(0.02, 0.08, size=(M, 1))
    X = random.normal(size=(N, 20)) @ random.normal(size=(20, K)) / 4 + random.normal(size=(N, K))
    return W.astype(np.float32), (X + 0.3).astype(np.float32), random.normal(size=M).astype("f4")


def first_weights(W: np.ndarray, kind: str = "rows", bits: int = 2) -> CodebookWeights:
    """Return nearest quantiles: codebooks of "rows", "segments" or "groups"; "scales" and so on."""
    entries = 2**bits
    order = np.argsort(W.std(1), kind="stable").astype(np.int32)
    stored = W[order]
    books, factors, size = {
        "rows": (M, 1, 0),
        "groups": (5, 1, 0),
        "segments": (3 * M, 1, 32),
        "scales": (1, M, 0),
        "segment scales": (1, 3 * M, 32),
    }[kind]
    levels = np.quantile(W, (np.arange(entries) + 0.5) / entries).astype(np.float32)
    codebooks = np.tile(levels, (books, 1))
    scales = np.ones(factors) if factors == 1 else np.full(factors, 1.25)
    table = levels * scales[0]
    indices = np.abs(stored[..., None] - table).argmin(-1)
    return CodebookWeights.of(
        indices, codebooks, bits=bits, scales=scales, segment_size=size, order=order
    )


def output_error(weights: CodebookWeights, W: np.ndarray, X: np.ndarray) -> float:
    return float(np.square(X.astype(float) @ (weights.dequantize() - W).T).mean())


def options(**changes: Any) -> CodebookOptions:
    defaults = {
        "alpha": 7.5,
        "steps": 0,
        "batch_size": 64,
        "learning_rate": 0.05,
        "random_state": 0,
    }
    return CodebookOptions(**{**defaults, **changes})


KINDS = ("rows", "groups", "segments", "scales", "segment scales")


@pytest.mark.parametrize("kind", KINDS)
def test_dequantize_and_tables_are_the_stored_form_s(kind: str) -> None:
    W, _, _ = layer()
    weights = first_weights(W, kind)
    regions = Regions.of(weights)
    stored = regions.dequantize(
        torch.from_numpy(weights.unpacked().astype(np.int64)),
        torch.from_numpy(weights.codebooks.astype(np.float32)),
        torch.from_numpy(weights.scales.astype(np.float32)),
    )
    np.testing.assert_array_equal(stored.numpy(), weights.dequantize()[weights.order])


@pytest.mark.parametrize("activation", [None, "gelu"])
def test_error_is_equation_6_s(activation: str | None) -> None:
    W, X, bias = layer()
    values, rows = np.full(2, 0.5, np.float16), np.array([0, 2] + [2] * (M - 1), np.int32)
    outliers = Outliers(rows, np.array([3, 70], np.int32), values)
    weights = dataclasses.replace(first_weights(W), outliers=outliers)
    Y = X @ W.T + bias + 0.1 * np.sin(np.arange(N))[:, None].astype(np.float32)
    data = Calibration.of(weights, W, X, Y, bias, activation, penalty=0.5)
    order = weights.order
    assert order is not None
    sigma = torch.nn.functional.gelu if activation else (lambda x: x)
    written = weights.dequantize()
    outputs = sigma(torch.from_numpy(X.astype(float) @ written.T + bias))
    size = np.square(Y.astype(float) - bias).sum(1)
    share = 1 / (size + np.median(np.sort(size)[:-1]))  # torch's median is the lower one
    share /= share.mean()
    per_input = (outputs - sigma(torch.from_numpy(Y.astype(float)))).square().sum(1)
    missed = (per_input * torch.from_numpy(share)).mean()
    unit = (share[:, None] * np.square(X.astype(float))).mean()
    stored = torch.from_numpy((written - outliers.dense(K))[order])
    difference = stored - data.exact
    expected = float(missed) / unit + 0.5 * float(difference.square().sum())
    assert data.total(difference) == pytest.approx(expected, rel=1e-4)
    leaf = difference.double().requires_grad_()
    if activation is None:
        value, gradient = data.loss(difference, np.random.RandomState(0), 1)
        assert value == pytest.approx(expected, rel=1e-4)
        inputs = torch.from_numpy(X.astype(float))
        off = inputs @ (leaf + data.exact + torch.from_numpy(outliers.dense(K)[order])).T
        off = off + torch.from_numpy((bias - Y)[:, order].astype(float))
        (
            off.square().sum(1) @ torch.from_numpy(share) / N / unit + 0.5 * leaf.square().sum()
        ).backward()
        assert leaf.grad is not None
        torch.testing.assert_close(gradient, leaf.grad.float(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_least_squares_is_the_minimum(kind: str) -> None:
    W, X, _ = layer()
    weights = first_weights(W, kind)
    regions = Regions.of(weights)
    data = Calibration.of(weights, W, X, None, None, None)
    indices = torch.from_numpy(weights.unpacked().astype(np.int64))
    books = torch.from_numpy(weights.codebooks.astype(np.float32))
    scales = torch.from_numpy(weights.scales.astype(np.float32))
    for _ in range(30 if "segment" in kind else 1):  # a pass over segments only descends
        solved = books.clone(), scales.clone()
        if regions.scaled:
            solved = books, refit_scales(data.quadratic, regions, indices, books, scales)
        else:
            solved = refit_codebooks(data.quadratic, regions, indices, books, scales), scales
        books, scales = solved
    leaf = scales if regions.scaled else books
    leaf.requires_grad_()
    difference = regions.dequantize(indices, books, scales) - data.exact
    ((difference @ data.quadratic.gram) * difference).sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad.abs().max()) < 2e-3


def test_each_sweep_descends_and_ends_at_single_changes_that_do_not_help() -> None:
    W, X, _ = layer()
    weights = first_weights(W)
    regions, error = Regions.of(weights), OutputError.of(torch.from_numpy(W), torch.from_numpy(X))
    tables = regions.tables(torch.from_numpy(weights.codebooks.astype(np.float32)), torch.ones(1))
    indices = compensate(error, regions, tables)
    losses = []
    for _ in range(12):
        losses.append(error.loss(regions.look_up(tables, indices) - error.exact)[0])
        indices = descend(error, regions, tables, indices)
    assert losses == sorted(losses, reverse=True)
    best = error.loss(regions.look_up(tables, indices) - error.exact)[0]
    for row, column, entry in np.random.default_rng(0).integers((M, K, 4), size=(60, 3)):
        changed = indices.clone()
        changed[row, column] = int(entry)
        value = error.loss(regions.look_up(tables, changed) - error.exact)[0]
        assert value >= best * (1 - 1e-5)


def test_logits_start_at_the_assignment() -> None:
    torch.manual_seed(0)
    tables = torch.randn(8, 6, 1).sort(0).values
    tables[5] = tables[4]
    assigned = torch.randint(8, (6, 50))
    exact = torch.randn(6, 50)
    assigned[:, :25] = (tables - exact).abs().argmin(0)[:, :25]
    logits, _ = first_logits(exact, tables, assigned)
    assert torch.equal(logits.argmax(0), assigned)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_learning_lowers_the_error(kind: str, activation: str | None) -> None:
    W, X, bias = layer()
    start = first_weights(W, kind)
    before = output_error(start, W, X)
    book, _ = learn(start, W, X, None, bias, options(learn="codebook", activation=activation))
    joint, losses = learn(start, W, X, None, bias, options(activation=activation))
    np.testing.assert_array_equal(book.indices, start.indices)
    assert book.footprint() == joint.footprint() == start.footprint()
    if activation is None:
        assert output_error(book, W, X) < before
        assert output_error(joint, W, X) < 0.6 * output_error(book, W, X)
    assert min(losses) < 0.7 * losses[0]


@pytest.mark.parametrize(("proximal", "activation"), [(True, None), (False, None), (True, "gelu")])
def test_gradients_learn_indices(proximal: bool, activation: str | None) -> None:
    W, X, bias = layer()
    start = first_weights(W)
    given = options(
        assignment="nearest", steps=60, proximal=proximal, activation=activation, sharpness=0.1
    )
    learnt, losses = learn(start, W, X, None, bias, given)
    again, _ = learn(start, W, X, None, bias, given)
    book, _ = learn(start, W, X, None, bias, options(learn="codebook"))
    assert (learnt.unpacked() != start.unpacked()).mean() > 0.02
    assert len(losses) >= 60
    assert output_error(learnt, W, X) < 0.85 * output_error(book, W, X)
    np.testing.assert_array_equal(learnt.indices, again.indices)
    np.testing.assert_array_equal(learnt.codebooks, again.codebooks)


def test_blocks_of_rows_learn_the_same_codebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    W, X, _ = layer()
    given = options(assignment="nearest", steps=20)
    whole, _ = learn(first_weights(W, "groups"), W, X, None, None, given)
    monkeypatch.setattr("lutcc.fit.soft_assignments.BLOCK_VALUES", 5 * K * 4)
    parts, _ = learn(first_weights(W, "groups"), W, X, None, None, given)
    same = whole.unpacked() == parts.unpacked()
    assert same.mean() > 0.98
    monkeypatch.setattr("lutcc.fit.soft_assignments.BLOCK_VALUES", K * 4)  # no region fits
    rows, _ = learn(first_weights(W, "groups"), W, X, None, None, given)
    assert output_error(rows, W, X) < output_error(first_weights(W, "groups"), W, X)


def test_outputs_of_the_exact_model_are_the_target() -> None:
    W, X, bias = layer()
    shifted = X + 0.2 * np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
    Y = X @ W.T + bias
    start = first_weights(W, bits=3)

    def missed(weights: CodebookWeights) -> float:
        return float(np.square(shifted @ weights.dequantize().T + bias - Y).mean())

    towards, _ = learn(start, W, shifted, Y, bias, options())
    alone, _ = learn(start, W, shifted, None, bias, options())
    assert missed(towards) < missed(alone)
