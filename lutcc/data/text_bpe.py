"""Byte-pair encoding: a vocabulary of bytes and of pieces that occur together often.

Sennrich, Haddow, Birch 2016, over bytes as in GPT-2 and RoBERTa, so that every text can be written.
Small and plain on purpose: an example of pre-training needs no package for it.
"""

from __future__ import annotations

import heapq
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lutcc.errors import InputError

START, END, MASK = 0, 1, 2
SPECIAL = ("<s>", "</s>", "<mask>")
_FIRST_BYTE = len(SPECIAL)
SMALLEST = _FIRST_BYTE + 256  # the vocabulary without any merge
_FORMAT = 1
# Pieces never cross these borders. Line breaks keep their indentation: sources are full of them.
_WORDS = re.compile(r"\s*\n[^\S\n]*| ?[^\W\d_]+| ?\d{1,3}| ?_+| ?[^\w\s]+|\s+(?!\S)|\s+")
_CACHE = 1 << 18  # words whose encoding is remembered


class BytePairTokenizer:
    """Turns text into token numbers and back.

    Parameters
    ----------
    merges
        Pairs of tokens in the order in which they were joined; the pair at place i is token
        ``SMALLEST + i``.

    Raises
    ------
    InputError
        If a pair names a token that does not exist at that place.

    Examples
    --------
    >>> tokenizer = BytePairTokenizer.train(["low lower lowest"], vocabulary=262)
    >>> tokenizer.decode(tokenizer.encode("slow ☃"))
    'slow ☃'
    """

    def __init__(self, merges: Sequence[tuple[int, int]]) -> None:
        self.merges = tuple((int(a), int(b)) for a, b in merges)
        self._pieces = [b""] * _FIRST_BYTE + [bytes([value]) for value in range(256)]
        for place, (a, b) in enumerate(self.merges):
            if not all(_FIRST_BYTE <= token < len(self._pieces) for token in (a, b)):
                raise InputError(
                    f"merge {place} joins {a} and {b}, but tokens {_FIRST_BYTE} to "
                    f"{len(self._pieces) - 1} exist there",
                    where="BytePairTokenizer",
                    fix="use merges as BytePairTokenizer.train made them",
                )
            self._pieces.append(self._pieces[a] + self._pieces[b])
        self._rank = {pair: place for place, pair in enumerate(self.merges)}
        self._known: dict[str, tuple[int, ...]] = {}

    @property
    def vocabulary(self) -> int:
        """Number of tokens, the special ones (start, end, mask) among them."""
        return len(self._pieces)

    @classmethod
    def train(cls, documents: Iterable[str], vocabulary: int) -> BytePairTokenizer:
        """Join the most frequent pair again and again; ties go to the lower token numbers.

        Parameters
        ----------
        documents
            Text; a few megabytes are enough.
        vocabulary
            Number of tokens to reach; fewer if no pair is left that occurs twice.

        Raises
        ------
        InputError
            If ``vocabulary`` is below :data:`SMALLEST`, or there is no text.
        """
        if vocabulary < SMALLEST:
            raise InputError(
                f"vocabulary={vocabulary} is below {SMALLEST} (special tokens and bytes)",
                where="BytePairTokenizer.train",
                fix="use 2048 or more",
            )
        counts: Counter[str] = Counter()
        for document in documents:
            counts.update(_WORDS.findall(document))
        if not counts:
            raise InputError(
                "there is no text", where="BytePairTokenizer.train", fix="give documents"
            )
        return cls(_find_merges(counts, vocabulary - SMALLEST))

    def encode(self, text: str) -> list[int]:
        """Return the token numbers of ``text`` (no special ones are added)."""
        known, tokens = self._known, []
        for word in _WORDS.findall(text):
            found = known.get(word)
            if found is None:
                found = self._encode_word(word)
                if len(known) < _CACHE:
                    known[word] = found
            tokens.extend(found)
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of token numbers; special ones are left out."""
        data = b"".join(self._pieces[int(token)] for token in tokens)
        return data.decode("utf-8", "replace")

    def pack(self, documents: Iterable[str], length: int) -> np.ndarray:
        """Return sequences (S, length) int32 cut from the documents joined by END.

        Every sequence begins with START and is full; what does not fill the last one is dropped
        (RoBERTa's FULL-SENTENCES, without regard for sentence ends).

        Raises
        ------
        InputError
            If the text does not fill one sequence.
        """
        parts = []
        for document in documents:
            parts.append(np.asarray([*self.encode(document), END], dtype=np.int32))
        stream = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        rows = len(stream) // (length - 1)
        if rows == 0:
            raise InputError(
                f"{len(stream)} tokens do not fill one sequence of {length}",
                where="BytePairTokenizer.pack",
                fix="give more text or a smaller length",
            )
        body = stream[: rows * (length - 1)].reshape(rows, length - 1)
        return np.concatenate([np.full((rows, 1), START, np.int32), body], axis=1)

    def save(self, path: str | Path) -> None:
        """Write the merges as JSON."""
        data = {"format": _FORMAT, "merges": self.merges}
        Path(path).write_text(json.dumps(data), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> BytePairTokenizer:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            If the file is missing or is something else.
        """
        try:
            data: Any = json.loads(Path(path).read_text(encoding="utf-8"))
            if data["format"] != _FORMAT:
                raise ValueError(f"format {data['format']!r}")
            return cls([(a, b) for a, b in data["merges"]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"is no tokenizer: {error}",
                where=str(path),
                fix="name a file that BytePairTokenizer.save wrote",
            ) from error

    def _encode_word(self, word: str) -> tuple[int, ...]:
        tokens = _bytes_of(word)
        while len(tokens) > 1:
            rank = self._rank
            best = min(
                itertools.pairwise(tokens),
                key=lambda pair: rank.get(pair, len(rank)),
            )
            if best not in rank:
                break
            tokens = _join(tokens, best, SMALLEST + rank[best])
        return tuple(tokens)


def _bytes_of(word: str) -> list[int]:
    return [_FIRST_BYTE + value for value in word.encode("utf-8", "replace")]


def _join(tokens: Sequence[int], pair: tuple[int, int], token: int) -> list[int]:
    joined, place = [], 0
    while place < len(tokens):
        if tuple(tokens[place : place + 2]) == pair:
            joined.append(token)
            place += 2
        else:
            joined.append(tokens[place])
            place += 1
    return joined


def _find_merges(counts: Counter[str], wanted: int) -> list[tuple[int, int]]:
    """Keep the count of every pair and the words that hold it; only those change at a merge."""
    words = [_bytes_of(word) for word in counts]
    weights = list(counts.values())
    totals: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in itertools.pairwise(word):
            totals[pair] += weights[index]
            places[pair].add(index)
    queue = [(-count, pair) for pair, count in totals.items()]
    heapq.heapify(queue)
    merges: list[tuple[int, int]] = []
    while queue and len(merges) < wanted:
        count, pair = heapq.heappop(queue)
        if totals[pair] != -count:
            if totals[pair] > 1:  # an old entry: the pair has become rarer since
                heapq.heappush(queue, (-totals[pair], pair))
            continue
        if -count < 2:
            break
        token = SMALLEST + len(merges)
        merges.append(pair)
        changed: set[tuple[int, int]] = set()
        for index in places.pop(pair):
            before = words[index]
            after = _join(before, pair, token)
            if len(after) == len(before):
                continue  # the pair was lost to an earlier merge
            for old in itertools.pairwise(before):
                totals[old] -= weights[index]
            for new in itertools.pairwise(after):
                totals[new] += weights[index]
                places[new].add(index)
                changed.add(new)
            words[index] = after
        for new in changed:  # pairs that grew or are new; the others' old entries are checked above
            heapq.heappush(queue, (-totals[new], new))
    return merges
