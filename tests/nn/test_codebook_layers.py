"""Codebook layers: what they compute, what their state holds, casts, ties, export, refusals."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lutcc.codebook_weights import CodebookWeights, Outliers
from lutcc.errors import InputError
from lutcc.ir.arithmetic import quantize_rows
from lutcc.ir.codebooks import columns_of, entry_tables, integer_tables
from lutcc.nn import CodebookConv2d, CodebookEmbedding, CodebookLinear

nn, F = torch.nn, torch.nn.functional


def matrix(
    rows: int,
    columns: int,
    bits: int = 3,
    codebooks: int = 1,
    scales: int = 1,
    segment_size: int = 0,
    order: bool = True,
    outliers: int = 0,
) -> CodebookWeights:
    """Return a random matrix of some form."""
    rng = np.random.default_rng(rows * columns + bits)
    beside = None
    if outliers:
        at = np.sort(rng.choice(rows * columns, outliers, replace=False))
        beside = Outliers(
            np.searchsorted(at, columns * np.arange(rows + 1)).astype(np.int32),
            (at % columns).astype(np.int32),
            rng.normal(size=outliers).astype(np.float16),
        )
    return CodebookWeights.of(
        rng.integers(0, 2**bits, (rows, columns)),
        rng.normal(size=(codebooks, 2**bits)),
        bits=bits,
        scales=rng.uniform(0.5, 2, scales) if scales > 1 else (1.0,),
        segment_size=segment_size,
        order=rng.permutation(rows) if order else None,
        outliers=beside,
    )


FORMS: dict[str, dict[str, Any]] = {
    "one codebook": {"bits": 4, "order": False},
    "codebooks of rows": {"bits": 2, "codebooks": 5},
    "scales": {"bits": 3, "scales": 7},
    "segments": {"bits": 3, "codebooks": 36, "segment_size": 32},
    "outliers": {"bits": 2, "codebooks": 3, "outliers": 9},
}


@pytest.fixture(params=FORMS)
def weights(request: pytest.FixtureRequest) -> CodebookWeights:
    return matrix(12, 70, **FORMS[request.param])


def test_linear_in_every_form(weights: CodebookWeights) -> None:
    torch.manual_seed(0)
    bias, x = torch.randn(12), torch.randn(2, 5, 70)
    exact = x.double().numpy() @ weights.dequantize().T + bias.numpy()
    layer = CodebookLinear.from_weights(weights, bias, compute="float32")
    np.testing.assert_allclose(layer(x).detach(), exact, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(layer.weight.detach(), weights.dequantize())
    np.testing.assert_allclose(layer.train()(x).detach(), exact, rtol=1e-4, atol=1e-4)
    assert layer.footprint() == weights.footprint()
    assert layer.eval()(x[0, 0]).shape == (12,)
    assert layer(x[:, :0]).shape == (2, 0, 12)


def test_eval_computes_with_integers_and_training_does_not() -> None:
    torch.manual_seed(0)
    weights = matrix(12, 70, codebooks=4)
    layer, x = CodebookLinear.from_weights(weights), torch.randn(5, 70)
    tables = entry_tables(weights.codebooks, weights.scales, 12, 70, 0)
    integers, units = integer_tables(tables)
    q, unit = quantize_rows(x.numpy())
    sums = q.astype(np.int64) @ columns_of(integers, weights.unpacked(), 0).astype(np.int64).T
    expected = np.empty((5, 12), np.float32)
    expected[:, weights.order] = sums.astype(np.float32) * (unit[:, None] * units)
    np.testing.assert_array_equal(layer(x).detach(), expected)
    dense = x @ torch.from_numpy(weights.dequantize()).t()
    torch.testing.assert_close(layer.train()(x), dense, rtol=1e-4, atol=1e-4)


def test_training_moves_codebooks_scales_and_bias() -> None:
    torch.manual_seed(0)
    layer = CodebookLinear.from_weights(matrix(12, 70, scales=7, outliers=4), np.zeros(12)).train()
    x, dy = torch.randn(6, 70, requires_grad=True), torch.randn(6, 12)
    (layer(x) * dy).sum().backward()
    trained = [x, *layer.parameters()]
    again = torch.autograd.grad((F.linear(x, layer.weight, layer.bias) * dy).sum(), trained)
    assert len(trained) == 4
    for tensor, wanted in zip(trained, again, strict=True):
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad, wanted, rtol=1e-4, atol=1e-4)
    assert not CodebookLinear(8, 4, bits=2).scales.requires_grad


def test_what_is_saved_in_eval_mode_is_what_counts_and_what_computes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        CodebookLinear.from_weights(matrix(12, 70, codebooks=5, outliers=6), np.ones(12)),
        CodebookLinear.from_weights(matrix(7, 12, scales=7)),
    ).train()
    x = torch.randn(5, 70)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(x).square().sum().backward()
    optimizer.step()
    training = {name: value.clone() for name, value in model.state_dict().items()}
    assert training["0.codebooks"].dtype is torch.float32
    expected = model.eval()(x)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    state = load_file(tmp_path / "m.safetensors")
    parts = [sum(8 * t.nbytes for name, t in state.items() if name.startswith(i)) for i in "01"]
    first, second = model[0].footprint(), model[1].footprint()  # pyright: ignore[reportCallIssue]
    # beside the footprint: the bias and a scale that is 1
    assert parts == [first.bits + 32 * 12 + 16, second.bits]
    for assign in (False, True):
        fresh = nn.Sequential(
            CodebookLinear(70, 12, **model[0].form),  # pyright: ignore[reportArgumentType,reportCallIssue]
            CodebookLinear(12, 7, False, **model[1].form),  # pyright: ignore[reportArgumentType,reportCallIssue]
        )
        fresh.load_state_dict(state, assign=assign)
        assert fresh[0].codebooks.dtype is torch.float32
        assert torch.equal(fresh.eval()(x), expected)
    resumed = copy.deepcopy(model).train()
    resumed.load_state_dict(training)
    assert torch.equal(resumed[0].codebooks, training["0.codebooks"])  # pyright: ignore[reportArgumentType]
    assert torch.equal(resumed.eval()(x), expected)
    with torch.no_grad():
        model[0].codebooks.mul_(2)  # pyright: ignore[reportCallIssue]
    assert not torch.equal(model(x), expected)


def test_casts_leave_what_is_stored_alone() -> None:
    torch.manual_seed(0)
    layer = CodebookLinear.from_weights(matrix(12, 70, codebooks=5, outliers=6), np.ones(12))
    x, half = torch.randn(5, 70), copy.deepcopy(layer).to(torch.bfloat16)
    assert half.bias is not None
    assert half.bias.dtype is torch.bfloat16
    assert torch.equal(half.codebooks, layer.codebooks)
    assert half.outlier_values is not None
    assert half.outlier_values.dtype is torch.float16
    y = half(x.bfloat16())
    assert y.dtype is torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x), rtol=0.05, atol=0.2)
    double = layer(x.double())
    assert double.dtype is torch.float64
    torch.testing.assert_close(double.float(), layer(x), rtol=1e-5, atol=1e-5)
    assert layer.to("meta").indices.is_meta


CONVOLUTIONS: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1, "stride": 2},
    {"kernel_size": (1, 4), "padding": "same", "dilation": (1, 1)},
    {"kernel_size": 3, "padding": (2, 1), "padding_mode": "reflect", "dilation": (1, 2)},
    {"kernel_size": 3, "padding": "same", "padding_mode": "circular", "groups": 2},
]


@pytest.mark.filterwarnings("ignore:Using padding")  # torch copies what it pads unevenly
@pytest.mark.parametrize("options", CONVOLUTIONS, ids=str)
def test_convolutions(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **options)
    weights = matrix(6, conv.weight[0].numel(), scales=3, outliers=0 if "groups" in options else 5)
    with torch.no_grad():
        conv.weight.copy_(torch.from_numpy(weights.dequantize()).reshape(conv.weight.shape))
    layer = CodebookConv2d.from_weights(
        weights, conv.bias, in_channels=4, compute="float32", **options
    )
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer(x), conv(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer(x[0]), conv(x[0]), rtol=1e-4, atol=1e-4)
    layer.train()(x).sum().backward()
    assert layer.codebooks.grad is not None
    assert layer.codebooks.grad.abs().sum() > 0
    torch.testing.assert_close(layer.weight, conv.weight)
    layer.compute = "int8"
    torch.testing.assert_close(layer.eval()(x), conv(x), rtol=0.1, atol=0.3)


def test_embedding() -> None:
    weights = matrix(30, 16, codebooks=3)
    layer = CodebookEmbedding.from_weights(weights, padding_idx=2)
    ids = torch.tensor([[0, 2, 29], [5, 5, 1]])
    dense = torch.from_numpy(weights.dequantize())
    assert torch.equal(layer(ids), dense[ids])
    assert torch.equal(layer.train()(ids.int()), dense[ids])
    layer(torch.full((3,), 2)).sum().backward()
    assert layer.codebooks.grad is not None
    assert not layer.codebooks.grad.any()
    layer(ids).sum().backward()
    assert layer.codebooks.grad.any()
    blank = CodebookEmbedding.from_weights(weights, padding_idx=-1, zero_padding=True)
    assert not blank(torch.tensor([29])).any()
    assert blank.half()(ids).dtype is torch.float16


def test_tied_layers_hold_one_matrix(tmp_path: Path) -> None:
    torch.manual_seed(0)
    embedding = CodebookEmbedding.from_weights(matrix(30, 16, codebooks=3))
    head = CodebookLinear(16, 30, bits=2, compute="float32")
    head.tie(embedding)
    model = copy.deepcopy(nn.ModuleDict({"e": embedding, "h": head})).eval()
    x = torch.randn(4, 16)
    expected = F.linear(x, embedding.weight, head.bias)
    torch.testing.assert_close(model["h"](x), expected, rtol=1e-4, atol=1e-4)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    assert [name for name in load_file(tmp_path / "m.safetensors") if name[0] == "h"] == ["h.bias"]
    model.train()["h"](x).sum().backward()
    assert model["e"].codebooks.grad is not None
    with pytest.raises(InputError, match="16 x 30 cannot be shared"):
        CodebookLinear(30, 16, bits=2).tie(embedding)


def test_export_compile_and_print() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        CodebookConv2d.from_weights(
            matrix(6, 36, scales=6), np.ones(6), in_channels=4, kernel_size=3
        ),
        nn.Flatten(),
        CodebookLinear.from_weights(matrix(12, 96, codebooks=4, outliers=5), np.ones(12)),
    ).eval()
    x = torch.randn(2, 4, 6, 6)
    with torch.no_grad():
        expected = model(x)
        free = {"input": {0: torch.export.Dim("n", min=2)}}
        exported = torch.export.export(model, (x,), dynamic_shapes=free)
        assert torch.equal(exported.module()(x), expected)
        assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), expected)
    text = str(model)
    assert "num_scales=6, reordered=True, compute='int8', alpha=" in text
    assert "num_outliers=5" in text
    embedding = CodebookEmbedding.from_weights(matrix(30, 16), padding_idx=0).eval()
    exported = torch.export.export(embedding, (torch.tensor([3, 4]),))
    assert torch.equal(exported.module()(torch.tensor([1, 0])), embedding(torch.tensor([1, 0])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CodebookLinear(8, 4, bits=5), "bits=5"),
        (lambda: CodebookLinear(8, 4, bits=2, num_scales=5), "num_scales=5 is neither at most"),
        (lambda: CodebookLinear(64, 4, bits=2, num_codebooks=8, segment_size=16), "multiple of 32"),
        (lambda: CodebookLinear(8, 4, bits=2, compute="int4"), "'int4'"),
        (lambda: CodebookLinear(8, 4, bits=2)(torch.zeros(3, 7)), "dimension -1 must be 8"),
        (lambda: CodebookLinear(8, 4, bits=2)(torch.tensor(1.0)), "must be 8"),
        (lambda: CodebookLinear(8, 4, bits=2)(torch.zeros(3, 8).long()), "int64"),
        (lambda: CodebookConv2d(4, 6, 3, groups=3, bits=2), "groups=3"),
        (lambda: CodebookConv2d(4, 6, 3, padding="full", bits=2), "'full'"),
        (lambda: CodebookConv2d(4, 6, 3, bits=2)(torch.zeros(4, 4)), r"shape \(4, 4\)"),
        (lambda: CodebookConv2d(4, 6, 3, bits=2)(torch.zeros(1, 4, 2, 2)), "smaller than the"),
        (lambda: CodebookEmbedding(8, 4, 8, bits=2), "padding_idx=8"),
        (lambda: CodebookEmbedding(8, 4, bits=2)(torch.zeros(2)), "rows are numbered"),
        (lambda: CodebookEmbedding.from_weights(matrix(12, 70, outliers=2)), "no outliers"),
    ],
)
def test_wrong_use_is_explained(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        make()
    assert caught.value.fix
