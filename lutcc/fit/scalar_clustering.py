"""Clusters of numbers, for many sets of numbers at once: the codebooks of every region.

All methods work on sorted numbers, where a cluster is an interval. Sets are rows of an array; they
are taken in blocks, so that memory stays small.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from lutcc.codebook_options import CLUSTERINGS
from lutcc.lookup_options import check_name

F64Array = npt.NDArray[np.float64]
Positions = npt.NDArray[np.intp]

#: Numbers of a block of sets.
_BLOCK = 1 << 21
#: More numbers than that in a set are replaced by the means of so many bins of equal width.
_MOST_POINTS = 1 << 16
#: Bins that merging, splitting and seeding begin with: as many as keep sets x bins**2 below this.
_WORK = 1 << 30
_FEWEST_BINS, _MOST_BINS, _GRAPH_BINS = 128, 1024, 64
#: Kernel width of the graph, in standard deviations of the set.
_GRAPH_WIDTH = 0.25
_ITERATIONS = 50


def cluster_scalars(
    values: npt.ArrayLike,
    count: int,
    method: str = "hierarchical",
    *,
    weights: npt.ArrayLike | None = None,
    random: np.random.RandomState | None = None,
) -> F64Array:
    """Return (R, ``count``) float64: the means of the clusters of each row, ascending.

    Parameters
    ----------
    values
        (R, n) finite numbers, a set per row.
    count
        Clusters of a set. A set of fewer distinct numbers repeats some.
    method
        "hierarchical": neighbours are merged, the pair first that adds least to the squared error
        (Ward), and the result is refined by Lloyd's iterations. "kmeans": Lloyd's iterations from
        k-means++. "bisecting": the set of the largest squared error is split in the best way,
        again and again. "graph": the set with the smallest normalised cut is split at it, again and
        again. "random": means of a random partition.
    weights
        (n,) or (R, n) positive factors of the squared errors; None: all 1.
    random
        Of "kmeans" and "random".

    Notes
    -----
    Sources: Ward; Lloyd 1982; Arthur and Vassilvitskii (k-means++); Shi and Malik 2000 (normalised
    cuts: for numbers, the second eigenvector is monotone, so that all cuts are tried instead).

    Examples
    --------
    >>> cluster_scalars([[0, 1, 10, 11, 1], [5, 5, 6, 6, 6]], 2).tolist()
    [[0.6666666666666666, 10.5], [5.0, 6.0]]
    """
    check_name("cluster_scalars", "method", method, CLUSTERINGS)
    numbers = np.asarray(values)
    random = random or np.random.RandomState(0)
    factors = None if weights is None else np.asarray(weights, np.float64)
    sets, size = numbers.shape
    result = np.empty((sets, count))
    for part in _blocks(sets, size):
        mass = factors if factors is None or factors.ndim == 1 else factors[part]
        if method == "random":
            result[part] = _random_means(numbers[part], mass, count, random)
            continue
        points = _Points.of(numbers[part], mass)
        result[part] = _cluster(points, count, method, sets, random)
    result.sort(axis=1)
    return result


def nearest(values: npt.ArrayLike, tables: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Return (R, n): which of the ascending ``tables`` (R, L) is nearest to each value (R, n).

    Examples
    --------
    >>> nearest([[0.4, 0.6]], [[0.0, 1.0]]).tolist()
    [[0, 1]]
    """
    numbers, entries = np.asarray(values), np.asarray(tables, np.float64)
    middles = ((entries[:, 1:] + entries[:, :-1]) / 2).astype(np.float32)
    result = np.zeros(numbers.shape, np.uint8)
    sets, size = numbers.shape
    for columns in _slices(size, _BLOCK):
        for part in _blocks(sets, min(size, 1 << 16)):
            block = np.ascontiguousarray(numbers[part, columns], np.float32)
            total = result[part, columns]
            for middle in middles[part].T:
                total += block > middle[:, None]
    return result


