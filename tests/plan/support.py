"""What the fixtures of the tests of plans return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lutcc import recipes
from lutcc.planning import Plan

CANDIDATES: list[recipes.Config] = [
    recipes.Maddness(ncodebooks=12),
    recipes.Codebook(alpha=4.0, learn="none"),
]


@dataclass(frozen=True)
class Made:
    """A plan, and where its measurements are."""

    plan: Plan
    cache: Path
