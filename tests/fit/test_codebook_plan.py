"""Equation 3 as stored: what a plan takes, that it reaches its goal, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from lutcc.codebook_weights import CodebookWeights
from lutcc.errors import InputError
from lutcc.fit.codebook_plan import plan_codebooks

SHAPES = ((384, 384), (384, 1536), (37, 53), (5, 3000), (1, 4096), (64, 200))


@pytest.mark.parametrize("mode", ["codebooks", "scales"])
@pytest.mark.parametrize("alpha", [1.5, 3.0, 3.9, 5.33, 7.0, 7.4])
def test_the_goal_is_met_as_stored(mode: str, alpha: float) -> None:
    for rows, columns in SHAPES:
        plan = plan_codebooks(alpha, rows, columns, mode)
        stored = CodebookWeights.of(
            np.zeros((rows, columns), np.uint8),
            np.zeros((plan.codebooks, 2**plan.bits)),
            bits=plan.bits,
            scales=np.ones(plan.scales),
            segment_size=plan.segment_size,
        )
        assert stored.footprint() == plan.footprint
        assert plan.alpha >= alpha
        stored.dequantize()


@pytest.mark.parametrize(("alpha", "bits", "regions"), [(3.9, 4, 59), (5.33, 3, 2), (7.5, 2, 307)])
def test_equation_3(alpha: float, bits: int, regions: int) -> None:
    weights, values = 384 * 384, 2**bits
    paper = (16 - alpha * bits) * weights / (16 * alpha * values)
    plan = plan_codebooks(alpha, 384, 384)
    assert (plan.bits, plan.codebooks) == (bits, regions) == (bits, int(paper))


def test_more_regions_than_rows_are_segments() -> None:
    plan = plan_codebooks(7.5, 384, 1536)
    assert (plan.codebooks, plan.segment_size) == (1152, 512)
    finer = (16 / 7.5 - 2) * 384 * 1536 / (16 * 4)
    assert plan.codebooks <= finer < 384 * 4


def test_what_the_budget_leaves_after_order_and_outliers() -> None:
    plain = plan_codebooks(3.9, 384, 384)
    ordered = plan_codebooks(3.9, 384, 384, order_bits=32 * 384)
    assert ordered.codebooks == plain.codebooks - 32 * 384 // 256
    assert ordered.footprint.order == 32 * 384
    few = plan_codebooks(5.33, 384, 384, outlier_bits=48 * 700)
    assert few.bits == 2
    assert few.note == "alpha=5.33 is met with 2 bits a weight; 3 bits reach 4.95 at most"


def test_a_goal_that_needs_less_than_it_allows_says_so() -> None:
    plan = plan_codebooks(1.2, 384, 384, "scales")
    assert plan.note == (
        "alpha=1.2 allows more than 4 bits and 4608 regions can use: 3.55 is reached"
    )


@pytest.mark.parametrize(
    ("alpha", "shape", "bits", "message"),
    [
        (
            8.0,
            (384, 384),
            0,
            "WeightCodebooks: alpha=8 is out of reach for 384 x 384 weights: 2 bits a weight, one "
            "codebook reach 7.99\nTo mend it: use alpha <= 7.99, or leave this layer as it is",
        ),
        (
            5.33,
            (2, 2),
            0,
            "WeightCodebooks: alpha=5.33 is out of reach for 2 x 2 weights: 2 bits a weight, one "
            "codebook reach 0.8\nTo mend it: leave this layer as it is",
        ),
        (
            7.5,
            (384, 384),
            48 * 1000,
            "WeightCodebooks: alpha=7.5 is out of reach for 384 x 384 weights: 2 bits a weight, "
            "one codebook and the outliers reach 6.87\nTo mend it: use alpha <= 6.87, or fewer "
            "outliers, or leave this layer as it is",
        ),
    ],
)
def test_out_of_reach(alpha: float, shape: tuple[int, int], bits: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        plan_codebooks(alpha, *shape, outlier_bits=bits)
    assert str(caught.value) == message
