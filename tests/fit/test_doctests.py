"""The examples in the docstrings of the fitting side run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import numpy as np
import pytest
import torch

import lutcc.data
import lutcc.fit
import lutcc.nn

MODULES = [
    "lutcc.convert_model",
    "lutcc.recipes",
    *(
        f"{package.__name__}.{module.name}"
        for package in (lutcc.fit, lutcc.nn, lutcc.data)
        for module in pkgutil.iter_modules(package.__path__)
    ),
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    torch.manual_seed(0)
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"np": np, "torch": torch})
    assert result.failed == 0
