"""Thresholds of trees behind functions of a sum, as questions about the sum itself.

``f(sum) > t`` holds for some of the sums that a column can take. They are all tried: whatever f is,
and however it rounds, what is found is exact. Where f never falls they are those above an integer
T; where it falls, those below one; where it turns once, as GELU does, those outside an interval or
those inside one. A function that turns more often is refused, unless no threshold lies there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutcc.ir.types import Array

#: Thresholds times sums that are compared at a time.
_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Questions:
    """For each threshold, the interval of sums outside which the answer is yes.

    Attributes
    ----------
    first, last
        (T,) int64, inclusive. ``last == first - 1`` is no interval: the answer is always yes. A
        lesser ``last`` means that the interval goes round: the answer is yes for what is between.
    rising
        Whether every answer is yes above some integer, and no up to it.
    falling
        The same, the other way round.
    """

    first: Array
    last: Array
    rising: bool
    falling: bool


def questions(least: int, y: Array, thresholds: Array) -> Questions | None:
    """Return for which sums ``y > t``, for each threshold t; None if that is no one interval.

    Parameters
    ----------
    least
        The smallest sum.
    y
        (S,) what the sums from ``least`` on become.
    thresholds
        (T,)

    Examples
    --------
    >>> found = questions(10, np.float32([0, -1, -2, 0, 3]), np.float32([1, -1.5]))
    >>> found.first.tolist(), found.last.tolist(), found.rising
    ([10, 12], [13, 12], False)
    """
    wide = np.asarray(y, np.float64)  # differences of uint8 would go round
    most = least + len(y) - 1
    first = np.full(len(thresholds), least, np.int64)
    last = np.full(len(thresholds), most, np.int64)
    nan = np.isnan(wide).any() or np.isnan(thresholds).any()
    with np.errstate(invalid="ignore"):  # of two infinities: neither rises nor falls
        steps = np.diff(wide)
    if not nan and (steps >= 0).all():
        last[:] = least - 1 + np.searchsorted(wide, thresholds, "right")
        return Questions(first, last, rising=True, falling=False)
    if not nan and (steps <= 0).all():
        first[:] = least + len(wide) - np.searchsorted(wide[::-1], thresholds, "right")
        return Questions(first, last, rising=False, falling=True)
    rising = falling = True
    each = max(1, _AT_ONCE // len(wide))
    for start in range(0, len(thresholds), each):
        part = slice(start, start + each)
        above = wide[None, :] > thresholds[part, None]
        turns = np.count_nonzero(above[:, 1:] != above[:, :-1], axis=1)
        if (turns > 2).any():
            return None
        begin, end = above[:, 0], above[:, -1]
        rising &= bool(((turns == 0) | ((turns == 1) & end)).all())
        falling &= bool(((turns == 0) | ((turns == 1) & begin)).all())
        no = ~above
        from_left = least + no.argmax(1)  # the first sum whose answer is no
        from_right = most - no[:, ::-1].argmax(1)  # the last such
        inside = (turns == 2) & ~begin
        # yes between the two: the interval of the answer no goes round
        after = most + 1 - above[:, ::-1].argmax(1)
        before = least - 1 + above.argmax(1)
        first[part] = np.where(inside, after, from_left)
        last[part] = np.where(inside, before, from_right)
        always = (turns == 0) & begin
        first[part][always], last[part][always] = least, least - 1
    return Questions(first, last, rising=rising, falling=falling)


def plain(found: Questions, least: int) -> Array:
    """Return T for each threshold of a rising column, where the answer is ``sum > T``: int32."""
    return np.where(found.last < found.first, least - 1, found.last).astype(np.int32)


def below(found: Questions, most: int) -> Array:
    """Return T for each threshold of a falling column, where the answer is ``sum <= T``: int64."""
    return np.where(found.last < found.first, most, found.first - 1)


def intervals(found: Questions, most: int) -> tuple[Array, Array]:
    """Return starts and widths as ``interval_encode`` takes them: int32 each."""
    always = found.last == found.first - 1  # any interval that no sum is in
    first = np.where(always, most + 1, found.first)
    last = np.where(always, most + 1, found.last)
    widths = (last - first) % (1 << 32)
    return first.astype(np.int32), widths.astype(np.uint32).view(np.int32)
