"""The settings that something was made with, which must stay while it is continued."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lutcc.errors import InputError


def check_same(
    what: str, old: Mapping[str, Any], new: Mapping[str, Any], where: str | Path
) -> None:
    """Raise InputError unless what was made with ``old`` settings, of JSON, goes on with ``new``.

    Examples
    --------
    >>> check_same("the run", {"rows": [1, 2]}, {"rows": (1, 2)}, "runs.jsonl")
    """
    new = json.loads(json.dumps(new))
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if changed:
        pairs = ", ".join(f"{key} {old.get(key)!r} -> {new.get(key)!r}" for key in changed)
        raise InputError(
            f"{what} was made with other settings: {pairs}",
            where=str(where),
            fix="use the same settings, or another output folder",
        )
