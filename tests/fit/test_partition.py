"""Partitions: permutations of the columns, found where they are known, and free at run time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc.fit import Maddness
from lutcc.fit.opq import opq_rotation
from lutcc.fit.partition import (
    circular_cut,
    contiguous_partition,
    equal_shares,
    opq_partition,
    r2_partition,
    squared_correlation,
)


def shuffled_groups(groups: int, size: int, nrows: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """Return rows whose columns come in strongly correlated groups, shuffled, and the group of
    each."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(nrows, groups))
    owner = rng.permutation(np.repeat(np.arange(groups), size))
    signs = rng.choice([-1.0, 1.0], groups * size)
    noise = 0.1 * rng.normal(size=(nrows, groups * size))
    return (hidden[:, owner] * signs + noise).astype(np.float32), owner


def test_r2_finds_correlated_columns_whatever_their_sign() -> None:
    X, owner = shuffled_groups(6, 4)
    for part in r2_partition(X, 6, 16, np.random.RandomState(0)):
        assert np.unique(owner[part]).size == 1


@pytest.mark.parametrize(("ncolumns", "ncodebooks"), [(1, 1), (2, 2), (7, 3), (64, 64)])
def test_every_column_once_in_runs_of_like_lengths(ncolumns: int, ncodebooks: int) -> None:
    X = np.random.default_rng(0).normal(size=(50, ncolumns)).astype(np.float32)
    X[:, 0] = 1.0  # a constant column is correlated with nothing
    random = np.random.RandomState(0)
    for parts in (r2_partition(X, ncodebooks, 4, random), opq_partition(X, ncodebooks, 4, random)):
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(ncolumns))
        lengths = [len(part) for part in parts]
        assert len(lengths) == ncodebooks
        assert max(lengths) - min(lengths) <= 1
        assert all(part.dtype == np.int32 for part in parts)


def test_columns_that_do_not_vary_take_no_codebook() -> None:
    """Of 32 columns 8 vary, in correlated pairs: each of 4 codebooks gets a pair."""
    X, owner = shuffled_groups(4, 2)
    still = np.array([0.1, 0.7], np.float32).repeat(12)  # constants whose mean is not exact
    order = np.random.default_rng(1).permutation(32)
    wide = np.concatenate([X, np.broadcast_to(still, (len(X), 24))], 1)[:, order]
    owners = np.concatenate([owner, np.full(24, -1)])[order]
    for part in r2_partition(np.ascontiguousarray(wide), 4, 16, np.random.RandomState(0)):
        found = owners[part]
        assert np.unique(found[found >= 0]).size == 1
        assert (found >= 0).sum() == 2


def test_opq_shares_out_columns_that_vary() -> None:
    """No codebook of opq has constant columns alone, either."""
    X, _ = shuffled_groups(4, 2)
    wide = np.zeros((len(X), 32), np.float32)
    vary = np.random.default_rng(1).permutation(32)[:8]
    wide[:, vary] = X
    for part in opq_partition(wide, 4, 16, np.random.RandomState(0)):
        assert np.isin(part, vary).sum() == 2


def test_runs_begin_where_trees_leave_least() -> None:
    """Two groups of alike columns, in an order that begins inside of one: no codebook has both."""
    rng = np.random.default_rng(8)
    X = np.repeat(rng.normal(size=(300, 2)), 8, axis=1) + 0.05 * rng.normal(size=(300, 16))
    for turn in range(0, 16, 2):
        order = (np.arange(16) + turn) % 16
        for part in circular_cut(order, X.astype(np.float32), 2, 16):
            assert np.unique(part // 8).size == 1


@pytest.mark.parametrize("ncodebooks", [1, 2, 5, 9, 40])
def test_shares_are_equal_as_far_as_columns_allow(ncodebooks: int) -> None:
    rng = np.random.default_rng(ncodebooks)
    weights, order = rng.random(40) + 0.5, rng.permutation(40)
    parts = equal_shares(order, weights, ncodebooks)
    np.testing.assert_array_equal(np.concatenate(parts), order)
    shares = [weights[part].sum() for part in parts]
    assert len(parts) == ncodebooks
    assert min(map(len, parts)) >= 1
    if ncodebooks < 40:  # a cut is at most half a column beside its place
        assert max(shares) - min(shares) <= 2 * weights.max()


def test_squared_correlation_is_numpys() -> None:
    X = np.random.default_rng(1).normal(size=(30, 5)) @ np.random.default_rng(2).normal(size=(5, 5))
    np.testing.assert_allclose(squared_correlation(X), np.corrcoef(X.T) ** 2, atol=1e-12)


def test_opq_errs_less_than_product_quantisation() -> None:
    """Its rotation is orthogonal, and what it rotates is quantised better than what was given."""
    rng = np.random.default_rng(3)
    X = (rng.normal(size=(3000, 8)) * 2.0 ** -np.arange(8)) @ rng.normal(size=(8, 8))
    parts = contiguous_partition(8, 2)
    rotation = opq_rotation(X, parts, 16, np.random.RandomState(0))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(8), atol=1e-12)
    options: dict[str, Any] = {"encoder": "nearest", "lut_dtype": "float32", "prototypes": "kmeans"}
    given, turned = (
        Maddness(2, 16, random_state=0, **options).fit(A.astype(np.float32)).score(A)
        for A in (X, X @ rotation)
    )
    assert 1 - turned < 0.9 * (1 - given)


