"""Kernels compiled for GPUs that are not there: they fit, and spill no more than recorded."""

from __future__ import annotations

import json

import pytest
import triton

from lutcc.schedules.triton.target import SHARED_MEMORY
from tests.triton.compile_only import TARGETS
from tests.triton.resources import BASELINE, QUICK, THOROUGH, measure, recorded

RECORD = json.loads(BASELINE.read_text(encoding="utf-8"))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("target", list(TARGETS))
def test_resources_at_production_shapes(target):
    cases = THOROUGH if target == "sm_90" else QUICK
    before = recorded(target)
    found = measure(target, cases)
    wanted = [name for name in before if name.partition(":")[0] in cases]
    assert list(found) == wanted, "python -m tests.triton.resources --update"
    limit = TARGETS[target][1]
    for name, resources in found.items():
        assert resources.shared <= limit, name
        # Other versions have other compilers: their spills are looked at when the pin is raised.
        if triton.__version__ == RECORD["triton"]:
            assert resources.spilled <= before[name].spilled, name
            assert resources.wide_loads >= before[name].wide_loads, name


def test_tables_are_loaded_16_bytes_at_a_time():
    """They are most of what a layer reads."""
    for target in TARGETS:
        gathers = [v for name, v in recorded(target).items() if "gather_kernel" in name]
        assert len(gathers) >= 4
        assert all(value.wide_loads for value in gathers)


def test_nothing_is_recorded_that_would_not_launch():
    for target in TARGETS:
        assert all(value.shared <= TARGETS[target][1] for value in recorded(target).values())
        assert SHARED_MEMORY[target] == TARGETS[target][1]
