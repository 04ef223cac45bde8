"""Hypothesis strategies: single operations of the sampled family with inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from lutcc.ir.sampling import MODES
from tests.ir.models import Case, floats, seeds


@st.composite
def column_row_scores(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, k, m = (draw(st.integers(1, 9)) for _ in range(3))
    kind = draw(st.sampled_from([np.float32, ml_dtypes.bfloat16]))
    attrs = {"group_size": draw(st.integers(1, 11)), "weights_only": draw(st.booleans())}
    return Case(
        "column_row_scores", (floats(rng, n, k).astype(kind), floats(rng, k, m).astype(kind)), attrs
    )


@st.composite
def convolution(draw: st.DrawFn) -> tuple[np.random.Generator, tuple[np.ndarray, ...], dict]:
    """Return images, weights and attributes that fit."""
    rng = np.random.default_rng(draw(seeds()))
    groups = draw(st.integers(1, 3))
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    kernel, stride, dilation = draw(pair), draw(pair), draw(st.sampled_from([(1, 1), (1, 2)]))
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    size = [
        max(1, dilation[i] * (kernel[i] - 1) + 1 - 2 * padding[i] + draw(st.integers(0, 3)))
        for i in (0, 1)
    ]
    per_group, outputs = draw(st.integers(1, 3)), groups * draw(st.integers(1, 2))
    x = floats(rng, draw(st.integers(1, 2)), groups * per_group, *size)
    weight = floats(rng, outputs, per_group, *kernel)
    attrs = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return rng, (x, weight), attrs


@st.composite
def channel_scores(draw: st.DrawFn) -> Case:
    _, arrays, attrs = draw(convolution())
    return Case("channel_scores", arrays, {**attrs, "weights_only": draw(st.booleans())})


@st.composite
def column_row_sample(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    groups, pairs = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    scores = rng.exponential(size=groups * pairs).astype(np.float32) ** draw(st.integers(1, 6))
    scores[rng.random(scores.shape) < draw(st.sampled_from([0, 0, 0.3, 1]))] = 0
    if draw(st.integers(0, 5)) == 0:
        scores[rng.random(scores.shape) < 0.2] = draw(st.sampled_from([np.nan, np.inf]))
    mode = draw(st.sampled_from(MODES))
    attrs = {
        "k": draw(st.integers(1, pairs)),
        "mode": mode,
        "groups": groups,
        "seed": draw(st.one_of(st.integers(0, 9), st.integers(0, 2**63 - 1))),
    }
    if mode in ("crs", "bernoulli"):
        attrs["probabilities"] = draw(st.sampled_from(["optimal", "uniform"]))
    return Case("column_row_sample", (scores,), attrs)


def sample_of(
    draw: st.DrawFn, rng: np.random.Generator, groups: int, pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and scales of some pairs of each group; the places left take nothing."""
    places = draw(st.integers(1, pairs))
    indices, scales = np.zeros((groups, places), np.int32), np.zeros((groups, places), np.float32)
    for group in range(groups):
        count = draw(st.integers(0, places))
        chosen = np.sort(rng.permutation(pairs)[:count])
        indices[group, :count] = chosen + group * pairs
        scales[group, :count] = rng.uniform(0.5, 3, count)
    return indices.reshape(-1), scales.reshape(-1)


@st.composite
def sampled_matmul(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, k, m, group = (draw(st.integers(1, 9)) for _ in range(4))
    kind = draw(st.sampled_from([np.float32, ml_dtypes.bfloat16]))
    indices, scales = sample_of(draw, rng, 1, -(-k // group))
    factors = floats(rng, n, k).astype(kind), floats(rng, k, m).astype(kind)
    arrays = (*factors, indices, scales, floats(rng, m))
    return Case("sampled_matmul", arrays, {"group_size": group})


@st.composite
def sampled_conv2d(draw: st.DrawFn) -> Case:
    rng, (x, weight), attrs = draw(convolution())
    indices, scales = sample_of(draw, rng, attrs["groups"], weight.shape[1])
    return Case("sampled_conv2d", (x, weight, indices, scales, floats(rng, len(weight))), attrs)


CASES: dict[str, st.SearchStrategy[Case]] = {
    "column_row_scores": column_row_scores(),
    "channel_scores": channel_scores(),
    "column_row_sample": column_row_sample(),
    "sampled_matmul": sampled_matmul(),
    "sampled_conv2d": sampled_conv2d(),
}
