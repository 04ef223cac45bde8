"""The examples in lutcc.train's docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch

import lutcc.train

MODULES = [f"lutcc.train.{module.name}" for module in pkgutil.iter_modules(lutcc.train.__path__)]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(name)
    globs = {"np": np, "torch": torch, "Recipe": lutcc.train.Recipe}
    assert doctest.testmod(module, extraglobs=globs).failed == 0
