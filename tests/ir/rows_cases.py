"""Hypothesis strategies: layer norms, softmaxes and activations with inputs."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from lutcc.ir.activations import KINDS
from tests.ir.models import Case, floats, seeds


def _x(draw: st.DrawFn, rng: np.random.Generator) -> np.ndarray:
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    x = floats(rng, *shape) * np.float32(draw(st.sampled_from([1, 10])))
    for _ in range(draw(st.integers(0, 2))):
        special = draw(st.sampled_from([np.nan, np.inf, -np.inf, 0]))
        x[rng.integers(shape[0]), rng.integers(shape[1])] = special
    return x


@st.composite
def activation(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    return Case("activation", (_x(draw, rng),), {"kind": draw(st.sampled_from(KINDS))})


@st.composite
def layer_norm(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    x = _x(draw, rng)
    columns = x.shape[1]
    arrays = (x, floats(rng, columns), floats(rng, columns))
    return Case("layer_norm", arrays, {"eps": draw(st.sampled_from([1e-5, 1e-12, 0.5]))})


@st.composite
def softmax(draw: st.DrawFn) -> Case:
    return Case("softmax", (_x(draw, np.random.default_rng(draw(seeds()))),), {})


@st.composite
def leaky_relu(draw: st.DrawFn) -> Case:
    x = _x(draw, np.random.default_rng(draw(seeds())))
    return Case("leaky_relu", (x,), {"slope": draw(st.sampled_from([0.1, 0.0, 1.5, -0.5, -1.0]))})


@st.composite
def rounded(draw: st.DrawFn) -> Case:
    x = _x(draw, np.random.default_rng(draw(seeds())))
    halves = np.rint(np.clip(x, -99, 99)) + np.float32(0.5)
    return Case("round", (halves if draw(st.booleans()) else x,), {})


@st.composite
def clamp(draw: st.DrawFn) -> Case:
    x = _x(draw, np.random.default_rng(draw(seeds())))
    ends = {"low": st.sampled_from([-0.1, 0.0, 2.0]), "high": st.sampled_from([0.3, 1.0, 6.0])}
    given = draw(st.sampled_from([(), ("low",), ("high",), ("low", "high")]))
    return Case("clamp", (x,), {name: draw(ends[name]) for name in given})


CASES = {
    "activation": activation(),
    "leaky_relu": leaky_relu(),
    "clamp": clamp(),
    "round": rounded(),
    "layer_norm": layer_norm(),
    "softmax": softmax(),
}
