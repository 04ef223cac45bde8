"""Text to train language models on: plain files, WikiText, or what comes with Python.

A *document* is one string: a file, an article. Training and validation parts never share one.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lutcc.errors import InputError

#: What :func:`load_files` takes from a folder.
SUFFIXES = (".txt", ".md", ".rst", ".text", ".py")
_BLOCK = 1 << 16  # characters of the documents that a single file is cut into
_ARTICLE = re.compile(r"^ ?= (?!= ).*(?<! =) = ?$", re.MULTILINE)
_WIKITEXT = {  # part -> its name in the releases "v1" and "raw", and in common conversions
    part: tuple(f"wiki.{part}.{suffix}" for suffix in ("tokens", "raw", "txt"))
    for part in ("train", "valid")
}


@dataclass(frozen=True, slots=True)
class TextSplit:
    """Documents to train on and documents held out.

    Parameters
    ----------
    train, validation
        Documents, none of them empty.
    source
        Where they are from, in words.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    source: str

    def digest(self) -> str:
        """Return a sha256 of all documents: equal if and only if the text is the same."""
        seen = hashlib.sha256()
        for part in (self.train, self.validation):
            for document in part:
                data = document.encode("utf-8", "surrogatepass")
                seen.update(len(data).to_bytes(8, "little") + data)
            seen.update(b"|")
        return seen.hexdigest()


def split(
    documents: Mapping[str, str | Callable[[], str]],
    source: str,
    *,
    validation_share: float = 0.05,
    max_bytes: int | None = None,
) -> TextSplit:
    """Split named documents by name: the same names give the same split on every machine.

    Parameters
    ----------
    documents
        Name -> text, or a function that reads it (not called for what the limit leaves out).
    source
        See :class:`TextSplit`.
    validation_share
        Part of the characters to hold out, at least one document.
    max_bytes
        Take so many characters at most: documents in the order of their names' hashes, the last
        one cut off.

    Raises
    ------
    InputError
        With fewer than two documents that hold anything, or a share outside 0..0.5.

    Examples
    --------
    >>> parts = split({"a": "some text", "b": "other text", "c": ""}, "example")
    >>> len(parts.train), len(parts.validation)
    (1, 1)
    """
    if not 0 < validation_share <= 0.5:
        raise InputError(
            f"validation_share={validation_share!r} is not in 0..0.5", where=source, fix="use 0.05"
        )
    ordered = sorted(documents, key=lambda name: hashlib.sha256(name.encode()).digest())
    found = (documents[name] for name in ordered)
    texts = _up_to((text if isinstance(text, str) else text() for text in found), max_bytes)
    if len(texts) < 2:
        raise InputError(
            f"{len(texts)} documents hold text, and two are needed: for training, to hold out",
            where=source,
            fix="give more or larger files (a larger limit, if one was set)",
        )
    goal = validation_share * sum(map(len, texts))
    held, count = 0, 0
    while count < len(texts) - 1 and (count == 0 or held < goal):
        held += len(texts[count])
        count += 1
    return TextSplit(tuple(texts[count:]), tuple(texts[:count]), source)


def _up_to(texts: Iterable[str], limit: int | None) -> list[str]:
    """Return the texts that hold something, so many characters of them."""
    taken, left = [], limit
    for text in texts:
        if left is not None:
            text = text[:left]
            left -= len(text)
        if text.strip():
            taken.append(text)
        if left == 0:
            break
    return taken


