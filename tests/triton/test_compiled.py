"""Kernels compiled for GPUs that are not there: they fit, and spill no more than recorded."""

from __future__ import annotations

import json

import pytest
import triton

from lutcc.schedules.triton.target import SHARED_MEMORY
from tests.triton.compile_only import TARGETS, Resources
from tests.triton.resources import BASELINE, measure

RECORD = json.loads(BASELINE.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("target", list(TARGETS))
def test_resources_at_production_shapes(target):
    recorded = {name: Resources(**values) for name, values in RECORD["targets"][target].items()}
    found = measure(target)
    assert list(found) == list(recorded), "python -m tests.triton.resources --update"
    limit = TARGETS[target][1]
    for name, resources in found.items():
        assert resources.shared <= limit, name
        # Other versions have other compilers; they are told from faults by looking at the numbers.
        if triton.__version__ == RECORD["triton"]:
            assert resources.spilled <= recorded[name].spilled, name


def test_nothing_is_recorded_that_would_not_launch():
    for target, found in RECORD["targets"].items():
        assert all(values["shared"] <= TARGETS[target][1] for values in found.values())
        assert SHARED_MEMORY[target] == TARGETS[target][1]