@dataclass(frozen=True, slots=True)
class _Points:
    """Sorted points of each set, and sums over those before each.

    Attributes
    ----------
    points
        (R, n) float64, ascending.
    mass, moment
        (R, n + 1) float64: sums of the masses, and of masses times points, of those before.
    """

    points: F64Array
    mass: F64Array
    moment: F64Array

    @classmethod
    def of(cls, values: npt.NDArray, weights: F64Array | None) -> _Points:
        if values.shape[1] > _MOST_POINTS:
            points, mass = _histogram(values, weights, _MOST_POINTS)
        elif weights is None:
            points = np.sort(values, axis=1).astype(np.float64)
            mass = np.ones_like(points)
        else:
            order = np.argsort(values, axis=1)
            points = np.take_along_axis(values, order, axis=1).astype(np.float64)
            mass = weights[order] if weights.ndim == 1 else np.take_along_axis(weights, order, 1)
        return cls(points, _before(mass), _before(mass * points))

    def bins(self, most: int) -> tuple[F64Array, F64Array]:
        """Return the masses and moments (R, B <= ``most``) of bins: points, or equal widths."""
        if self.points.shape[1] <= most:
            return np.diff(self.mass), np.diff(self.moment)
        low, high = self.points[:, :1], self.points[:, -1:]
        edges = low + (high - low) * np.linspace(0, 1, most + 1)[1:-1]
        starts = _search(self.points, edges, np.arange(len(edges)))
        return self.sums(starts, np.arange(len(starts)))

    def sums(self, starts: Positions, sets: Positions) -> tuple[F64Array, F64Array]:
        """Return masses and moments (R, B) of ``sets``: intervals begin at 0 and ``starts``."""
        size = self.points.shape[1]
        edges = np.pad(starts, ((0, 0), (1, 1)), constant_values=((0, 0), (0, size)))
        flat = edges + sets[:, None] * (size + 1)
        return np.diff(self.mass.ravel()[flat]), np.diff(self.moment.ravel()[flat])


def _cluster(
    points: _Points, count: int, method: str, sets: int, random: np.random.RandomState
) -> F64Array:
    most = int(np.clip(np.sqrt(_WORK / sets), _FEWEST_BINS, _MOST_BINS))
    bins = points.bins(_GRAPH_BINS if method == "graph" else most)
    mass, moment = _padded(*bins, count)
    if method == "graph":
        return _cut(mass, moment, count)
    if method == "bisecting":
        return _bisect(mass, moment, count)
    if method == "kmeans":
        return _lloyd(points, _seeds(mass, moment, count, random))
    return _lloyd(points, _ward(mass, moment, count))


def _lloyd(points: _Points, means: F64Array) -> F64Array:
    """Return ``means`` (R, L) after Lloyd's iterations: until they stay, or so many."""
    tolerance = 1e-5 * np.ptp(points.points[:, [0, -1]], axis=1)[:, None]
    means = np.sort(means, axis=1)
    active = np.arange(len(means))
    for _ in range(_ITERATIONS):
        old = means[active]
        starts = _search(points.points, (old[:, 1:] + old[:, :-1]) / 2, active)
        mass, moment = points.sums(starts, active)
        new = np.divide(moment, mass, out=old.copy(), where=mass > 0)
        means[active] = new
        active = active[(np.abs(new - old) > tolerance[active]).any(axis=1)]
        if not active.size:
            break
    return means


def _ward(mass: F64Array, moment: F64Array, count: int) -> F64Array:
    """Return (R, ``count``) means after merging the bins (R, B), the cheapest neighbours first."""
    sets, size = mass.shape
    # One more column at either end stands for "none": nothing merges with it.
    mass = np.pad(mass, ((0, 0), (1, 1)), constant_values=np.nan)
    moment = np.pad(moment, ((0, 0), (1, 1)))
    width = size + 2
    after = np.tile(np.arange(1, width + 1), (sets, 1)).ravel()
    before = np.tile(np.arange(-1, width - 1), (sets, 1)).ravel()
    base = np.arange(sets) * width
    flat_mass, flat_moment = mass.ravel(), moment.ravel()

    def price(left: Positions, right: Positions) -> F64Array:
        """Return what merging adds to the squared error; infinity for what is none."""
        a, b = flat_mass[left], flat_mass[right]
        total = a + b
        # (m_a / a - m_b / b)**2 a b / (a + b), without dividing by an empty bin's mass
        cross = flat_moment[left] * b - flat_moment[right] * a
        product = a * b * total
        value = np.divide(cross * cross, product, out=np.zeros_like(product), where=product > 0)
        return np.where(np.isnan(total), np.inf, value)

    every = (base[:, None] + np.arange(width - 1)).ravel()
    cost = np.full((sets, width), np.inf, np.float32)
    cost[:, :-1] = price(every, every + 1).reshape(sets, -1)
    flat_cost = cost.ravel()
    for _ in range(size - count):
        at = cost.argmin(axis=1)
        left = base + at
        right = base + after[left]
        beyond = after[right]
        flat_mass[left] += flat_mass[right]
        flat_moment[left] += flat_moment[right]
        after[left] = beyond
        before[base + beyond] = at
        flat_cost[right] = np.inf
        flat_mass[right] = np.inf
        flat_cost[left] = price(left, base + beyond)
        previous = base + before[left]
        flat_cost[previous] = price(previous, left)
    kept = np.isfinite(flat_mass)
    return _filled(flat_mass[kept].reshape(sets, count), flat_moment[kept].reshape(sets, count))


