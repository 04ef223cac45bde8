"""Hypothesis strategies: single dense products and convolutions with inputs."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import strategies as st

from tests.ir.models import Case, floats, seeds
from tests.ir.sampled_cases import convolution


@st.composite
def dense(draw: st.DrawFn) -> Case:
    rng = np.random.default_rng(draw(seeds()))
    n, m, k = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 40))
    tables, attrs = draw(weights(rng, floats(rng, m, k)))
    x = floats(rng, n, k)
    if draw(st.booleans()):
        x = x.astype(ml_dtypes.bfloat16)
    attrs["out_dtype"] = draw(st.sampled_from(["float32", "bfloat16"]))
    return Case("dense", (x, *tables), attrs)


@st.composite
def weights(
    draw: st.DrawFn, rng: np.random.Generator, weight: np.ndarray
) -> tuple[tuple[np.ndarray, ...], dict[str, str]]:
    """Return weights, units and bias, and the attributes that say what is computed."""
    compute = draw(st.sampled_from(["float32", "bfloat16", "int8"]))
    if compute == "int8":
        weight = rng.integers(-127, 128, weight.shape).astype(np.int8)
    elif draw(st.booleans()):
        weight = weight.astype(ml_dtypes.bfloat16)
    activation = draw(st.sampled_from(["none", "relu", "silu"]))
    tables = (weight, np.abs(floats(rng, len(weight))), floats(rng, len(weight)))
    return tables, {"compute": compute, "activation": activation}


@st.composite
def conv2d(draw: st.DrawFn) -> Case:
    rng, (x, weight), geometry = draw(convolution())
    tables, attrs = draw(weights(rng, weight))
    images = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    return Case("conv2d", (images, *tables), {**geometry, **attrs})


CASES = {"dense": dense(), "conv2d": conv2d()}
