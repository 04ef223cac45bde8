"""LookupFFN learns: its start in a deep stack, training, distillation, and YOSO's expectation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lutcc.errors import InputError
from lutcc.nn import LookupFFN
from lutcc.nn.distillation import solve_tables


def ffn(
    d_in: int = 16, hidden: int = 48, d_out: int = 12, bias: bool = True
) -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(
        torch.nn.Linear(d_in, hidden, bias=bias), torch.nn.GELU(), torch.nn.Linear(hidden, d_out)
    )


def rows(count: int = 1200, d: int = 16) -> torch.Tensor:
    """Rows near a subspace, as activations are, of variance about 1."""
    g = torch.Generator().manual_seed(2)
    basis = torch.randn(4, d, generator=g) / 2
    x = torch.randn(count, 4, generator=g) @ basis
    return x + 0.1 * torch.randn(count, d, generator=g)


@pytest.mark.parametrize("variant", ["gelu", "softmax", "constant"])
@pytest.mark.parametrize(
    "shape", [(64, 64, 16, 8), (48, 80, 5, 3), (32, 32, 2, 12), (64, 64, 64, 1)]
)
def test_fresh_layers_have_unit_hashes_and_the_output_of_a_dense_block(
    variant: str, shape: tuple[int, int, int, int]
) -> None:
    torch.manual_seed(0)
    layer = LookupFFN(*shape, variant=variant, neighbors=1 if variant == "constant" else 2)
    x = torch.randn(3000, shape[0])
    assert 0.9 < float(layer.projection(x).detach().var()) < 1.1
    dense = torch.nn.Sequential(
        torch.nn.Linear(shape[0], 4 * shape[0]),
        torch.nn.GELU(),
        torch.nn.Linear(4 * shape[0], shape[1]),
    )
    ratio = float(layer(x).detach().std() / dense(x).detach().std())
    assert 0.7 < ratio < 1.4


class Stack(torch.nn.Module):
    """Blocks behind layer norms, pre or post, each added to its input."""

    def __init__(self, pre: bool, blocks: list[torch.nn.Module], d: int) -> None:
        super().__init__()
        self.pre, self.blocks = pre, torch.nn.ModuleList(blocks)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(d) for _ in blocks)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        seen = [x]
        for block, norm in zip(self.blocks, self.norms, strict=True):
            x = x + block(norm(x)) if self.pre else norm(x + block(x))
            seen.append(x)
        return seen


@pytest.mark.parametrize("pre", [True, False])
@pytest.mark.parametrize("projection", ["bh4", "dense"])
def test_a_deep_stack_keeps_activations_and_gradients_of_order_one(
    pre: bool, projection: str
) -> None:
    torch.manual_seed(0)
    blocks: list[torch.nn.Module] = [LookupFFN(64, 64, 16, 8, projection) for _ in range(4)]
    x = torch.randn(512, 64, requires_grad=True)
    seen = Stack(pre, blocks, 64)(x)
    for activation in seen[1:]:
        assert 0.7 < float(activation.detach().std()) < 1.5
    direction = torch.randn_like(seen[-1])
    grads = torch.autograd.grad((seen[-1] * direction).sum(), seen)
    for grad in grads:
        assert 0.5 < float(grad.std()) < 2


def test_a_stack_of_look_ups_trains() -> None:
    torch.manual_seed(0)
    x = rows(2000)
    with torch.no_grad():
        y = x + ffn(d_out=16)(torch.tanh(2 * x)) * 3
    blocks: list[torch.nn.Module] = [LookupFFN(16, 16, 12, 6) for _ in range(4)]
    model = Stack(True, blocks, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for step in range(60):
        batch = slice(step * 64 % 1920, step * 64 % 1920 + 64)
        loss = (model(x[batch])[-1] - y[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"variant": "softmax", "neighbors": 3, "table_dtype": "bfloat16"},
    {"projection": "dense", "bias": False, "table_dtype": "int8"},
    {"synthetic": 0},
]


@pytest.mark.one_in(2)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_distillation_learns_and_its_report_is_true(options: dict[str, Any]) -> None:
    block, x = ffn(), rows()
    before = {name: value.clone() for name, value in block.state_dict().items()}
    seen: list[tuple[int, int, float]] = []
    layer = LookupFFN.from_ffn(
        block, x, 16, 5, steps=60, progress=lambda *args: seen.append(args), **options
    )
    report = layer.distillation
    assert report is not None
    assert (report.rows, report.held_out, report.steps) == (1080, 120, 60)
    assert report.relative_error < report.initial_error < 0.8 * report.mean_error
    assert seen[-1][:2] == (60, 60)
    if layer.table_dtype == "float32":
        assert min(error for _, _, error in seen) == report.relative_error
    assert not layer.training
    fresh = rows(3000)[1200:]
    exact = block(fresh)
    error = float(((layer(fresh) - exact).norm() / exact.norm()).detach())
    assert error == pytest.approx(report.relative_error, rel=0.35)
    assert all(torch.equal(value, before[name]) for name, value in block.state_dict().items())


def test_distillation_is_deterministic_by_seed_and_leaves_the_global_state() -> None:
    torch.manual_seed(5)
    first = LookupFFN.from_ffn(ffn(), rows(300), 4, 4, steps=10, seed=3)
    torch.manual_seed(6)
    state = torch.get_rng_state()
    block = ffn()
    torch.set_rng_state(state)
    second = LookupFFN.from_ffn(block, rows(300), 4, 4, steps=10, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    other = LookupFFN.from_ffn(block, rows(300), 4, 4, steps=10, seed=4)
    assert torch.equal(first.tables, second.tables)
    assert not torch.equal(first.tables, other.tables)


def test_units_of_the_outputs_do_not_matter() -> None:
    block, x = ffn(), rows(400)
    plain = LookupFFN.from_ffn(block, x, 6, 4, steps=20)
    scaled = LookupFFN.from_ffn(lambda rows: 1000 * block(rows), x, 6, 4, steps=20)
    assert plain.distillation is not None
    assert scaled.distillation is not None
    assert scaled.distillation.relative_error == pytest.approx(
        plain.distillation.relative_error, rel=0.02
    )


def test_blocks_come_as_modules_weights_or_functions() -> None:
    block, x = ffn(), rows(300)
    first, last = block[0], block[2]
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(last, torch.nn.Linear)
    weights = (first.weight, first.bias, "gelu", last.weight, last.bias)
    expected = LookupFFN.from_ffn(block.train(), x, 4, 4, steps=5)
    assert block.training
    for given in (weights, (*weights[:2], torch.nn.GELU(), *weights[3:]), block.forward):
        with torch.no_grad():  # as inside convert
            layer = LookupFFN.from_ffn(given, x.reshape(3, 100, 16), 4, 4, steps=5)
        assert torch.equal(layer.tables, expected.tables)
    capped = LookupFFN.from_ffn(block, x.numpy(), 4, 4, steps=0, max_rows=50)
    assert capped.distillation is not None
    assert capped.distillation.rows + capped.distillation.held_out == 50
    single = LookupFFN.from_ffn(block, x[:1], 4, 4, steps=2)
    assert torch.isfinite(single(x)).all()


def test_regression_solves_the_normal_equations() -> None:
    torch.manual_seed(0)
    layer = LookupFFN(6, 3, 2, 2, bias=False, neighbors=2)
    x, y = torch.randn(50, 6), torch.randn(50, 3)
    codes, scores = layer.hash(x)
    a = torch.zeros(50, 8, dtype=torch.float64)
    for e in range(4):
        column = (e // 2) * 4 + codes[:, e].long()
        a[torch.arange(50), column] += scores[:, e].detach().double()
    damping = float(scores.detach().double().square().mean())
    exact = torch.linalg.solve(a.T @ a + damping * torch.eye(8), a.T @ y.double())
    solve_tables(layer, x, y, (x, y))
    torch.testing.assert_close(
        layer.tables.detach().reshape(8, 3), exact.float(), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("given", "calibration", "message"),
    [
        (ffn(), torch.zeros(0, 16), "not empty"),
        (ffn(), torch.full((5, 16), torch.nan), "NaN or infinity"),
        (ffn(), object(), "not an array"),
        (lambda x: x / 0, torch.randn(9, 16), "not finite"),
        ("ffn", torch.randn(9, 16), "no feed-forward block"),
        (
            (torch.zeros(3, 4), None, "gelu", torch.zeros(4, 2), None),
            torch.randn(9, 4),
            r"\(4, 2\)",
        ),
        ((torch.zeros(3, 4), None, "gello", torch.zeros(2, 3), None), torch.randn(9, 4), "'gello'"),
    ],
)
def test_bad_distillations_are_explained(given: Any, calibration: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        LookupFFN.from_ffn(given, calibration, 4, 4, steps=2)
    assert caught.value.fix


def test_yoso_converges_to_its_expectation() -> None:
    block = ffn(8, 20, 3, bias=False)
    first, last = block[0], block[2]
    assert isinstance(first, torch.nn.Linear)
    assert isinstance(last, torch.nn.Linear)
    x = torch.nn.functional.normalize(torch.randn(30, 8), dim=1)
    weights = torch.nn.functional.normalize(first.weight.detach(), dim=1)
    angles = torch.arccos((x @ weights.t()).clamp(-1, 1)).double()
    values = last.weight.detach().double()
    expected = ((1 - angles / math.pi) ** 5) @ values.t()
    distances = []
    for tables in (40, 4000):
        layer = LookupFFN.yoso(block, tables, 5, seed=7)
        codes = layer.hash(x)[0].long()
        each = torch.stack([layer.tables[k][codes[:, k]] for k in range(tables)]).detach() * tables
        standard_error = each.double().std(0) / tables**0.5
        y = layer(x).detach().double() - last.bias.detach().double()
        assert float(((y - expected).abs() / standard_error).max()) < 4
        distances.append(float((y - expected).norm()))
    assert distances[1] < 0.3 * distances[0]  # 1 / sqrt(100), and its spread


def test_yoso_has_a_fixed_hash_and_no_first_bias() -> None:
    block = ffn(8, 20, 3, bias=False)
    layer = LookupFFN.yoso(block, 9, 4, seed=1, projection="bh2", block_size=4)
    assert layer.variant == "constant"
    assert not any(p.requires_grad for p in layer.projection.parameters())
    assert layer.tables.requires_grad
    assert torch.equal(layer.tables, LookupFFN.yoso(block, 9, 4, 1, "bh2", block_size=4).tables)
    assert not torch.equal(layer.tables, LookupFFN.yoso(block, 9, 4, 2, "bh2", block_size=4).tables)
    # Each table holds every row of W2 once, divided by h.
    last = block[2]
    assert isinstance(last, torch.nn.Linear)
    total = (last.weight.sum(1) / 9).expand(9, 3)
    torch.testing.assert_close(layer.tables.sum(1), total, rtol=1e-4, atol=1e-5)
    with pytest.raises(InputError, match="directions") as caught:
        LookupFFN.yoso(ffn(), 4, 4)
    assert "without bias" in str(caught.value)
    with pytest.raises(InputError, match="no feed-forward block"):
        LookupFFN.yoso(torch.nn.Linear(3, 3), 4, 4)
