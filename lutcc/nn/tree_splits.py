"""Trees that are to compare other columns: found level by level, for targets of their table rows.

Rows in one bucket get one table row, so that of targets R (N, T) a tree explains the sum over its
buckets of ``|sum of R|^2 / (n + 1)``: the squared error that table rows take away, each of them
held back by one row of zeros. A level is chosen again with the others as they are: the rows of a
node are cut in two, at one value, so that the buckets that the deeper levels make of both halves
explain most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from lutcc.fit.thresholds import thresholds_between

#: Bins of a column: a threshold is one of the values between them.
BINS = 32
#: Columns whose cuts are tried for a level, and those of them that are tried in the whole tree.
CANDIDATES, FINALISTS = 16, 2
#: What counts as more: rounding makes no difference.
_MORE = 1 + 1e-5


class Tree(NamedTuple):
    """A tree as kernels have it.

    Parameters
    ----------
    columns
        (L,) int64: what each level compares.
    thresholds
        (2**L,) in heap order, entry 0 unused.
    """

    columns: Tensor
    thresholds: Tensor

    def leaves(self, rows: Tensor) -> Tensor:
        """Return (N,) int64: the leaf of each of ``rows`` (N, D).

        Examples
        --------
        >>> tree = Tree(torch.tensor([1]), torch.tensor([0.0, 2.0]))
        >>> tree.leaves(torch.tensor([[9.0, 2.0], [0.0, 3.0]])).tolist()
        [0, 1]
        """
        return self.reached(rows, len(self.columns))

    def reached(self, rows: Tensor, depth: int) -> Tensor:
        """Return (N,) int64: the node of level ``depth`` that each row gets to, from 0."""
        node = torch.ones(len(rows), dtype=torch.long, device=rows.device)
        values = rows[:, self.columns]
        for level in range(depth):
            node = 2 * node + (values[:, level] > self.thresholds[node])
        return node - 2**depth


@dataclass(frozen=True, eq=False)
class BinnedRows:
    """Rows, and the bin of each value in its column, with about as many rows in all.

    Attributes
    ----------
    rows
        (N, D).
    bins
        (D, N) int64: how many of the column's edges a value exceeds.
    edges
        (D, BINS - 1), ascending.
    """

    rows: Tensor
    bins: Tensor
    edges: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Self:
        """Cut the columns of ``rows`` (N, D), of two rows or more, into bins.

        Examples
        --------
        >>> BinnedRows.of(torch.tensor([[0.0], [4.0]])).edges.unique().tolist()
        [2.0]
        """
        ascending = rows.T.contiguous()
        places = torch.arange(1, BINS, device=rows.device) * len(rows) // BINS
        places = places.clamp(1, len(rows) - 1)
        ordered = ascending.sort(1).values
        beside = (ordered[:, places - 1], ordered[:, places], ordered)
        found = [
            np.maximum.accumulate(thresholds_between(*column))  # rounded, equal ones might not be
            for column in zip(*(part.cpu().numpy() for part in beside), strict=True)
        ]
        edges = torch.from_numpy(np.stack(found)).to(rows.device)
        return cls(rows, torch.searchsorted(edges, ascending), edges)


def better_tree(binned: BinnedRows, targets: Tensor, tree: Tree) -> Tree:
    """Return a tree that explains more of ``targets`` (N, T) by other columns, or ``tree`` itself.

    From the last level to the first, columns are ranked by what they explain linearly within the
    buckets of the other levels; the best cuts of the first CANDIDATES are found, and the first
    FINALISTS of these take the level's place, with the thresholds below chosen anew.

    Examples
    --------
    >>> rows = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(4, 1)
    >>> tree = Tree(torch.tensor([0]), torch.tensor([0.0, 0.5]))
    >>> found = better_tree(BinnedRows.of(rows), rows[:, 1:], tree)
    >>> found.columns.tolist(), found.thresholds[1].item()
    ([1], 0.0)
    """
    depth = len(tree.columns)
    best, most = tree, explained(targets, tree.leaves(binned.rows), 2**depth)
    for level in reversed(range(depth)):
        start, tried = best, list[tuple[float, int]]()
        buckets = _Buckets.of(start, binned.rows, level)
        for column in _ranked(binned, targets, buckets)[:CANDIDATES]:
            scores, _ = _best_cuts(binned, targets, buckets, column)
            tried.append((float(scores.sum()), column))
        tried.sort(key=lambda pair: -pair[0])
        for _, column in tried[:FINALISTS]:
            found = _with_column(binned, targets, start, level, column)
            much = explained(targets, found.leaves(binned.rows), 2**depth)
            if much > most * _MORE and not torch.equal(found.columns, tree.columns):
                best, most = found, much
    return best


def explained(targets: Tensor, leaves: Tensor, entries: int) -> float:
    """Return how much of ``targets`` (N, T) table rows explain that ``leaves`` (N,) choose.

    Examples
    --------
    >>> round(explained(torch.tensor([[2.0], [2.0], [-3.0]]), torch.tensor([0, 0, 1]), 2), 3)
    9.833
    """
    sums = bucket_sums(targets, leaves, entries)
    return float((sums.square().sum(1) / (_counts(leaves, entries) + 1)).sum())


def bucket_means(values: Tensor, leaves: Tensor, entries: int, prior: float = 1.0) -> Tensor:
    """Return (K, T): of each bucket's values and ``prior`` rows more, of the mean of all.

    Examples
    --------
    >>> bucket_means(torch.tensor([[1.0], [5.0]]), torch.tensor([0, 0]), 2).tolist()
    [[3.0], [3.0]]
    """
    sums, counts = bucket_sums(values, leaves, entries), _counts(leaves, entries)
    return (sums + prior * values.mean(0)) / (counts + prior)[:, None]


def certain_share(values: Tensor, leaves: Tensor, entries: int) -> float:
    """Return what is left of the means of buckets without the chance in them: 0 to 1.

    Of ``values`` (N, T), spread by chance within buckets, means differ by chance, too: by as much,
    a row, for each bucket after the first. This is ``1 - 1 / F``, as James and Stein shrink means.

    Examples
    --------
    >>> values, leaves = torch.tensor([[0.0], [1.0], [4.0], [5.0]]), torch.tensor([0, 0, 1, 1])
    >>> round(certain_share(values, leaves, 2), 3)  # between buckets 16, within 1
    0.969
    >>> certain_share(values, torch.tensor([0, 1, 0, 1]), 2)
    0.0
    """
    counts = _counts(leaves, entries)
    filled, centered = int((counts > 0).sum()), values - values.mean(0)
    sums = bucket_sums(centered, leaves, entries)
    between = float((sums.square().sum(1) / counts.clamp_min(1)).sum())
    within = float(centered.square().sum()) - between
    if not between > 0 or not len(values) > filled > 1:
        return 0.0
    chance = within * (filled - 1) / (len(values) - filled)
    return min(max(1 - chance / between, 0.0), 1.0)


def bucket_sums(values: Tensor, buckets: Tensor, count: int) -> Tensor:
    """Return (count, T): the sums of the ``values`` (N, T) in each of ``buckets`` (N,).

    The same bits every time, also on a GPU.
    """
    if values.is_cuda:  # index_add_ adds in any order there
        chosen = torch.arange(count, device=buckets.device)[:, None] == buckets
        return chosen.to(values.dtype) @ values
    return values.new_zeros(count, values.shape[1]).index_add_(0, buckets, values)


class _Buckets(NamedTuple):
    """What a tree without one of its levels makes of rows: that level's nodes, and what is below.

    Parameters
    ----------
    nodes, below
        (N,): the node of the level, and what the levels behind it say, as a number.
    level, depth
        The level's number, and how many there are.
    """

    nodes: Tensor
    below: Tensor
    level: int
    depth: int

    @classmethod
    def of(cls, tree: Tree, rows: Tensor, level: int) -> Self:
        depth = len(tree.columns)
        leaves, behind = tree.leaves(rows), depth - 1 - level
        return cls(leaves >> (behind + 1), leaves & (2**behind - 1), level, depth)

    @property
    def numbers(self) -> Tensor:
        """(N,): both as one number below 2**(depth - 1)."""
        return (self.nodes << (self.depth - 1 - self.level)) + self.below


def _ranked(binned: BinnedRows, targets: Tensor, buckets: _Buckets) -> list[int]:
    """Return the columns, first that whose bins explain most linearly within the buckets."""
    numbers, many = buckets.numbers, 2 ** (buckets.depth - 1)
    counts = _counts(numbers, many).clamp_min(1)[:, None]

    def within(values: Tensor) -> Tensor:
        return values - (bucket_sums(values, numbers, many) / counts)[numbers]

    places = within(binned.bins.T.to(targets.dtype))
    shared = (places.T @ within(targets)).square().sum(1)
    deviation = places.square().sum(0)
    usable = deviation > 1e-3
    rank = torch.where(usable, shared / deviation.clamp_min(1e-3), -1.0)
    order = rank.argsort(descending=True, stable=True)
    return order[: int(usable.sum())].tolist()


def _best_cuts(
    binned: BinnedRows, targets: Tensor, buckets: _Buckets, column: int
) -> tuple[Tensor, Tensor]:
    """Return (nodes,) what the best cut of each node by a column explains, and its edge."""
    nodes, below = 2**buckets.level, 2 ** (buckets.depth - 1 - buckets.level)
    place, shape = buckets.numbers * BINS + binned.bins[column], (nodes, below, BINS)
    sums = bucket_sums(targets, place, nodes * below * BINS).view(*shape, -1).cumsum(2)
    counts = _counts(place, nodes * below * BINS).view(shape).cumsum(2)

    def part(total: Tensor, rows: Tensor) -> Tensor:
        return total.square().sum(-1) / (rows + 1)

    left = part(sums, counts)
    right = part(sums[:, :, -1:] - sums, counts[:, :, -1:] - counts)
    best, edge = (left + right).sum(1)[:, :-1].max(1)  # no cut is behind the last bin
    return best, binned.edges[column, edge]


def _with_column(binned: BinnedRows, targets: Tensor, tree: Tree, level: int, column: int) -> Tree:
    """Return the tree with another column at a level, and thresholds from there on chosen anew."""
    columns, thresholds = tree.columns.clone(), tree.thresholds.clone()
    columns[level] = column
    found = Tree(columns, thresholds)
    for deeper in range(level, len(columns)):
        # of the levels behind the first one only the columns are as they were
        buckets = _Buckets.of(tree if deeper == level else found, binned.rows, deeper)
        _, edges = _best_cuts(binned, targets, buckets, int(columns[deeper]))
        thresholds[2**deeper : 2 ** (deeper + 1)] = edges
    return found


def _counts(buckets: Tensor, count: int) -> Tensor:
    """Return (count,) float32: how many rows each bucket has."""
    return torch.bincount(buckets, minlength=count).to(torch.float32)
