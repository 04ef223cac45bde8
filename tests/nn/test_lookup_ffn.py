"""LookupFFN against plain torch, in every type of table, through state_dict and torch.export."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch

from lutcc.errors import InputError, LutccError
from lutcc.nn import LookupFFN, memory

TYPES = ["float32", "bfloat16", "int8"]


def small(**options: Any) -> LookupFFN:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"d_in": 12, "d_out": 9, "num_tables": 5, "code_length": 3}
    return LookupFFN(**{**arguments, "block_size": 4, **options})


def plain(layer: LookupFFN, x: torch.Tensor, tables: torch.Tensor | None = None) -> torch.Tensor:
    """Equation 7 with section 4's scaling, one table and one neighbour at a time, in float64."""
    tables = (layer.tables if tables is None else tables).detach().double()
    y = x.new_zeros(*x.shape[:-1], layer.d_out).double()
    for k, z in enumerate(layer.projection(x).double().split(layer.code_length, -1)):
        flips: list[torch.Tensor | None] = [
            None,
            *torch.argsort(z.abs(), dim=-1, stable=True).unbind(-1),
        ]
        for flip in flips[: layer.neighbors]:
            signs = torch.where(z > 0, 1.0, -1.0).double()
            if flip is not None:
                signs = signs.scatter(-1, flip[..., None], -signs.gather(-1, flip[..., None]))
            inner = (z * signs).sum(-1)
            score = torch.exp(inner) / (torch.exp(z) + torch.exp(-z)).prod(-1)
            score = score * {"gelu": inner, "softmax": 1.0}.get(layer.variant, 1.0)
            if layer.variant == "constant":
                score = torch.ones_like(score)
            code = ((signs > 0).long() << torch.arange(layer.code_length)).sum(-1)
            y = y + score[..., None] * tables[k][code]
    return y if layer.bias is None else y + layer.bias.detach().double()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "softmax"},
        {"variant": "constant"},
        {"neighbors": 4},
        {"variant": "softmax", "neighbors": 2},
        {"projection": "dense", "bias": False},
        {"projection": "acdc2", "num_tables": 1, "code_length": 7},
        {"projection": "shuffle", "code_length": 1},
        {"d_in": 13, "d_out": 1, "num_tables": 7},
    ],
    ids=str,
)
def test_layer_is_the_papers_equation(options: dict[str, Any]) -> None:
    layer = small(**options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 17, layer.d_in)
    torch.testing.assert_close(layer(x), plain(layer, x).float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(12,), (1, 12), (7, 12), (2, 3, 12), (2, 1, 3, 12), (0, 12)])
@pytest.mark.parametrize("table_dtype", TYPES)
def test_any_leading_dimensions(shape: tuple[int, ...], table_dtype: str) -> None:
    layer = small(table_dtype=table_dtype).eval()
    x = torch.randn(shape)
    y = layer(x)
    assert y.shape == (*shape[:-1], 9)
    assert y.dtype == torch.float32
    rows = layer(x.reshape(-1, 12)).reshape(y.shape)
    torch.testing.assert_close(y, rows, rtol=0, atol=0)


def test_every_parameter_and_the_input_get_gradients() -> None:
    layer = small(neighbors=2)
    x = torch.randn(200, 12, requires_grad=True)
    layer(x).square().sum().backward()
    for tensor in (x, *layer.parameters()):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().sum()) > 0
    constant = small(variant="constant")
    constant(x).square().sum().backward()
    assert constant.tables.grad is not None
    assert not any(p.grad is not None and p.grad.any() for p in constant.projection.parameters())


