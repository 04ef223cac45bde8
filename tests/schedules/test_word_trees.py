"""Chains of rows whose sums are compared in 16 bits, with AVX2: when, and the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import run_pipeline
from lutcc.schedules.x86.pack_words import WORD_LEVEL, pack_tree_words, word_code, word_slots
from tests.ir.test_integer_chains import Net
from tests.schedules.harness import built

AVX2 = pytest.mark.isa("avx2")


def chain(
    codebooks: int = 7,
    depth: int = 4,
    *,
    returned: bool = False,
    dtype: str = "uint8",
    **attrs: Any,
) -> ir.Module:
    """Return two layers; the first one's sums are read by trees of some depth."""
    net = Net(5, 20)
    y = net.dequantize(net.scan(net.encode(net.value, codebooks, 4), 37, dtype, **attrs), "relu")
    codes = net.encode(y, 9, depth, 4.0)
    lut = net.rng.integers(0, 256, (9, 2**depth, 18)).astype(np.uint8)
    sums = net.b.op("lut_accumulate", codes, net.constant(lut))
    return net.module(net.dequantize(sums), *([codes] if returned else []))


#: Chains, and whether words are compared.
CHAINS = {
    "sixteen leaves": (chain(), True),
    "eight leaves": (chain(depth=3), True),
    "two leaves": (chain(depth=1), True),
    "signed tables": (chain(dtype="int8"), True),
    "near the most that fits": (chain(130), True),
    "more than fits": (chain(200), False),
    "more steps than bytes fit": (chain(260), False),
    "thirty-two leaves": (chain(depth=5), False),
    "averages": (chain(8, accumulate="mean", upcast_every=4), False),
    "codes are returned": (chain(returned=True), False),
}


@AVX2
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str) -> None:
    module, words = CHAINS[name]
    lowered, call = built(run_pipeline(module), "avx2")
    packs = [entry["pack"] for entry in lowered.program.to_json()["blob"]]
    assert ("tree_words" in packs) == words
    for rows in (1, 31, 64, 300):
        x = np.random.default_rng(rows).normal(size=(rows, 20)).astype(np.float32)
        for got, want in zip(call(x), ir.interpret(module, [x]), strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_trees_as_they_are_packed(depth: int) -> None:
    """A walk by numbers of bytes comes to the leaf that a walk in heap order does."""
    rng = np.random.default_rng(depth)
    heap = rng.integers(-(2**17), 2**17, (3, 2**depth)).astype(np.int32)
    packed = pack_tree_words(heap, codebooks=4)
    assert (packed[3] == 2**15 - 1).all()
    slots = word_slots(depth)
    assert sorted({slot for slot in slots if slot}) == [*range(1, 2**depth)]
    for numbers in rng.integers(-(2**15) + 1, 2**15 - 1, (200, depth)):
        for tree, thresholds in zip(heap, packed, strict=False):
            node, answers, above = 1, 0, False
            for level, number in enumerate(numbers):
                above = bool(number > thresholds[WORD_LEVEL * level + answers])
                assert above == bool(number > tree[node])
                node = 2 * node + above
                if level < depth - 1:
                    answers |= above << level
            assert word_code(depth)[2 * answers + above] == node - 2**depth
