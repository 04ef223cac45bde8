"""The examples in the docstrings of lutcc.ir run and print what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import lutcc.ir

MODULES = ["lutcc.ir"] + [
    info.name for info in pkgutil.walk_packages(lutcc.ir.__path__, "lutcc.ir.")
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_there_are_examples() -> None:
    found = [
        example
        for name in MODULES
        for test in doctest.DocTestFinder().find(importlib.import_module(name))
        for example in test.examples
    ]
    assert len(found) > 60
