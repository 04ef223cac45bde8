"""Sentences of the documentation, and embeddings of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lutcc.data import minilm
from lutcc.data.sentences import load_sentences, sentences_of
from lutcc.errors import InputError
from lutcc.report.embeddings import agreement


def test_sentences_are_prose_and_come_once() -> None:
    text = (
        "Return the first of all items.  The second one is not returned!\n\n"
        ">>> f(1)\n\nReturn the first of all items.\n\n"
        "x = {a: b} | {c: d} <> [] {} == and so on then."
    )
    found = sentences_of([text], 4, 20, set())
    assert found == ["Return the first of all items.", "The second one is not returned!"]
    assert sentences_of([text], 4, 20, set(found)) == []


def test_parts_share_nothing_and_follow_the_seed(tmp_path: Path) -> None:
    for name in "abcdefgh":
        lines = "  ".join(f"Item {name}{i} of many things is returned once." for i in range(30))
        (tmp_path / f"{name}.py").write_text(f'"""{lines}"""\n')
    text = load_sentences(50, 60, folder=tmp_path, seed=3)
    assert (len(text.calibration), len(text.held_out)) == (50, 60)
    assert not set(text.calibration) & set(text.held_out)
    assert text == load_sentences(50, 60, folder=tmp_path, seed=3)
    assert text != load_sentences(50, 60, folder=tmp_path, seed=4)
    with pytest.raises(InputError, match=r"calibration=1000 sentences, but there are \d+"):
        load_sentences(1000, 1, folder=tmp_path)


def test_agreement_counts_neighbours() -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=(40, 16)).astype(np.float32)
    b = a + np.float32(0.5) * rng.normal(size=a.shape).astype(np.float32)
    b = b.astype(np.float32)
    found = agreement(a, b)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b)]
    ranks = [np.argsort(-(u @ u.T) + 9 * np.eye(40), axis=1)[:, :10] for u in unit]
    assert found.cosine == pytest.approx(float((unit[0] * unit[1]).sum(1).mean()), abs=1e-4)
    assert found.top1 == pytest.approx((ranks[0][:, 0] == ranks[1][:, 0]).mean(), abs=1e-4)
    shared = [len(set(p) & set(q)) / 10 for p, q in zip(*ranks, strict=True)]
    assert found.top10 == pytest.approx(np.mean(shared), abs=1e-4)
    with pytest.raises(InputError, match="more than ten"):
        agreement(a[:10], b[:10])


@pytest.mark.skipif(not minilm.available(), reason="all-MiniLM-L6-v2 is not installed")
def test_minilm_embeds_what_is_alike_nearby() -> None:
    encoder = minilm.load()
    e = encoder.embed(["A list is sorted.", "The list gets sorted.", "Rain falls in spring."])
    np.testing.assert_allclose(np.linalg.norm(e, axis=1), 1, rtol=1e-5)
    assert e[0] @ e[1] > 0.8 > 0.3 > e[0] @ e[2]
