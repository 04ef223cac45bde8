"""Packers: every column in a chunk, nothing lost, sizes checked, memory aligned."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lutcc.schedules.x86 import pack
from tests.schedules.harness import lower, maddness


@pytest.mark.parametrize("columns", [*range(1, 70), 127, 128, 129, 1000])
def test_chunks_cover_every_column(columns: int) -> None:
    starts = pack.chunk_starts(columns)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    covered = {s + k for s in starts for k in range(pack.CHUNK)}
    assert covered >= set(range(columns))
    if columns >= pack.CHUNK:
        assert max(covered) == columns - 1, "a full store would write past the end"
    assert len(starts) == -(-columns // pack.CHUNK)


def numbered(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 128, shape).astype(dtype)


@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("codebooks", [1, 4, 7])
@pytest.mark.parametrize("entries", [2, 16, 64])
def test_tables_by_definition(outputs: int, codebooks: int, entries: int) -> None:
    lut = numbered(codebooks, entries, outputs)
    padded = max(entries, 16)
    dot = pack.pack_lut_dot(lut, entries=padded)
    widen = pack.pack_lut_widen(lut, entries=padded, codebooks=codebooks + 2)
    rows = pack.pack_lut_rows(lut, codebooks=codebooks)
    assert not widen[:, codebooks:].any()
    for chunk, start in enumerate(pack.chunk_starts(outputs)):
        for j in range(min(pack.CHUNK, outputs)):
            for c in range(codebooks):
                want = lut[c, :, start + j]
                np.testing.assert_array_equal(dot[chunk, c // 4, j, c % 4, :entries], want)
                np.testing.assert_array_equal(widen[chunk, c, j, :entries], want)
                assert not dot[chunk, c // 4, j, c % 4, entries:].any()
    for m in range(outputs):
        block, place = divmod(m, 64)
        at = 2 * place if place < 32 else 2 * (place - 32) + 1
        got = rows.reshape(codebooks, entries, -1, 64)[:, :, block, at]
        np.testing.assert_array_equal(got, lut[:, :, m])


def test_signed_tables_are_shifted_by_128() -> None:
    lut = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16)
    packed = pack.pack_lut_dot(lut, entries=16)[0, 0, :, 0, :]
    np.testing.assert_array_equal(packed.T, lut[0].astype(np.int32) + 128)


@pytest.mark.parametrize("outputs", [3, 16, 37])
def test_weights_by_definition(outputs: int) -> None:
    weight = numbered(outputs, 5, dtype="float32")
    packed = pack.pack_linear(weight)
    for chunk, start in enumerate(pack.chunk_starts(outputs)):
        for j in range(min(pack.CHUNK, outputs)):
            np.testing.assert_array_equal(packed[chunk, :, j], weight[start + j])


def test_trees_that_are_missing_give_code_0() -> None:
    vals = pack.pack_tree_values(numbered(3, 4, dtype="float32"), codebooks=8)
    assert vals.shape == (8, 16)
    assert np.isinf(vals[3:]).all()
    slots = pack.pack_tree_slots(np.array([[2, 0]], np.int32), slots=[5, -1, 9], codebooks=4)
    np.testing.assert_array_equal(slots, [[9, 5], [0, 0], [0, 0], [0, 0]])


@pytest.mark.parametrize("starts", [(0, 5), (0, 2, 2, 5)])
def test_prototypes_by_definition(starts: tuple[int, ...]) -> None:
    centroids = numbered(18, 5, dtype="float32")
    packed = pack.pack_centroids(centroids, starts=starts)
    assert packed.size == 32 * 5
    at = 0
    for first, last in itertools.pairwise(starts):
        for tile in (0, 16):
            for d in range(first, last):
                want = np.zeros(16, np.float32)
                want[: len(centroids[tile : tile + 16])] = centroids[tile : tile + 16, d]
                np.testing.assert_array_equal(packed[at : at + 16], want)
                at += 16
    norms = pack.pack_half_norms(numbered(2, 18, dtype="float32"))
    assert norms.shape == (2, 32)
    assert np.isposinf(norms[:, 18:]).all(), "the padding could win"


@pytest.mark.parametrize("nbytes", [1, 63, 64, 1000])
def test_alignment(nbytes: int) -> None:
    arrays = [pack.aligned_empty(nbytes) for _ in range(8)]
    assert all(a.ctypes.data % pack.ALIGNMENT == 0 and a.size == nbytes for a in arrays)


@pytest.fixture(scope="module")
def program() -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    lowered = lower(maddness(20, 5, 21), "avx2", parallel=False)
    return lowered.program.to_json(), dict(lowered.module.constants)


def test_the_blob_holds_every_entry_at_its_offset(program) -> None:
    document, constants = program
    blob = pack.pack_blob(document, constants)
    assert blob.ctypes.data % pack.ALIGNMENT == 0
    end = 0
    for entry in document["blob"]:
        assert entry["offset"] % pack.ALIGNMENT == 0
        assert entry["offset"] >= end, "entries overlap"
        end = entry["offset"] + entry["nbytes"]
        got = blob[entry["offset"] : end]
        np.testing.assert_array_equal(got, pack.pack_entry(entry, constants))
    assert end <= document["blob_nbytes"] == blob.size


def test_constants_of_another_size_are_refused(program) -> None:
    document, constants = program
    name = next(e["sources"][0] for e in document["blob"] if e["pack"].startswith("lut_"))
    smaller = {**constants, name: constants[name][:, :, :5]}
    with pytest.raises(
        ValueError, match=rf"'{name}'.* packs to \d+ bytes, but the program expects"
    ):
        pack.pack_blob(document, smaller)


def test_entries_past_the_end_are_refused(program) -> None:
    document, constants = program
    short = {**document, "blob_nbytes": document["blob"][-1]["offset"]}
    with pytest.raises(ValueError, match="packs to"):
        pack.pack_blob(short, constants)
