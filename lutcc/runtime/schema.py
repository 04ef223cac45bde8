"""Typed reading of JSON that anybody may have written: every complaint names the JSON path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

from lutcc.errors import ArtifactError, suggest

_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "null",
}


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return dict(pairs)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def parse_json(data: bytes, *, where: str, fix: str) -> Node:
    """Parse strict JSON (UTF-8, no duplicate keys, no NaN) into a :class:`Node`.

    Raises
    ------
    ArtifactError
        When ``data`` is not such JSON.
    """
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_refuse_duplicates,
            parse_constant=_refuse_constant,
        )
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"is no valid JSON: {error}", where=where, fix=fix) from error
    return Node(value, "$", where, fix)


class Node:
    """A JSON value with its path; the readers return Python values or raise ArtifactError."""

    __slots__ = ("fix", "path", "value", "where")

    def __init__(self, value: Any, path: str, where: str, fix: str) -> None:
        self.value, self.path, self.where, self.fix = value, path, where, fix

    def fail(self, what: str) -> NoReturn:
        """Raise ArtifactError about this value."""
        raise ArtifactError(f"{self.path}: {what}", where=self.where, fix=self.fix)

    def _expect(self, kind: str) -> NoReturn:
        shown = repr(self.value)
        if len(shown) > 60:
            shown = shown[:57] + "..."
        got = _KINDS.get(type(self.value), type(self.value).__name__)
        self.fail(f"expected {kind}, got {got} ({shown})")

    def _child(self, key: str | int, value: Any) -> Node:
        path = f"{self.path}[{key}]" if isinstance(key, int) else f"{self.path}.{key}"
        return Node(value, path, self.where, self.fix)

    def fields(
        self, required: Iterable[str], optional: Iterable[str] = (), *, open_: bool = False
    ) -> dict[str, Node]:
        """Read an object with exactly these keys (``open_``: others are allowed)."""
        if not isinstance(self.value, dict):
            self._expect("an object")
        required, optional = tuple(required), tuple(optional)
        for key in required:
            if key not in self.value:
                self.fail(f"the key {key!r} is missing")
        if not open_:
            for key in self.value:
                if key not in required and key not in optional:
                    self.fail(f"unknown key {key!r}; {suggest(key, (*required, *optional))}")
        return {str(key): self._child(str(key), value) for key, value in self.value.items()}

    def items(self) -> Iterator[tuple[str, Node]]:
        """Read an object with free keys."""
        if not isinstance(self.value, dict):
            self._expect("an object")
        return iter([(str(k), self._child(str(k), v)) for k, v in self.value.items()])

    def as_list(self, *, at_least: int = 0, at_most: int = 1_000_000) -> list[Node]:
        """Read a list."""
        if not isinstance(self.value, list):
            self._expect("a list")
        if not at_least <= len(self.value) <= at_most:
            self.fail(f"expected {at_least} to {at_most} entries, got {len(self.value)}")
        return [self._child(index, value) for index, value in enumerate(self.value)]

    def as_str(self, pattern: re.Pattern[str] | None = None, *, kind: str = "a string") -> str:
        """Read a string; ``pattern`` must match the whole of it."""
        if not isinstance(self.value, str) or (pattern and not pattern.fullmatch(self.value)):
            self._expect(kind)
        return self.value

    def as_int(self, low: int, high: int) -> int:
        """Read a whole number from ``low`` to ``high``."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            self._expect("a whole number")
        if not low <= self.value <= high:
            self.fail(f"{self.value} is not from {low} to {high}")
        return self.value

    def as_choice(self, allowed: Iterable[str]) -> str:
        """Read one of some strings."""
        allowed = tuple(allowed)
        if not isinstance(self.value, str) or self.value not in allowed:
            self._expect("one of " + ", ".join(map(repr, allowed)))
        return self.value

    def as_object(self) -> dict[str, Any]:
        """Read an object whose contents are free."""
        if not isinstance(self.value, dict):
            self._expect("an object")
        return self.value
