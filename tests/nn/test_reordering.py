"""Reorderings: which channels may be permuted, and that outputs stay the same when they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lutcc.errors import ConvertError, InputError
from lutcc.nn.reordering import (
    FoldReport,
    Reorderings,
    find_reorderings,
    fold_orders,
    permute,
)


def ready(model: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value of its own."""
    random = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            low = 0.5 if name.endswith("running_var") else -0.5
            tensor.copy_(torch.rand(tensor.shape, generator=random) + low)
    return model.eval()


def check(model: nn.Module, x: Any) -> Reorderings:
    """Permute everything that may be permuted, one after the other; outputs must stay the same."""
    ready(model)
    found = find_reorderings(model, x)
    inputs = x if isinstance(x, tuple) else (x,)
    random = np.random.default_rng(0)
    with torch.no_grad():
        expected = model(*inputs)
        for name, reordering in found.found.items():
            layer: Any = model.get_submodule(name)
            before = layer.weight.clone()
            order = reordering.restricted(name, random.permutation(len(before)))
            assert reordering.allows(name, order)
            permute(model, reordering, order, layer=name)
            if name not in reordering.consumers:
                assert torch.equal(layer.weight, before[torch.from_numpy(order)])
            assert not torch.equal(layer.weight, before)
            torch.testing.assert_close(model(*inputs), expected, rtol=1e-4, atol=1e-5)
    return found


def test_mlp() -> None:
    model = nn.Sequential(
        nn.Linear(5, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(), nn.Linear(16, 12),
        nn.LayerNorm(12), nn.SiLU(), nn.Linear(12, 3),
    )  # fmt: skip
    found = check(model, torch.randn(4, 5))
    assert found.refused == {"7": "the model returns its output"}
    first, second = found.found["0"], found.found["4"]
    assert (first.layers, first.consumers, first.blocks, first.size) == (("0",), ("4",), 1, 16)
    assert (second.consumers, second.size, second.is_free) == (("7",), 12, True)
    assert {p.names[0] for p in first.parameters} == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "4.weight",
    }  # fmt: skip


def test_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, groups=8), nn.Hardswish(), nn.Conv2d(8, 12, 1), nn.GroupNorm(2, 12),
        nn.Conv2d(12, 6, 3, groups=2), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 4, 4),
    )  # fmt: skip
    found = check(model, torch.randn(2, 3, 16, 16))
    assert found.found["0"] is found.found["4"], "a depthwise layer moves with the one before it"
    assert (found.found["0"].layers, found.found["0"].consumers) == (("0", "4"), ("6",))
    assert (found.found["6"].blocks, found.found["6"].size) == (2, 6), "groups stay apart"
    assert (found.found["8"].blocks, found.found["8"].size) == (2, 3)
    assert found.found["8"].consumers == ("11",), "columns move in blocks of pixels"
    assert list(found.refused) == ["11"]