def _divide(
    sets: int, size: int, count: int, choose: Callable[[Positions], Positions]
) -> Positions:
    """Return (R, ``count`` + 1) edges of intervals: ``choose`` finds one more (R,), repeatedly."""
    edges = np.tile(np.asarray([0, size]), (sets, 1))
    for _ in range(count - 1):
        edges = np.sort(np.column_stack([edges, choose(edges)]), axis=1)
    return edges


def _bisect(mass: F64Array, moment: F64Array, count: int) -> F64Array:
    """Return (R, ``count``) means: the interval of the largest error is split best, repeatedly."""
    sets, size = mass.shape
    means = np.divide(moment, mass, out=np.zeros_like(mass), where=mass > 0)
    total, first, second = _before(mass), _before(moment), _before(mass * means**2)
    rows, positions = np.arange(sets), np.arange(1, size)

    def explained(weight: F64Array, sums: F64Array) -> F64Array:
        return np.divide(sums**2, weight, out=np.zeros_like(sums), where=weight > 0)

    def choose(edges: Positions) -> Positions:
        parts = [np.diff(np.take_along_axis(a, edges, axis=1)) for a in (total, first, second)]
        worst = (parts[2] - explained(parts[0], parts[1])).argmax(axis=1)
        low, high = edges[rows, worst], edges[rows, worst + 1]
        gain = np.zeros((sets, size - 1))
        for edge in (low, high):
            gain += explained(
                np.abs(total[:, 1:-1] - total[rows, edge][:, None]),
                first[:, 1:-1] - first[rows, edge][:, None],
            )
        inside = (positions > low[:, None]) & (positions < high[:, None])
        best = np.where(inside, gain, -np.inf).argmax(axis=1) + 1
        return np.where(inside.any(axis=1), best, high)

    return _interval_means(total, first, _divide(sets, size, count, choose))


def _cut(mass: F64Array, moment: F64Array, count: int) -> F64Array:
    """Return (R, ``count``) means: the interval of the smallest normalised cut is cut there."""
    sets, size = mass.shape
    result = np.empty((sets, count))
    for part in _blocks(sets, size * size):
        likeness = _likeness(mass[part], moment[part])
        total, first = _before(mass[part]), _before(moment[part])
        edges = _divide(len(total), size, count, partial(_smallest_cut, likeness, total))
        result[part] = _interval_means(total, first, edges)
    return result


def _likeness(mass: F64Array, moment: F64Array) -> F64Array:
    """Return (R, B + 1, B + 1): the likenesses of all pairs of bins before each, added up."""
    means = np.divide(moment, mass, out=np.zeros_like(mass), where=mass > 0)
    weight = mass.sum(axis=1, keepdims=True)
    centre = moment.sum(axis=1, keepdims=True) / weight
    variance = (mass * (means - centre) ** 2).sum(axis=1, keepdims=True) / weight
    width = 2 * _GRAPH_WIDTH**2 * np.where(variance > 0, variance, 1)
    apart = (means[:, :, None] - means[:, None, :]) ** 2 / width[:, :, None]
    likeness = np.exp(-apart) * mass[:, :, None] * mass[:, None, :]
    return np.pad(likeness.cumsum(axis=1).cumsum(axis=2), ((0, 0), (1, 0), (1, 0)))


def _smallest_cut(likeness: F64Array, total: F64Array, edges: Positions) -> Positions:
    """Return (R,): where the smallest normalised cut of any of the intervals is."""
    sets, size = len(edges), total.shape[1] - 1
    rows, at = np.arange(sets)[:, None], np.arange(1, size)
    interval = (edges[:, 1:-1, None] <= at).sum(axis=1)
    low = np.take_along_axis(edges, interval, axis=1)
    high = np.take_along_axis(edges, interval + 1, axis=1)

    def links(a: Positions, b: Positions) -> F64Array:
        """Return the sum of likenesses between bins low .. a - 1 and low .. b - 1."""
        part = likeness[rows, a, b] - likeness[rows, low, b]
        return part - likeness[rows, a, low] + likeness[rows, low, low]

    here = np.broadcast_to(at, low.shape)
    left, both = links(here, high), links(high, high)
    between = left - links(here, here)
    right = both - left
    # An empty side is no cut; neither is what rounding leaves of one.
    whole = (total[rows, here] > total[rows, low]) & (total[rows, high] > total[rows, here])
    whole &= (left > 0) & (right > 0)
    value = np.full(low.shape, np.inf)
    value[whole] = between[whole] * (1 / left[whole] + 1 / right[whole])
    best = value.argmin(axis=1)
    possible = np.isfinite(value[rows[:, 0], best])
    return np.where(possible, best + 1, size)


