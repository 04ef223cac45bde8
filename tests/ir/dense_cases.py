"""Hypothesis strategy: single dense products with inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tests.ir.models import Case, floats, seeds


@st.composite
def dense(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, m, k = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 40))
    compute = draw(st.sampled_from(["float32", "bfloat16", "int8"]))
    weight = floats(rng, m, k)
    if compute == "int8":
        weight = rng.integers(-127, 128, (m, k)).astype(np.int8)
    elif draw(st.booleans()):
        weight = weight.astype(ml_dtypes.bfloat16)
    arrays = (floats(rng, n, k), weight, np.abs(floats(rng, m)), floats(rng, m))
    activation = draw(st.sampled_from(["none", "relu", "silu"]))
    return Case("dense", arrays, {"compute": compute, "activation": activation})


CASES = {"dense": dense()}
