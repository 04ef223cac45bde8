"""Rows of a benchmark, told one after the other as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

Row: TypeAlias = dict[str, Any]
OnRow: TypeAlias = Callable[[Row], None] | None


def collected(rows: Iterable[Row], on_row: OnRow) -> list[Row]:
    """Return all rows; ``on_row`` is called with each as soon as it is measured."""
    found: list[Row] = []
    for row in rows:
        found.append(row)
        if on_row is not None:
            on_row(row)
    return found
