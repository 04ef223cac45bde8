"""Chains of rows whose sums are compared in 16 bits: when, and the same bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.ir.passes import run_pipeline
from lutcc.schedules.x86.pack_words import WORD_LEVEL, pack_tree_words, word_code, word_slots
from tests.ir.test_integer_chains import Net
from tests.schedules.harness import built


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


AVX2, VNNI = "avx2", "avx512_vbmi_vnni"
#: What words are packed as for each level.
PACKED = {AVX2: "tree_words", VNNI: "image_values"}
BOTH = (AVX2, VNNI)
#: Chains, and the levels that compare words in them.
CHAINS: dict[str, tuple[ir.Module, tuple[str, ...]]] = {
    "sixteen leaves": (chain(), BOTH),
    "eight leaves": (chain(depth=3), BOTH),
    "two leaves": (chain(depth=1), BOTH),
    "signed tables": (chain(dtype="int8"), BOTH),
    "near the most that fits": (chain(130), BOTH),
    "more than fits": (chain(200), ()),
    "more steps than bytes fit": (chain(260), ()),
    "thirty-two leaves": (chain(depth=5), (VNNI,)),
    "sixty-four leaves": (chain(depth=6), ()),
    "averages": (chain(8, accumulate="mean", upcast_every=4), ()),
    "codes are returned": (chain(returned=True), ()),
}
#: Configs of the scan in which groups of rows go by two; tiles of 1 or 3 do not.
TILES = {1: False, 2: True, 3: False, 4: True}


def same(module: ir.Module, call: Any, rows: tuple[int, ...]) -> None:
    """Assert that a kernel's results are the interpreter's."""
    for count in rows:
        x = np.random.default_rng(count).normal(size=(count, 20)).astype(np.float32)
        for got, want in zip(call(x), ir.interpret(module, [x]), strict=True):
            np.testing.assert_array_equal(got, want, err_msg=f"n={count}")


@pytest.mark.parametrize(
    "isa", [pytest.param(name, marks=pytest.mark.isa(name, emulated=True)) for name in BOTH]
)
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name: str, isa: str) -> None:
    module, levels = CHAINS[name]
    lowered, call = built(run_pipeline(module), isa)
    packs = [entry["pack"] for entry in lowered.program.to_json()["blob"]]
    assert (PACKED[isa] in packs) == (isa in levels)
    same(module, call, (1, 31, 64, 300))


@pytest.mark.isa(VNNI, emulated=True)
@pytest.mark.parametrize("tile_r", TILES)
@pytest.mark.parametrize("row_block", [16, 48, 256])
def test_groups_of_rows_go_by_two(row_block: int, tile_r: int) -> None:
    """Odd numbers of groups, in the last block and in all: one group is its own other half."""
    module = chain()
    changed = run_pipeline(module)
    (name,) = [f.name for f in changed.functions if f.name != "main"]
    stage = {"row_block": row_block, "row_threshold": 4}
    configs = {name: {"stage": stage, "accumulate": {"tile_m": 4, "tile_r": tile_r}}}
    lowered, call = built(changed, VNNI, configs)
    packs = [entry["pack"] for entry in lowered.program.to_json()["blob"]]
    assert ("image_values" in packs) == TILES[tile_r]
    same(module, call, (1, 5, 16, 17, 33, 47, 48, 80, 97, 112, 131, 300))


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
