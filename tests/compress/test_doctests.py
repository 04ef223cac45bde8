"""The examples in lutcc.compress's docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import numpy as np
import pytest

import lutcc.compress

MODULES = [f"lutcc.compress.{m.name}" for m in pkgutil.iter_modules(lutcc.compress.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str, tmp_path: Path) -> None:
    module = importlib.import_module(name)
    globs = {"np": np, "path": tmp_path}
    assert doctest.testmod(module, extraglobs=globs).failed == 0