class Residual(nn.Module):
    """A block of a ResNet: stem, two convolutions, a skip connection with one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3)
        self.conv1, self.bn1 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.down = nn.Conv2d(6, 10, 1)
        self.squeeze, self.excite = nn.Conv2d(10, 4, 1), nn.Conv2d(4, 10, 1)
        self.head = nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y = torch.relu(y + self.down(x))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.head(y.mean((2, 3)))


def test_skip_connections_forbid_it() -> None:
    found = check(Residual(), torch.randn(2, 3, 8, 8))
    assert {n: r.consumers for n, r in found.found.items()} == {
        "stem": ("conv1", "down"),
        "conv1": ("conv2",),
        "squeeze": ("excite",),
    }
    for name in ("conv2", "down", "excite"):
        assert "skip connection" in found.refused[name]


class Attention(nn.Module):
    """Attention and feed-forward part as in BERT (no gate) or Llama (gate, RMS norm)."""

    def __init__(self, *, llama: bool = False, rope: bool = False, kv_heads: int = 4) -> None:
        super().__init__()
        self.llama, self.rope, self.kv_heads = llama, rope, kv_heads
        self.query = nn.Linear(16, 16)
        self.key, self.value = nn.Linear(16, 4 * kv_heads), nn.Linear(16, 4 * kv_heads)
        self.output = nn.Linear(16, 16)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.norm = nn.RMSNorm(16) if llama else nn.LayerNorm(16)

    def heads(self, x: torch.Tensor, count: int) -> torch.Tensor:
        return x.view(*x.shape[:2], count, 4).transpose(1, 2)

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        if not self.rope:
            return x
        angle = torch.arange(x.shape[2])[:, None] * torch.tensor([1.0, 0.1, 1.0, 0.1])
        return x * angle.cos() + torch.cat([-x[..., 2:], x[..., :2]], -1) * angle.sin()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            self.heads(self.query(x), 4),
            self.heads(self.key(x), self.kv_heads),
            self.heads(self.value(x), self.kv_heads),
        )
        shape = (x.shape[0], self.kv_heads, 4 // self.kv_heads, x.shape[1], 4)
        k, v = (
            t[:, :, None].expand(shape).reshape(x.shape[0], 4, -1, 4) for t in (self.turn(k), v)
        )
        y = F.scaled_dot_product_attention(self.turn(q), k, v, is_causal=self.llama)
        x = self.norm(x + self.output(y.transpose(1, 2).flatten(2)))
        wide = F.silu(self.gate(x)) * self.up(x) if self.llama else F.gelu(self.up(x))
        return x + self.down(wide)


def test_bert_layer() -> None:
    found = check(Attention(), torch.randn(2, 3, 16))
    assert {n: (r.layers, r.consumers, r.blocks, r.size) for n, r in found.found.items()} == {
        "query": (("query", "key"), (), 4, 4),
        "key": (("query", "key"), (), 4, 4),
        "value": (("value",), ("output",), 4, 4),
        "up": (("up",), ("down",), 1, 24),
    }
    assert "skip connection" in found.refused["output"]
    assert "skip connection" in found.refused["down"]
    assert "does not run it" in found.refused["gate"]


def test_llama_layer_with_shared_heads() -> None:
    found = check(Attention(llama=True, rope=True, kv_heads=2), torch.randn(2, 3, 16))
    assert (found.found["gate"].layers, found.found["gate"].consumers) == (
        ("gate", "up"),
        ("down",),
    )
    assert found.found["gate"] is found.found["up"]
    value = found.found["value"]
    assert (value.layers, value.consumers) == (("value",), ("output",))
    assert (value.blocks, value.size) == (2, 4)
    assert "it meets" in found.refused["key"], "rotation has its own table for each channel"
    assert set(found.refused) >= {"key", "output", "down"}


def test_shared_heads_without_rotation() -> None:
    found = check(Attention(kv_heads=2), torch.randn(2, 3, 16))
    assert found.found["query"] is found.found["key"]
    assert (found.found["query"].blocks, found.found["query"].size) == (2, 4)
    query = found.found["query"]
    wrong = np.arange(16).reshape(4, 4)
    wrong[0] = wrong[0, ::-1]  # the other head of the pair would have to follow
    assert not query.allows("query", wrong.ravel())
    right = wrong.copy()
    right[1] = right[1, ::-1]
    assert query.allows("query", right.ravel())


def test_torch_transformer_layer() -> None:
    found = check(nn.TransformerEncoderLayer(16, 2, 20, batch_first=True), torch.randn(2, 3, 16))
    assert {n: r.consumers for n, r in found.found.items()} == {"linear1": ("linear2",)}
    assert "skip connection" in found.refused["self_attn.out_proj"]
    assert "skip connection" in found.refused["linear2"]


class Tied(nn.Module):
    """Embedding and head are one tensor; a layer runs twice; two layers hold one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.twice, self.third, self.fourth = nn.Linear(8, 8), nn.Linear(8, 12), nn.Linear(8, 12)
        self.fourth.weight = self.third.weight
        self.last, self.head = nn.Linear(12, 8), nn.Linear(8, 11)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(self.embed(ids)))
        x = self.twice(torch.relu(self.twice(x)))
        x = torch.tanh(self.third(torch.tanh(x))) * self.fourth(torch.relu(x))
        return self.head(torch.relu(self.last(x)))


