"""Plans: which layer should become what, measured on this processor, within a budget of error."""

from __future__ import annotations

from lutcc.planning.api import plan, read_max_drop
from lutcc.planning.candidates import default_candidates
from lutcc.planning.choose import choose_options
from lutcc.planning.options import Option
from lutcc.planning.result import ChainPlan, LayerPlan, Plan, Recipe

__all__ = [
    "ChainPlan",
    "LayerPlan",
    "Option",
    "Plan",
    "Recipe",
    "choose_options",
    "default_candidates",
    "plan",
    "read_max_drop",
]
