"""Sentences of the standard library: text to embed, in parts that share no module."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutcc.data.text_stdlib import load_standard_library
from lutcc.errors import InputError

_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z(\"'])")
_PROSE = re.compile(r"[A-Za-z]{2,}")
#: Characters that prose has few of; tables, code and ruler lines have many.
_MARKS = re.compile(r"[^\w\s.,;:'\"()\-?!]")


@dataclass(frozen=True, slots=True)
class Sentences:
    """Sentences to calibrate on and sentences held out.

    Attributes
    ----------
    calibration, held_out
        Different sentences; no document gave to both.
    source
        Where they are from, in words.
    """

    calibration: tuple[str, ...]
    held_out: tuple[str, ...]
    source: str


def load_sentences(
    calibration: int = 1024,
    held_out: int = 2048,
    *,
    folder: str | Path | None = None,
    min_words: int = 6,
    max_words: int = 60,
    seed: int = 0,
) -> Sentences:
    """Return sentences of the documentation strings and topics that every Python has.

    Parameters
    ----------
    calibration, held_out
        How many of each.
    folder
        Where the library is; by default that of the Python that runs.
    min_words, max_words
        Shorter and longer sentences are left out.
    seed
        Of the draw.

    Raises
    ------
    InputError
        If there are fewer sentences than asked for, naming how many there are.

    Examples
    --------
    >>> text = load_sentences(10, 20)
    >>> len(text.calibration), len(text.held_out), set(text.calibration) & set(text.held_out)
    (10, 20, set())
    """
    text = load_standard_library(folder, documentation_only=True, validation_share=0.5)
    parts = []
    seen: set[str] = set()
    for documents, wanted, name in (
        (text.validation, held_out, "held_out"),
        (text.train, calibration, "calibration"),
    ):
        found = sentences_of(documents, min_words, max_words, seen)
        if wanted > len(found):
            raise InputError(
                f"{name}={wanted} sentences, but there are {len(found)}",
                where="load_sentences",
                fix=f"ask for at most {len(found)}, or admit longer ones by max_words",
            )
        chosen = np.random.default_rng(seed).permutation(len(found))[:wanted]
        parts.append(tuple(found[i] for i in chosen))
    return Sentences(parts[1], parts[0], text.source)


def sentences_of(
    documents: Sequence[str], min_words: int, max_words: int, seen: set[str]
) -> list[str]:
    r"""Return the sentences of prose in documents that are not in ``seen``, and put them there.

    Examples
    --------
    >>> sentences_of(["Return a copy of it.  See below.\n\n>>> f(x)"], 3, 60, set())
    ['Return a copy of it.']
    """
    found = []
    for document in documents:
        for paragraph in re.split(r"\n\s*\n", document):
            if ">>>" in paragraph:
                continue
            for raw in _END.split(" ".join(paragraph.split())):
                sentence = raw.strip()
                words = len(_PROSE.findall(sentence))
                prose = len(_MARKS.findall(sentence)) * 20 <= len(sentence)
                if min_words <= words <= max_words and prose and sentence not in seen:
                    seen.add(sentence)
                    found.append(sentence)
    return found
