"""pyproject.toml against what is really there."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from tests.packaging.project import (
    DATA,
    LINKS,
    PROJECT,
    ROOT,
    SOURCES,
    packages_on_disk,
    python_files,
)

# Import name -> distribution, where they differ.
DISTRIBUTIONS = {
    "markdown_it": "markdown-it-py",
    "safetensors": "safetensors",
    "sklearn": "scikit-learn",
    "tvm": "apache-tvm",
    "tvm_ffi": "apache-tvm-ffi",
}

# What TVM's tuner and RPC import, and its wheel does not ask for.
FOR_TVM = {"cloudpickle", "psutil", "tornado", "xgboost"}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
    top = {name.partition(".")[0] for name in names}
    return top - set(sys.stdlib_module_names) - {"lutcc", "__future__"}


def distribution(module: str) -> str:
    return DISTRIBUTIONS.get(module, module)


def names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", line).group().lower() for line in requirements}  # type: ignore[union-attr]


def test_every_package_is_listed():
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted([*packages_on_disk(), *DATA.values()])
    assert len(set(listed)) == len(listed)


def test_every_package_has_an_init():
    bare = [
        name for name, path in packages_on_disk().items() if not (path / "__init__.py").is_file()
    ]
    assert not bare, f"packages without __init__.py: {bare}"


def test_links_are_relative():
    for folder, name in LINKS:
        link = ROOT / folder / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"


@pytest.mark.parametrize("name", ["ir", "schedules"])
def test_sources_are_not_importable_under_their_folder_name(name, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=rf"lutcc\.{name}"):
        __import__(name)
    sys.modules.pop(name, None)


def test_every_import_is_a_declared_dependency():
    core = names(PROJECT["project"]["dependencies"])
    extras = {
        line
        for group in PROJECT["project"]["optional-dependencies"].values()
        for line in names(group)
    }
    for path in python_files(*SOURCES):
        where = path.relative_to(ROOT)
        # Optional packages are imported inside functions, behind an error that names the extra.
        undeclared = {distribution(m) for m in imported_packages(path)} - core - extras
        assert not undeclared, f"{where} imports {undeclared}, which pyproject.toml does not name"
    for path in python_files("tests", "examples", "docs"):
        local = {p.stem for p in path.parent.glob("*.py")} | {"tests", "examples", "conftest"}
        undeclared = {distribution(m) for m in imported_packages(path) - local} - core - extras
        assert not undeclared, f"{path.relative_to(ROOT)} imports {undeclared}"


def test_every_dependency_is_imported():
    used = {distribution(m) for path in python_files(*SOURCES) for m in imported_packages(path)}
    core = names(PROJECT["project"]["dependencies"])
    assert not core - used - FOR_TVM, f"declared, but never imported: {core - used}"


def test_constraints_pin_every_dependency():
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {
        re.sub(r"[-_.]+", "-", p.split("==")[0].lower())
        for p in pins
        if p and not p.startswith("#")
    }
    assert all("==" in p for p in pins if p and not p.startswith("#"))
    wanted = names(PROJECT["project"]["dependencies"])
    for lines in PROJECT["project"]["optional-dependencies"].values():
        wanted |= names(lines)
    assert not {re.sub(r"[-_.]+", "-", name) for name in wanted} - pinned