def read_text(path: str | Path) -> str:
    """Read one UTF-8 file.

    Raises
    ------
    InputError
        If it is missing, empty, or not UTF-8.

    Examples
    --------
    >>> read_text("notes.txt")  # doctest: +SKIP
    'Some text.'
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"is not UTF-8 text: {error.reason} at byte {error.start}",
            where=str(path),
            fix="convert it (iconv -t UTF-8), or leave it out",
        ) from error
    except OSError as error:
        raise InputError(
            f"cannot read: {error}", where=str(path), fix="name a text file or a folder of them"
        ) from error
    if not text.strip():
        raise InputError("is empty", where=str(path), fix="name a file that holds text")
    return text


def load_files(
    path: str | Path, *, validation_share: float = 0.05, max_bytes: int | None = None
) -> TextSplit:
    """Return the text of a file, or of every ``.txt .md .rst .text .py`` below a folder.

    A single file is cut at line ends into documents of some 64 KB.

    Raises
    ------
    InputError
        If there is nothing to read, or a file is empty or not UTF-8.

    Examples
    --------
    >>> load_files("books").source  # doctest: +SKIP
    'books: 12 files'
    """
    path = Path(path)
    if not path.is_dir():
        blocks = _blocks(read_text(path))
        named = {f"{path.name}:{index}": text for index, text in enumerate(blocks)}
        return split(named, str(path), validation_share=validation_share, max_bytes=max_bytes)
    found = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise InputError(
            f"there is no file {', '.join('*' + suffix for suffix in SUFFIXES)}",
            where=str(path),
            fix="name a folder that holds text files",
        )
    named = {f.relative_to(path).as_posix(): partial(read_text, f) for f in found}
    source = f"{path.name}: {len(found)} files"
    return split(named, source, validation_share=validation_share, max_bytes=max_bytes)


def _blocks(text: str) -> list[str]:
    blocks, start = [], 0
    size = min(_BLOCK, max(1, len(text) // 8))  # a small file has something to hold out, too
    while start < len(text):
        end = text.find("\n", start + size)
        end = len(text) if end < 0 else end + 1
        blocks.append(text[start:end])
        start = end
    return blocks


def is_wikitext(folder: str | Path) -> bool:
    """Tell whether a folder holds WikiText's training part."""
    return any((Path(folder) / name).is_file() for name in _WIKITEXT["train"])


def load_wikitext(folder: str | Path, *, max_bytes: int | None = None) -> TextSplit:
    """Return WikiText-2 or -103 in its own split; a document is an article.

    Parameters
    ----------
    folder
        Holds ``wiki.train.tokens`` and ``wiki.valid.tokens``, or both with ``.raw`` or ``.txt``.
    max_bytes
        Take the first articles of the training part, about so many characters.

    Raises
    ------
    InputError
        If a part is missing, empty or not UTF-8.

    Examples
    --------
    >>> load_wikitext("wikitext-103").source  # doctest: +SKIP
    'wikitext-103: 28475 articles'
    """
    folder = Path(folder)
    parts: dict[str, list[str]] = {}
    for part, names in _WIKITEXT.items():
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            raise InputError(
                f"there is no {' or '.join(names)}",
                where=str(folder),
                fix="put WikiText's train and valid files there, unpacked",
            )
        parts[part] = articles(read_text(path))
    train = _up_to(parts["train"], max_bytes)
    return TextSplit(tuple(train), tuple(parts["valid"]), f"{folder.name}: {len(train)} articles")


def articles(text: str) -> list[str]:
    r"""Cut WikiText at its titles (`` = Title = ``); sections (`` = = Name = = ``) stay inside.

    Examples
    --------
    >>> [piece.split()[1] for piece in articles(" = A = \n text \n = = S = = \n\n = B = \n")]
    ['A', 'B']
    """
    starts = [match.start() for match in _ARTICLE.finditer(text)]
    bounds = [0, *starts, len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    return [piece for piece in pieces if piece.strip()]


def load(path: str | Path, *, max_bytes: int | None = None) -> TextSplit:
    """Return the text at ``path``: a WikiText folder, another folder, or a file.

    Raises
    ------
    InputError
        See :func:`load_wikitext` and :func:`load_files`.
    """
    if is_wikitext(path):
        return load_wikitext(path, max_bytes=max_bytes)
    return load_files(path, max_bytes=max_bytes)
