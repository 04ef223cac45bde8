"""A fitted product and a compiled artifact, shared by the tests of the commands."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from lutcc.cli.main import main
from tests.cli.support import Files, Outcome


@pytest.fixture
def lutcc_command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Outcome]:
    """Return a function that runs ``lutcc ARGUMENTS`` here; its CPU binding is undone."""
    cores = os.sched_getaffinity(0)

    def run(*arguments: object) -> Outcome:
        try:
            code = main([str(argument) for argument in arguments])
        finally:
            os.sched_setaffinity(0, cores)
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Fit and compile once, through the command line."""
    folder = tmp_path_factory.mktemp("cli")
    random = np.random.default_rng(0)
    found = Files(folder, folder / "a.npy", folder / "b.npy", folder / "k.ir", folder / "k.lutcc")
    np.save(found.rows, (random.normal(size=(600, 4)) @ random.normal(size=(4, 24))).astype("f4"))
    np.save(found.weight, random.normal(size=(24, 7)).astype(np.float32))
    fit = ["fit", found.rows, found.weight, "-C", 6, "-o", found.module, "-q", "--json"]
    assert main([str(word) for word in fit]) == 0
    assert main(["compile", str(found.module), "-o", str(found.artifact), "-q", "--json"]) == 0
    return found