def test_gradients_are_those_of_plain_torch() -> None:
    layer = small(projection="dense")
    x = torch.randn(40, 12)
    weight = layer.projection.get_parameter("weight")
    target = torch.randn(40, 9)
    (layer(x) * target).sum().backward()
    z = (x @ weight.t()).detach().requires_grad_()
    signs = torch.where(z > 0, 1.0, -1.0)
    parts = (z * signs).reshape(40, 5, 3)
    scores = parts.sum(-1) * torch.sigmoid(2 * parts).prod(-1)
    codes = ((z.reshape(40, 5, 3) > 0).long() << torch.arange(3)).sum(-1)
    tables = layer.tables.detach().clone().requires_grad_()
    rows = torch.stack([tables[k][codes[:, k]] for k in range(5)], 1)
    ((rows * scores[..., None]).sum(1) * target).sum().backward()
    assert z.grad is not None
    torch.testing.assert_close(layer.tables.grad, tables.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weight.grad, z.grad.t() @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("table_dtype", TYPES[1:])
def test_eval_reads_rounded_tables(table_dtype: str) -> None:
    layer = small(table_dtype=table_dtype, num_tables=9)
    x = torch.randn(300, 12)
    floats = layer(x)
    torch.testing.assert_close(floats, plain(layer, x).float(), rtol=1e-4, atol=1e-5)
    layer.eval()
    if table_dtype == "bfloat16":
        tables, tolerance = layer.tables.detach().bfloat16().float(), 1e-5
    else:
        scale = layer.tables.detach().abs().amax((0, 1)) / 127
        tables, tolerance = (layer.tables.detach() / scale).round() * scale, 0.02
    exact = plain(layer, x, tables).float()
    torch.testing.assert_close(
        layer(x), exact, rtol=0, atol=tolerance * float(floats.detach().std())
    )
    assert not torch.equal(layer(x), floats)
    assert float(((layer(x) - floats).norm() / floats.norm()).detach()) < 0.02
    assert layer.table_bytes == 9 * 8 * 9 * (2 if table_dtype == "bfloat16" else 1)
    torch.testing.assert_close(layer.train()(x), floats, rtol=0, atol=0)


def test_int8_tables_of_zeros_and_score_dtype() -> None:
    layer = small(table_dtype="int8")
    with torch.no_grad():
        layer.tables[..., 2] = 0
    y = layer.eval()(torch.randn(5, 12))
    assert torch.equal(y[:, 2], torch.zeros(5))
    coarse = small(table_dtype="bfloat16", score_dtype="bfloat16").eval()
    fine = small(table_dtype="bfloat16").eval()
    x = torch.randn(50, 12)
    assert not torch.equal(coarse(x), fine(x))
    torch.testing.assert_close(coarse(x), fine(x), rtol=0, atol=0.01)


def changed_by_optimizer(layer: LookupFFN) -> None:
    torch.optim.SGD(layer.parameters(), lr=0.1).step(lambda: layer(torch.randn(9, 12)).sum())


CHANGES: dict[str, Any] = {
    "in place": lambda layer: layer.tables.data.mul_(-1),
    "replaced": lambda layer: setattr(layer, "tables", torch.nn.Parameter(-layer.tables.detach())),
    "loaded": lambda layer: layer.load_state_dict(
        {**layer.state_dict(), "tables": -layer.tables.detach()}
    ),
    "assigned": lambda layer: layer.load_state_dict(
        {**layer.state_dict(), "tables": -layer.tables.detach()}, assign=True
    ),
    "no_grad": lambda layer: torch.no_grad()(layer.tables.neg_)(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("table_dtype", TYPES)
def test_rounded_tables_follow_the_parameters(change: str, table_dtype: str) -> None:
    layer = small(table_dtype=table_dtype).eval()
    x = torch.randn(30, 12)
    before = layer(x)
    CHANGES[change](layer)
    if change == "in place" and table_dtype != "float32":  # .data hides the edit from torch
        layer.eval()
    torch.testing.assert_close(layer(x), -before, rtol=1e-6, atol=1e-6)


def test_state_dict_holds_floats_only_and_loads_both_ways() -> None:
    rounded, floats = small(table_dtype="int8", projection_dtype="bfloat16").eval(), small()
    assert rounded.state_dict().keys() == floats.state_dict().keys()
    assert {v.dtype for v in rounded.state_dict().values()} == {torch.float32}
    with torch.no_grad():
        floats.tables.mul_(3)
    rounded.load_state_dict(floats.state_dict())
    x = torch.randn(6, 12)
    assert float((rounded(x) - floats(x)).detach().abs().max()) < 0.2
    buffer = io.BytesIO()
    torch.save(rounded.state_dict(), buffer)
    buffer.seek(0)
    fresh = small(table_dtype="int8", projection_dtype="bfloat16", bias=True)
    fresh.load_state_dict(torch.load(buffer, weights_only=True))
    torch.testing.assert_close(fresh.eval()(x), rounded(x), rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(rounded)(x), rounded(x), rtol=0, atol=0)
    floats.load_state_dict(rounded.state_dict())


def test_casting_the_model_does_not_cast_the_copies() -> None:
    layer = small(table_dtype="int8", projection_dtype="bfloat16").eval()
    x = torch.randn(20, 12)
    before = layer(x)
    torch.testing.assert_close(layer.double().float()(x), before, rtol=0, atol=0)
    assert layer.get_buffer("tables_int8").dtype is torch.int8
    assert layer.projection.get_buffer("block0_bfloat16").dtype is torch.bfloat16
    assert all(b is None for b in layer.train()._buffers.values())


@pytest.mark.parametrize("table_dtype", TYPES)
@pytest.mark.parametrize("training", [False, True])
def test_half_precision_autocast_and_torch_compile(table_dtype: str, training: bool) -> None:
    layer, x = small(table_dtype=table_dtype).train(training), torch.randn(40, 12)
    expected = layer(x)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    half = layer.to(torch.bfloat16)(x.bfloat16())
    assert half.dtype is torch.bfloat16
    for other in (y, half):
        assert float(((other - expected).norm() / expected.norm()).detach()) < 0.3


@pytest.mark.parametrize("inference", [False, True])
def test_rounding_in_inference_mode_leaves_usable_tensors(inference: bool) -> None:
    layer = small(table_dtype="bfloat16")
    with torch.inference_mode(inference):
        layer.eval()(torch.randn(3, 12))
    x = torch.randn(3, 12, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("table_dtype", TYPES)
@pytest.mark.parametrize("projection_dtype", ["float32", "bfloat16"])
def test_exported_model_computes_the_same_from_constants(
    table_dtype: str, projection_dtype: str
) -> None:
    layer = small(table_dtype=table_dtype, projection_dtype=projection_dtype).eval()
    x = torch.randn(6, 12)
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},))
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert sum(t.startswith("lutcc.weighted_gather") for t in targets) == 1
    assert not any("round" in t or "_to_copy" in t or "amax" in t for t in targets)
    wide = torch.randn(31, 12)
    torch.testing.assert_close(program.module()(wide), layer(wide), rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    torch.testing.assert_close(
        torch.export.load(buffer).module()(wide), layer(wide), rtol=0, atol=0
    )


def test_flops_and_memory_are_the_papers() -> None:
    for d, h, tau, size, mflop in (
        (512, 128, 8, 64, 0.69),
        (512, 256, 8, 64, 1.38),
        (512, 64, 8, 64, 0.35),
        (512, 32, 8, 64, 0.31),
        (768, 170, 9, 64, 1.39),
        (512, 256, 4, 64, 0.82),
    ):
        layer = LookupFFN(d, d, h, tau, block_size=size, device="meta")
        assert round(layer.flops / 1e6, 2) == mflop
    layer = LookupFFN(512, 512, 128, 8, table_dtype="int8", device="meta")
    assert layer.table_bytes == layer.memory.tables == 128 * 256 * 512
    assert layer.memory.read_per_row == 128 * 512
    assert layer.memory.projection == 4 * layer.projection.parameter_count
    assert layer.memory.training == 16 * sum(p.numel() for p in layer.parameters())
    assert "16,777,216 bytes of tables" in repr(layer)
    assert LookupFFN(8, 8, 2, 2, neighbors=3).flops == LookupFFN(8, 8, 2, 2).flops + 2 * 2 * 2 * 8


def test_tables_too_large_for_memory_are_refused_before_they_are_made(monkeypatch: Any) -> None:
    with pytest.raises(LutccError, match=r"512.0 GiB.*GiB left") as caught:
        LookupFFN(512, 2**14, 128, 16)
    assert "code_length <= " in str(caught.value)
    monkeypatch.setattr(memory, "available_memory", lambda device: 8 * 12 * 16)
    LookupFFN(12, 12, 2, 4)
    with pytest.raises(InputError, match=r"cpu has 0.0 MiB left") as caught:
        LookupFFN(12, 12, 3, 4)
    assert "code_length <= 3" in str(caught.value)


def test_a_control_group_limits_the_memory(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    free = memory.available_memory(torch.device("cpu"))
    assert free > 2**20
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("0\n")
    assert memory.available_memory(torch.device("cpu")) > 2**20
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert memory.available_memory(torch.device("cpu")) == 2000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code_length": 17}, "1..16"),
        ({"code_length": 0}, "1..16"),
        ({"d_in": 0}, "d_in=0"),
        ({"d_out": 1.5}, "d_out=1.5"),
        ({"neighbors": 5}, "1..4"),
        ({"projection": "bh99"}, "use 'bh8'"),
        ({"table_dtype": "float16"}, "'float32', 'bfloat16', 'int8'"),
    ],
)
def test_bad_options_are_explained(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        small(**options)
    assert caught.value.fix


def test_bad_inputs_are_explained() -> None:
    with pytest.raises(InputError, match=r"\(3, 11\), but its last dimension must be 12"):
        small()(torch.zeros(3, 11))
    with pytest.raises(InputError, match="not a float type"):
        small()(torch.zeros(3, 12, dtype=torch.long))
    with pytest.raises(InputError, match="must be 12"):
        small()(torch.tensor(1.0))
