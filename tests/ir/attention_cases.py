"""Hypothesis strategy: single attentions with inputs."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from tests.ir.models import Case, floats, seeds


@st.composite
def attention(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, s, t = (draw(st.integers(1, most)) for most in (2, 4, 5))
    groups, group, d, e = (draw(st.integers(1, 3)) for _ in range(4))
    heads = groups * group
    kind = draw(st.sampled_from(["none", "add", "keep"]))
    shape = [1, 1, 1, 1]
    if kind != "none":
        shape = [size if draw(st.booleans()) else 1 for size in (n, heads, s, t)]
    mask = floats(rng, *shape)
    if kind == "add":
        mask = np.where(rng.random(shape) < 0.3, -np.inf, mask).astype(np.float32)
    elif kind == "keep":
        mask = rng.integers(0, 2, shape).astype(np.uint8)
    rows = [floats(rng, n, length, width) for length, width in ((s, heads * d), (t, groups * d))]
    return Case(
        "attention",
        (*rows, floats(rng, n, t, groups * e), mask),
        {
            "heads": heads,
            "kv_heads": groups,
            "scale": draw(st.sampled_from([1.0, 0.3])),
            "mask": kind,
            "causal": draw(st.booleans()),
        },
    )


CASES = {"attention": attention()}