def test_opq_permutation_solves_equation_1() -> None:
    """Every other permutation of 5 columns has a smaller sum of R_ij Q_ij."""
    import itertools

    X = np.random.default_rng(4).normal(size=(200, 5)) @ np.random.default_rng(5).normal(
        size=(5, 5)
    )
    rotation = opq_rotation(X, contiguous_partition(5, 2), 4, np.random.RandomState(0))
    order = np.concatenate(opq_partition(X, 2, 4, np.random.RandomState(0)))
    found = sum(rotation[i, j] for j, i in enumerate(order))
    every = itertools.permutations(range(5))
    assert found == pytest.approx(max(sum(rotation[i, j] for j, i in enumerate(p)) for p in every))


def test_r2_helps_where_columns_are_shuffled() -> None:
    X, _ = shuffled_groups(8, 4)
    train, test = X[:1500], X[1500:]
    scores = [
        Maddness(8, partition=name, random_state=0).fit(train).score(test)
        for name in ("contiguous", "r2")
    ]
    assert 1 - scores[1] < 0.6 * (1 - scores[0])


@pytest.mark.parametrize(
    ("options", "weights", "grouped"),
    [
        ({}, None, False),
        ({}, None, True),
        ({"lut_objective": "mse", "lut_activation": "relu"}, (12, 9), False),
        (
            {"lut_objective": "kld", "lut_activation": "softmax", "activation": "relu"},
            (12, 5),
            False,
        ),
        ({"encoder": "nearest"}, (12, 5), False),
    ],
)
def test_auto_takes_what_errs_least_and_fits_it_on_all_rows(
    options: dict[str, Any], weights: tuple[int, int] | None, grouped: bool
) -> None:
    X, owner = shuffled_groups(4, 3, 200)
    X = X[:, np.argsort(owner, kind="stable")] if grouped else X
    B = None if weights is None else np.random.default_rng(6).normal(size=weights)
    fitted = Maddness(4, 8, partition="auto", random_state=3, **options).fit(X, B)
    assert (fitted.partition_used_ == "contiguous") == grouped
    given = Maddness(4, 8, partition=fitted.partition_used_, random_state=3, **options).fit(X, B)
    for name in ("lut_", "scale_", "offset_", "prototypes_"):
        np.testing.assert_array_equal(getattr(fitted, name), getattr(given, name))


def test_auto_chooses_the_same_again() -> None:
    """Columns without groups: what is chosen hangs on the rows that are held out."""
    X = np.random.default_rng(7).normal(size=(150, 9)).astype(np.float32)
    first, again = (Maddness(3, 4, partition="auto", random_state=1).fit(X) for _ in range(2))
    assert first.partition_used_ == again.partition_used_
    np.testing.assert_array_equal(first.lut_, again.lut_)


def test_auto_leaves_columns_as_they_come_where_rows_are_few() -> None:
    X, _ = shuffled_groups(6, 4, 30)
    assert Maddness(6, partition="auto").fit(X).partition_used_ == "contiguous"
    assert Maddness(6, partition="r2").fit(X).partition_used_ == "r2"


@pytest.mark.parametrize("encoder", ["tree", "nearest"])
def test_kernels_read_columns_in_place(encoder: str) -> None:
    """The permutation is in the numbers of columns: the module has no op for it, and agrees."""
    from lutcc import ir

    X, _ = shuffled_groups(3, 5, 300)
    estimator = Maddness(4, encoder=encoder, partition="r2", random_state=0).fit(X, np.eye(15, 6))
    module = estimator.to_ir()
    ops = [op.opcode for op in module.main.body if op.opcode != "constant"]
    assert ops == [f"{encoder}_encode", "lut_accumulate", "lut_dequantize"]
    (got,) = ir.interpret(module, [X])
    np.testing.assert_array_equal(got, estimator.predict(X))
