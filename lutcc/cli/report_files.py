"""What reports are read from and written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lutcc.errors import LogError, UsageError


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


def log_paths(logs: Sequence[str]) -> list[Path]:
    """Return the files that are meant, each once; of a folder, its ``*.jsonl``.

    Raises
    ------
    LogError
        If a folder has none.
    """
    found: dict[Path, Path] = {}
    for given in map(Path, logs):
        files = sorted(given.glob("*.jsonl")) if given.is_dir() else [given]
        if not files:
            raise LogError(
                "the folder holds no *.jsonl",
                where=str(given),
                fix="name the folder that the runs were written to, or their log",
            )
        for path in files:
            found.setdefault(path.resolve(), path)
    return list(found.values())
