"""Words of the text form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lutcc.errors import ParseError

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|//[^\n]*)
      | (?P<string>"[^"\\\n]*(?:\\.[^"\\\n]*)*")
      | (?P<float>-?(?:[0-9]+\.[0-9]*(?:[eE][+-]?[0-9]+)?|[0-9]+[eE][+-]?[0-9]+))
      | (?P<int>-?[0-9]+)
      | (?P<value>%[A-Za-z_][A-Za-z0-9_.]*)
      | (?P<symbol>@[A-Za-z_][A-Za-z0-9_.]*)
      | (?P<word>[A-Za-z_][A-Za-z0-9_.]*)
      | (?P<punctuation>[()\[\]{}<>,:=*])""",
    re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the text: its kind, its text and where it starts."""

    kind: str
    text: str
    start: int


def tokens(text: str) -> Iterator[Token]:
    """Yield the words of a text, and at last one of kind ``end``.

    Raises
    ------
    ParseError
        At a character that starts no word, or a string without an end.
    """
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None and text[position] == '"':
            raise ParseError(
                "unterminated string",
                where=line_column(text, position),
                fix="close it with a quotation mark; if the file was cut off, write it again",
            )
        if match is None:
            raise ParseError(
                f"unexpected character {text[position]!r}", where=line_column(text, position)
            )
        kind = match.lastgroup or ""
        if kind != "space":
            yield Token(kind, match.group(), position)
        position = match.end()
    yield Token("end", "", len(text))


def line_column(text: str, position: int) -> str:
    """Return ``line:column``, both from 1."""
    line = text.count("\n", 0, position) + 1
    column = position - (text.rfind("\n", 0, position) + 1) + 1
    return f"{line}:{column}"
