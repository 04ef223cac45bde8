"""Choosing a tree's columns again: against every column and every cut, tried one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lutcc.nn.tree_splits import (
    BINS,
    BinnedRows,
    Tree,
    _best_cuts,
    _Buckets,
    better_tree,
    bucket_means,
    certain_share,
    explained,
)


def drawn(depth: int, seed: int = 0, count: int = 300) -> tuple[torch.Tensor, torch.Tensor, Tree]:
    """Return rows (N, 6), the last column of few values, targets (N, 5), and a tree at random."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, 6, generator=generator)
    rows[:, 5] = rows[:, 5].round()
    targets = torch.randn(count, 5, generator=generator)
    columns = torch.randint(0, 6, (depth,), generator=generator)
    return rows, targets, Tree(columns, torch.randn(2**depth, generator=generator) / 2)


def taken_away(targets: torch.Tensor, leaves: np.ndarray) -> float:
    """What table rows take away of the squared error, each with a row of zeros: in float64."""
    values, total = targets.double().numpy(), 0.0
    for leaf in np.unique(leaves):
        own = np.vstack([values[leaves == leaf], np.zeros((1, values.shape[1]))])
        total += float((own**2).sum() - ((own - own.mean(0)) ** 2).sum())
    return total


def leaves_of(rows: torch.Tensor, columns: list[int], thresholds: np.ndarray) -> np.ndarray:
    found = []
    for row in rows.numpy():
        node = 1
        for column in columns:
            node = 2 * node + int(row[column] > thresholds[node])
        found.append(node - len(thresholds))
    return np.array(found)


def test_leaves_are_those_of_the_operator() -> None:
    rows, _, tree = drawn(4)
    given = (tree.columns[None].int(), tree.thresholds[None])
    codes = torch.ops.lutcc.tree_encode(rows, *given)[:, 0]
    assert torch.equal(tree.leaves(rows), codes.long())


def test_what_a_tree_explains_is_what_table_rows_take_away() -> None:
    rows, targets, tree = drawn(3)
    leaves = tree.leaves(rows)
    wanted = taken_away(targets, leaves.numpy())
    assert explained(targets, leaves, 8) == pytest.approx(wanted, rel=1e-5)
    centered = targets - targets.mean(0)
    table = bucket_means(centered, leaves, 8)
    error = float((centered - table[leaves]).square().sum() + table.square().sum())
    left = float(centered.square().sum()) - taken_away(centered, leaves.numpy())
    assert error == pytest.approx(left, rel=1e-5)


def test_bins_are_what_edges_say() -> None:
    rows, _, _ = drawn(1)
    binned = BinnedRows.of(rows)
    assert binned.edges.shape == (6, BINS - 1)
    for column in range(6):
        wanted = (rows[:, column, None] > binned.edges[column]).sum(1)
        assert torch.equal(binned.bins[column], wanted)
    assert torch.bincount(binned.bins[0], minlength=BINS).max() <= 10  # of 300 in 32 bins


@pytest.mark.parametrize("level", [0, 1, 2])
def test_cuts_are_the_best_of_all(level: int) -> None:
    """With what the levels behind say as it is, for each node on its own."""
    rows, targets, tree = drawn(3, seed=level)
    binned, column = BinnedRows.of(rows), 4
    buckets = _Buckets.of(tree, rows, level)
    scores, edges = _best_cuts(binned, targets, buckets, column)
    leaves = leaves_of(rows, tree.columns.tolist(), tree.thresholds.numpy())
    nodes, below = leaves >> (3 - level), leaves % 2 ** (2 - level)
    for node in range(2**level):
        own = nodes == node
        tried = [
            taken_away(targets[own], 2 * below[own] + (rows[own, column].numpy() > edge))
            for edge in binned.edges[column].numpy()
        ]
        assert float(scores[node]) == pytest.approx(max(tried), rel=1e-4)
        at = binned.edges[column].tolist().index(float(edges[node]))
        assert tried[at] == pytest.approx(max(tried), rel=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_single_level_gets_the_best_column_of_all(seed: int) -> None:
    rows, targets, tree = drawn(1, seed)
    binned = BinnedRows.of(rows)
    found = better_tree(binned, targets, tree)
    tried = {
        (column, edge): taken_away(targets, (rows[:, column] > edge).long().numpy())
        for column in range(6)
        for edge in binned.edges[column].tolist()
    }
    assert explained(targets, found.leaves(rows), 2) >= max(tried.values()) * (1 - 1e-4)


def test_a_tree_of_useless_columns_gets_those_that_count() -> None:
    rows, _, _ = drawn(1, count=2000)
    wanted = Tree(torch.tensor([1, 3, 4]), torch.tensor([0, 0.1, -0.3, 0.4, 0.2, -0.2, 0, 0.5]))
    table = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))
    targets = table[wanted.leaves(rows)]
    targets -= targets.mean(0)
    tree, binned = Tree(torch.tensor([0, 2, 5]), torch.zeros(8)), BinnedRows.of(rows)
    for _ in range(3):
        tree = better_tree(binned, targets, tree)
    assert set(tree.columns.tolist()) <= {1, 3, 4}
    much = explained(targets, tree.leaves(rows), 8) / float(targets.square().sum())
    assert much > 0.7
    assert better_tree(binned, table[wanted.leaves(rows)], wanted) is wanted  # nothing is better


def test_columns_of_one_value_are_left_alone() -> None:
    rows = torch.ones(50, 3)
    tree = Tree(torch.tensor([0, 1]), torch.ones(4))
    assert better_tree(BinnedRows.of(rows), torch.randn(50, 2), tree) is tree


def test_means_lose_what_is_chance() -> None:
    """Of noise next to nothing is left; of means that differ as much as rows do, 1 - 1 / F."""
    rows, _, tree = drawn(4, count=4000)
    generator = torch.Generator().manual_seed(1)
    leaves, noise = tree.leaves(rows), torch.randn(4000, 40, generator=generator)
    assert certain_share(noise, leaves, 16) < 0.15
    table = torch.randn(16, 40, generator=generator)
    assert certain_share(table[leaves] + noise, leaves, 16) > 0.95
    values = table[leaves] / 20 + noise
    groups = [values[leaves == leaf].double().numpy() for leaf in leaves.unique().tolist()]
    middle = values.double().numpy().mean(0)
    between = sum(len(g) * ((g.mean(0) - middle) ** 2).sum() for g in groups) / (len(groups) - 1)
    within = sum(((g - g.mean(0)) ** 2).sum() for g in groups) / (4000 - len(groups))
    wanted = 1 - within / between
    assert certain_share(values, leaves, 16) == pytest.approx(wanted, abs=1e-4)
    assert certain_share(noise, torch.zeros(4000, dtype=torch.long), 16) == 0
