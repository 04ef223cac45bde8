"""Where reports are written to."""

from __future__ import annotations

from pathlib import Path

from lutcc.errors import UsageError


def writable(given: str | None, option: str, suffixes: tuple[str, ...]) -> Path | None:
    """Return where to write, before any work is done for it."""
    if given is None:
        return None
    path = Path(given)
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{given!r} does not end in {suffixes[0]}", where=option)
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"{given} cannot be written: "
            + ("it is a folder" if path.is_dir() else f"there is no folder {path.parent}"),
            where=option,
            fix="name a file in a folder that exists",
        )
    return path
