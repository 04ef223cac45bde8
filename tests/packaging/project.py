"""The checkout and its pyproject.toml, for the tests of this folder."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SOURCES = {"lutcc": "lutcc", "ir": "lutcc.ir", "schedules": "lutcc.schedules"}
LINKS = (("lutcc", "ir"), ("lutcc", "schedules"), ("lutcc", "tuning_logs"))
#: Packages that hold data only.
DATA = {"tuning_logs": "lutcc.tuning_logs"}


def packages_on_disk() -> dict[str, Path]:
    """Return every package of the three source folders, without those behind the links."""
    found = {}
    for folder, package in SOURCES.items():
        for path in sorted({file.parent for file in (ROOT / folder).rglob("*.py")}):
            if path.relative_to(ROOT).parts[:2] not in LINKS:
                parts = path.relative_to(ROOT / folder).parts
                found[".".join((package, *parts))] = path
    return found


def python_files(*folders: str) -> list[Path]:
    """Return the Python files below some top-level folders, each once."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [path for path in paths if path.relative_to(ROOT).parts[:2] not in LINKS]