def _seeds(mass: F64Array, moment: F64Array, count: int, random: np.random.RandomState) -> F64Array:
    """Return (R, ``count``) points drawn with odds of their squared distance to those before."""
    means = np.divide(moment, mass, out=np.zeros_like(mass), where=mass > 0)
    rows = np.arange(len(mass))
    odds, distance = mass, np.full(mass.shape, np.inf)
    seeds = np.empty((len(mass), count))
    for i in range(count):
        sums = odds.cumsum(axis=1)
        drawn = random.uniform(size=(len(mass), 1)) * sums[:, -1:]
        seeds[:, i] = means[rows, (sums <= drawn).sum(axis=1).clip(max=mass.shape[1] - 1)]
        distance = np.minimum(distance, (means - seeds[:, i : i + 1]) ** 2)
        odds = mass * distance
    return seeds


def _random_means(
    values: npt.NDArray, weights: F64Array | None, count: int, random: np.random.RandomState
) -> F64Array:
    """Return (R, ``count``): the means of a random partition of each set."""
    sets = len(values)
    labels = random.randint(count, size=values.shape) + count * np.arange(sets)[:, None]
    mass = np.ones(values.shape) if weights is None else np.broadcast_to(weights, values.shape)
    total = np.bincount(labels.ravel(), mass.ravel(), sets * count).astype(np.float64)
    sums = np.bincount(labels.ravel(), (mass * values).ravel(), sets * count).astype(np.float64)
    return _filled(total.reshape(sets, count), sums.reshape(sets, count))


def _histogram(
    values: npt.NDArray, weights: F64Array | None, bins: int
) -> tuple[F64Array, F64Array]:
    """Return the means and masses (R, ``bins``) of bins of equal width, in order."""
    sets = len(values)
    mass, moment = np.zeros((sets, bins)), np.zeros((sets, bins))
    for r, row in enumerate(values):
        low, high = float(row.min()), float(row.max())
        step = (high - low) / bins or 1.0
        for part in _slices(row.size, _BLOCK):
            block = row[part].astype(np.float64)
            factors = None if weights is None else (weights if weights.ndim == 1 else weights[r])
            factors = np.ones(block.size) if factors is None else factors[part]
            bin_of = np.minimum((block - low) / step, bins - 1).astype(np.intp)
            mass[r] += np.bincount(bin_of, factors, bins)
            moment[r] += np.bincount(bin_of, factors * block, bins)
        edges = low + step * (np.arange(bins) + 0.5)
        moment[r] = np.divide(moment[r], mass[r], out=edges, where=mass[r] > 0)
    return moment, mass


def _before(values: F64Array) -> F64Array:
    """Return (R, n + 1): the sum of the values before each position."""
    result = np.zeros((values.shape[0], values.shape[1] + 1))
    np.cumsum(values, axis=1, out=result[:, 1:])
    return result


def _interval_means(total: F64Array, first: F64Array, edges: Positions) -> F64Array:
    mass, moment = (np.diff(np.take_along_axis(a, edges, axis=1)) for a in (total, first))
    return _filled(mass, moment)


def _filled(mass: F64Array, moment: F64Array) -> F64Array:
    """Return the means, ascending; those of empty clusters repeat the largest."""
    means = np.divide(moment, mass, out=np.full_like(mass, -np.inf), where=mass > 0)
    largest = means.max(axis=1, keepdims=True)
    return np.sort(np.where(mass > 0, means, largest), axis=1)


def _padded(mass: F64Array, moment: F64Array, count: int) -> tuple[F64Array, F64Array]:
    """Return masses and moments with empty bins up to ``count``."""
    more = ((0, 0), (0, max(0, count - mass.shape[1])))
    return np.pad(mass, more), np.pad(moment, more)


def _search(points: F64Array, thresholds: F64Array, sets: Positions) -> Positions:
    """Return (R, T): how many of the ascending points of ``sets`` are at or below thresholds."""
    low = np.zeros(thresholds.shape, np.intp)
    high = np.full(thresholds.shape, points.shape[1])
    base = sets[:, None] * points.shape[1]
    flat = points.ravel()
    for _ in range(points.shape[1].bit_length()):
        middle = (low + high) // 2
        below = flat[base + np.minimum(middle, points.shape[1] - 1)] <= thresholds
        below &= low < high
        low = np.where(below, middle + 1, low)
        high = np.where(below, high, middle)
    return low


def _slices(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _blocks(sets: int, size: int) -> Iterator[slice]:
    """Yield slices of sets of ``size`` numbers that fill a block."""
    return _slices(sets, max(1, _BLOCK // max(size, 1)))