def test_tied_weights_and_layers_that_run_twice() -> None:
    found = check(Tied(), torch.randint(0, 11, (2, 5)))
    # the rows of "twice" are its own columns, and those of "first" too
    assert found.found["twice"].layers == ("first", "twice")
    assert set(found.found["twice"].consumers) == {"twice", "third", "fourth"}
    assert (found.found["third"].layers, found.found["third"].consumers) == (
        ("third", "fourth"),
        ("last",),
    )
    # the head's columns are those of the embedding, which "first" reads
    assert set(found.found["last"].consumers) == {"embed", "first", "head"}
    assert found.refused == {"head": "an embedding looks it up by number"}


USES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "slice": (lambda y: torch.cat([y[:, :6].tanh(), y[:, 6:].exp()], 1), "a slice takes only"),
    "cat": (lambda y: torch.cat([y, y], 1).amax(1, keepdim=True), "concatenated"),
    "cumsum": (lambda y: y.cumsum(1), "cumsum depends on the order"),
    "reshape": (lambda y: y.view(8, -1).tanh().view(-1, 12), "a reshape mixes"),
    "fft": (lambda y: torch.fft.rfft(y).real, "aten._fft_r2c"),
    "constant": (lambda y: (y * torch.arange(12.0)).sum(1), "it meets"),
    "index": (lambda y: y[:, torch.tensor([3, 1, 2])], "by number"),
    "argmax": (lambda y: y.argmax(1).float(), "argmax depends on the order"),
    "max": (lambda y: y.max(1).indices.float(), "argmax depends on the order"),
    "pad": (lambda y: F.pad(y, (1, 1)).mean(1), "padding"),
    "sum": (lambda y: (y * y).sum(1) + y.softmax(1).amax(1), ""),
    "heads": (lambda y: y.view(-1, 3, 4).transpose(1, 2).logsumexp(1), ""),
}


class Odd(nn.Module):
    """Layers whose outputs are used in ways that forbid it, and in two that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(6, 12) for name in USES})

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [use(self.layers[name](x)) for name, (use, _) in USES.items()]


def test_what_forbids_it() -> None:
    found = check(Odd(), torch.randn(6, 6))
    for name, (_, reason) in USES.items():
        if reason:
            assert reason in found.refused[f"layers.{name}"]
    assert found.found["layers.sum"].is_free
    heads = found.found["layers.heads"]
    assert (heads.blocks, heads.size) == (3, 4)
    assert len(found.found) == 2


def test_fold_orders_says_what_it_did() -> None:
    model, x = ready(Attention()), torch.randn(2, 3, 16)
    expected = model(x)
    random = np.random.default_rng(1)
    within = (np.arange(0, 16, 4)[:, None] + [2, 0, 3, 1]).ravel()
    orders = {
        "up": random.permutation(24), "query": within, "key": within[::-1],
        "value": np.arange(16)[::-1], "down": random.permutation(16), "nothing": np.arange(3),
    }  # fmt: skip
    report = fold_orders(model, x, orders)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert isinstance(report, FoldReport)
    assert report.folded == {"up": ("down",), "query": ()}
    assert report.refused["key"] == "its rows move with those of 'query'"
    assert report.refused["value"] == "its rows may move within blocks of 4 only"
    assert "skip connection" in report.refused["down"]
    assert "no such layer" in report.refused["nothing"]
    assert "up: into down" in str(report)
    assert "value: not, its rows" in str(report)


def test_wrong_orders_and_replaced_layers() -> None:
    model = ready(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    (found,) = find_reorderings(model, torch.zeros(1, 3)).found.values()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for order in ([0, 1, 2], [0, 1, 2, 2], [1, 2, 3, 4]):
        with pytest.raises(InputError, match="is no permutation of its 4 rows"):
            permute(model, found, order)
    with pytest.raises(InputError, match="not one of layer '2'"):
        permute(model, found, [0, 1, 2, 3], layer="2")
    model[2] = nn.Identity()  # pyright: ignore[reportIndexIssue]
    with pytest.raises(ConvertError, match=r"has no '2.weight' any more"):
        permute(model, found, [3, 1, 2, 0])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
