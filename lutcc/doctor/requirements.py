"""The versions that this installation of lutcc asks for, and whether they are there."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

_REQUIREMENT = re.compile(r"^\s*([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*([^;]*)(?:;\s*(.*))?$")
_CLAUSE = re.compile(r"(==|>=|<=|!=|>|<)\s*([^\s,]+)")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One line of the dependency list: a distribution, its version clauses and its extra."""

    name: str
    clauses: tuple[tuple[str, str], ...]
    extra: str | None = None

    def __str__(self) -> str:
        return self.name + ",".join(op + version for op, version in self.clauses)

    def satisfied_by(self, version: str) -> bool:
        """Tell whether ``version``, its local part (``+cpu``) left out, meets every clause."""
        have = _key(version)
        tests = {
            "==": lambda want: have == want,
            "!=": lambda want: have != want,
            ">=": lambda want: have >= want,
            "<=": lambda want: have <= want,
            ">": lambda want: have > want,
            "<": lambda want: have < want,
        }
        return all(tests[op](_key(wanted)) for op, wanted in self.clauses)


def _key(version: str) -> tuple[int, ...]:
    """Order versions by their numbers: ``0.1.14.post1`` -> (0, 1, 14, 1)."""
    numbers = [int(part) for part in re.findall(r"\d+", version.split("+")[0])]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def parse_requirement(line: str, extra: str | None = None) -> Requirement:
    """Read ``name>=1,<2 ; extra == 'gpu'`` as pip writes it.

    Examples
    --------
    >>> str(parse_requirement("torch>=2.11"))
    'torch>=2.11'
    """
    match = _REQUIREMENT.match(line)
    if match is None:
        raise ValueError(f"not a requirement: {line!r}")
    name, clauses, marker = match.groups()
    found = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker or "")
    return Requirement(name, tuple(_CLAUSE.findall(clauses)), found.group(1) if found else extra)


def declared_requirements() -> list[Requirement]:
    """Return lutcc's dependencies, from the checkout's pyproject.toml or the installed metadata."""
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    if pyproject.is_file():
        project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
        extras = project.get("optional-dependencies", {})
        return [parse_requirement(line) for line in project["dependencies"]] + [
            parse_requirement(line, extra) for extra, lines in extras.items() for line in lines
        ]
    try:
        return [parse_requirement(line) for line in metadata.requires("lutcc") or []]
    except metadata.PackageNotFoundError:
        return []


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
