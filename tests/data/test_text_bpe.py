"""Byte-pair encoding: text comes back, merges are the frequent pairs, files are checked."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lutcc.data.text_bpe import _WORDS, END, MASK, SMALLEST, START, BytePairTokenizer
from lutcc.errors import InputError

SAMPLE = [
    'def low(lower):\n    """Return the lowest of the low."""\n    return min(lower)\n\n' * 20,
    "class Lower:\n    def lowest(self):\n        return self.low\n" * 10,
]


@pytest.fixture(scope="module")
def tokenizer() -> BytePairTokenizer:
    return BytePairTokenizer.train(SAMPLE, vocabulary=300)


def plain_merges(documents: list[str], wanted: int) -> list[tuple[int, int]]:
    """Count all pairs anew for every merge."""
    words = Counter(word for text in documents for word in _WORDS.findall(text))
    split = {word: [3 + value for value in word.encode()] for word in words}
    merges: list[tuple[int, int]] = []
    while len(merges) < wanted:
        counts: Counter[tuple[int, int]] = Counter()
        for word, tokens in split.items():
            for pair in itertools.pairwise(tokens):
                counts[pair] += words[word]
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        if counts[best] < 2:
            break
        for tokens in split.values():
            place = 0
            while place < len(tokens) - 1:
                if (tokens[place], tokens[place + 1]) == best:
                    tokens[place : place + 2] = [SMALLEST + len(merges)]
                place += 1
        merges.append(best)
    return merges


def test_merges_are_those_of_counting_anew(tokenizer):
    assert list(tokenizer.merges) == plain_merges(SAMPLE, 300 - SMALLEST)
    assert tokenizer.vocabulary == 300


def test_repeated_letters_merge_as_counted_anew():
    documents = ["aaaa aaa aa aaaaaaa baab " * 3]
    found = BytePairTokenizer.train(documents, vocabulary=SMALLEST + 12)
    assert list(found.merges) == plain_merges(documents, 12)


def test_training_stops_when_no_pair_occurs_twice():
    assert BytePairTokenizer.train(["abc"], vocabulary=1000).vocabulary == SMALLEST


def test_encoding_joins_what_is_frequent(tokenizer):
    encoded = tokenizer.encode(SAMPLE[0])
    assert len(encoded) < 0.4 * len(SAMPLE[0])
    assert max(encoded) > SMALLEST
    assert tokenizer.decode(encoded) == SAMPLE[0]


@given(st.text())
def test_every_text_comes_back(text):
    tokenizer = BytePairTokenizer.train(SAMPLE, vocabulary=270)
    clean = text.encode("utf-8", "replace").decode()  # lone surrogates have no bytes
    assert tokenizer.decode(tokenizer.encode(text)) == clean


def test_packing(tokenizer):
    rows = tokenizer.pack(["low", "lower"], 4)
    stream = [*tokenizer.encode("low"), END, *tokenizer.encode("lower"), END]
    whole = len(stream) // 3
    assert rows.dtype == np.int32
    assert rows.shape == (whole, 4)
    assert (rows[:, 0] == START).all()
    assert rows[:, 1:].ravel().tolist() == stream[: 3 * whole]
    assert MASK not in rows


def test_too_little_to_pack(tokenizer):
    with pytest.raises(InputError, match="do not fill one sequence of 64"):
        tokenizer.pack(["low"], 64)


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "bpe.json")
    assert BytePairTokenizer.load(tmp_path / "bpe.json").merges == tokenizer.merges


@pytest.mark.parametrize(
    "content",
    [None, "", "[1]", '{"format": 2, "merges": []}', '{"format": 1, "merges": [[1, 2, 3]]}',
     '{"format": 1, "merges": [[0, 4]]}', '{"format": 1, "merges": [[300, 4]]}'],
)  # fmt: skip
def test_files_that_hold_no_tokenizer(tmp_path, content):
    path = tmp_path / "bpe.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match="To mend it"):
        BytePairTokenizer.load(path)


def test_wrong_sizes():
    with pytest.raises(InputError, match="vocabulary=100 is below 259"):
        BytePairTokenizer.train(["text"], vocabulary=100)
    with pytest.raises(InputError, match="no text"):
        BytePairTokenizer.train([""], vocabulary=300)
