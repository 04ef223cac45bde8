"""A small classifier of digits and a plan for it, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import lutcc
from lutcc import recipes
from lutcc.data import digits
from lutcc.planning import Plan
from tests.plan.support import CANDIDATES, Made


@pytest.fixture(scope="session")
def mlp() -> torch.nn.Sequential:
    """A 64-24-10 network, trained for a moment."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10))
    data = digits.load()
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def rows() -> np.ndarray:
    """(540, 64) float32 digits."""
    return digits.load().test_x


@pytest.fixture(scope="session")
def made(mlp, rows, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A plan with a loose budget, and the file of its measurements."""
    cache = tmp_path_factory.mktemp("plan") / "recipe.toml.plan.json"
    plan = lutcc.plan(
        mlp, rows, max_drop="30%", objective="size", candidates=CANDIDATES, cache=cache
    )
    assert isinstance(plan, Plan)
    assert recipes.Exact() not in CANDIDATES
    return Made(plan, Path(cache))
