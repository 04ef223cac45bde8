"""torch.ops.lutcc.attention: torch's own, with heads side by side; gradients; refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lutcc.errors import InputError
from lutcc.ops import attention


def rows(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), **options)


def by_heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "flags", "added"])
def test_as_torch(kind: str, causal: bool) -> None:
    q, k, v = rows(2, 5, 24), rows(2, 7, 12), rows(2, 7, 10)
    flags = torch.rand(2, 1, 5, 7) > 0.3
    flags[..., 0] = True
    mask = {"none": None, "flags": flags.to(torch.uint8), "added": rows(1, 4, 5, 7)}[kind]
    got = attention(q, k, v, mask, heads=4, kv_heads=2, causal=causal)
    scores = by_heads(q, 4) @ by_heads(k, 2).repeat_interleave(2, 1).transpose(-1, -2) / 6**0.5
    if kind == "flags":
        scores = scores.masked_fill(~flags, -torch.inf)
    elif mask is not None:
        scores = scores + mask
    if causal:
        scores = scores.masked_fill(~torch.ones(5, 7, dtype=torch.bool).tril(), -torch.inf)
    want = torch.softmax(scores, -1) @ by_heads(v, 2).repeat_interleave(2, 1)
    torch.testing.assert_close(got, want.transpose(1, 2).flatten(2))


def test_gradients_and_tracing() -> None:
    tensors = [rows(1, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    mask = torch.randn(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *t: attention(*t, heads=2, kv_heads=2), (*tensors, mask))
    arguments = (*(t.detach().float() for t in tensors), None, 2, 2, None, True)
    torch.library.opcheck(torch.ops.lutcc.attention.default, arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": rows(5, 24)}, "must be .N, length, columns."),
        ({"heads": 5}, "do not make 5 heads"),
        ({"heads": 3, "kv_heads": 2}, "do not make 3 heads and 2"),
        ({"mask": torch.ones(5, 7)}, "4 dimensions"),
        ({"mask": torch.ones(1, 1, 5, 7, dtype=torch.bool)}, "uint8"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    given = {"query": rows(2, 5, 24), "key": rows(2, 7, 24), "value": rows(2, 7, 24)}
    with pytest.raises(InputError, match=message):
        attention(**{**given, **change})
