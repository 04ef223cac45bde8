"""A compiled LookupFFN gives what the torch layer gives, for every type of table."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import lutcc
from lutcc.nn import LookupFFN, make_projection

CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"d_in": 16, "d_out": 16, "num_tables": 4, "code_length": 4, "block_size": 8}, {}),
    (
        {"d_in": 24, "d_out": 20, "num_tables": 7, "code_length": 5, "block_size": 16},
        {"table_dtype": "int8", "neighbors": 2},
    ),
    (
        {"d_in": 64, "d_out": 48, "num_tables": 8, "code_length": 8, "block_size": 16},
        {"table_dtype": "bfloat16", "projection": "bh2", "variant": "softmax"},
    ),
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize(("shape", "options"), CASES, ids=str)
def test_compiled_layer_is_the_layer(shape: dict[str, Any], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = LookupFFN(**shape, **options).eval()
    artifact = lutcc.compile(layer, (torch.randn(4, layer.d_in),))
    with torch.inference_mode():
        for rows in (1, 7, 50):
            x = torch.randn(rows, layer.d_in)
            torch.testing.assert_close(torch.as_tensor(artifact(x)), layer(x), rtol=1e-5, atol=1e-5)


def test_a_transform_between_two_narrow_products() -> None:
    # The second product may not write into the memory that the transform still holds its rows in.
    torch.manual_seed(0)
    layer = make_projection("bh2", 16, 16, block_size=8).eval()
    artifact = lutcc.compile(layer, (torch.randn(4, 16),))
    x = torch.randn(33, 16)
    with torch.inference_mode():
        torch.testing.assert_close(torch.as_tensor(artifact(x)), layer(x), rtol=1e-5, atol=1e-5)
