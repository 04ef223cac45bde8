"""Compiled kernels and rounded copies are never used after an optimizer's step."""

from __future__ import annotations

import copy

import pytest
import torch

import lutcc.ops
from lutcc.nn import LookupFFN


@pytest.mark.parametrize(
    ("fused", "table_dtype"), [(False, "float32"), (True, "float32"), (True, "int8")]
)
def test_a_step_is_seen_by_what_was_compiled_before(fused, table_dtype):
    torch.manual_seed(0)
    layer = LookupFFN(8, 8, 2, 3, block_size=4, table_dtype=table_dtype).eval()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=fused)
    x = torch.randn(5, 8)
    before = lutcc.ops.get_compilation()
    lutcc.ops.set_compilation("always")
    try:
        with torch.inference_mode():
            first = found = layer(x)
        for _ in range(2):
            layer.train()(x).square().sum().backward()
            layer.eval()
            with torch.inference_mode():
                layer(x)  # as an evaluation between backward and step would
            optimizer.step()
            with torch.inference_mode():
                found = layer(x)
        lutcc.ops.clear_kernels()
        with torch.inference_mode():
            expected = copy.deepcopy(layer).eval()(x)
    finally:
        lutcc.ops.set_compilation(before)
    assert torch.equal(found, expected)
    assert not torch.allclose(found, first)


def test_only_what_a_fused_step_changed_is_counted_up():
    used, unused = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    optimizer = torch.optim.Adam([used, unused], fused=True)
    used.grad = torch.ones(3)
    versions = used._version, unused._version
    optimizer.step()
    assert used._version > versions[0]
    assert unused._version == versions[1]
