"""Compressed weights from torch to the IR, alone and beside exact layers, and compiled."""

from __future__ import annotations

import os

os.environ.setdefault("TVM_BIND_THREADS", "0")

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc.codebook_weights import CodebookWeights, Outliers
from lutcc.frontend import import_torch

_op = torch.ops.lutcc
RNG = np.random.default_rng(0)


class Sine(nn.Module):
    """What the IR has no op for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(x)


def weights(
    m: int,
    k: int,
    bits: int,
    books: int,
    scales: int = 1,
    size: int = 0,
    *,
    reorder: bool = False,
    outliers: bool = False,
) -> CodebookWeights:
    extra = None
    if outliers:
        rows, columns = np.nonzero(RNG.random((m, k)) < 0.05)
        starts = np.concatenate([[0], np.bincount(rows, minlength=m).cumsum()])
        values = RNG.standard_normal(len(rows)).astype(np.float16)
        extra = Outliers(starts.astype(np.int32), columns.astype(np.int32), values)
    return CodebookWeights.of(
        RNG.integers(0, 2**bits, (m, k)),
        RNG.standard_normal((books, 2**bits)),
        bits=bits,
        scales=RNG.uniform(0.5, 1, scales),
        segment_size=size,
        order=RNG.permutation(m) if reorder else None,
        outliers=extra,
    )


class Linear(nn.Module):
    """A layer written out with the operators."""

    def __init__(self, w: CodebookWeights, *, bias: bool, compute: str = "float32") -> None:
        super().__init__()
        self.bits, self.size, self.compute = w.bits, w.segment_size, compute
        for name, array in w.to_arrays().items():
            self.register_buffer(name, torch.from_numpy(array))
        self.bias = nn.Parameter(torch.randn(len(w.indices))) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        order = getattr(self, "order", None)
        parts = (self.indices, self.codebooks, self.scales, order, self.bias)
        y = _op.codebook_matmul(x, *parts, self.bits, self.size, self.compute)
        if not hasattr(self, "outlier_values"):
            return y
        sparse = (self.outlier_starts, self.outlier_columns, self.outlier_values)
        return _op.sparse_add(y, x, *sparse)


class Embedding(nn.Module):
    def __init__(self, w: CodebookWeights) -> None:
        super().__init__()
        self.bits, self.columns, self.size = w.bits, w.columns, w.segment_size
        for name, array in w.to_arrays().items():
            self.register_buffer(name, torch.from_numpy(array))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        parts = (self.indices, self.codebooks, self.scales)
        return _op.codebook_dequantize(rows, *parts, self.bits, self.columns, self.size)


class Net(nn.Sequential):
    def __init__(self, last_bits: int = 3) -> None:
        super().__init__(
            Linear(weights(24, 40, 4, 3, reorder=True, outliers=True), bias=True, compute="int8"),
            nn.ReLU(),
            Linear(weights(10, 24, last_bits, 10, 2), bias=False),
        )


class Words(nn.Module):
    """Row numbers in int64, positions that are known, a layer that only Relax has."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = (Embedding(weights(20, 40, 4, 3)) for _ in range(2))
        self.bent = Sine()
        self.last = Linear(weights(8, 40, 2, 16, 2, 32), bias=True)
        self.register_buffer("known", torch.arange(7))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.last(self.bent(self.words(rows) + self.places(self.known)))


def opcodes(module: Any) -> list[str]:
    return [op.opcode for op in module.main.body if op.opcode != "constant"]


@pytest.mark.parametrize("lead", [(4,), (4, 3)], ids=str)
def test_layers(assert_interpreted: Any, lead: tuple[int, ...]) -> None:
    model = Net()
    imported = assert_interpreted(model, *(torch.randn(n, *lead[1:], 40) for n in (4, 1)))
    chain = [name for name in opcodes(imported.module) if name != "reshape"]
    assert chain == ["codebook_matmul", "sparse_add", "relu", "codebook_matmul"]
    constants = imported.module.constants
    names = ("indices", "codebooks", "scales", "order", "bias", "outlier_starts")
    assert {f"_0.{name}" for name in names} <= set(constants)
    assert constants["_0.codebooks"].dtype == np.float16  # as stored
    total = sum(array.nbytes for array in constants.values())
    assert total < 24 * 40 * 4 / 2  # no weights are kept in float32


def test_what_is_left_out_is_filled_in(assert_interpreted: Any) -> None:
    imported = assert_interpreted(Net()[2], torch.randn(3, 24))
    (product,) = (op for op in imported.module.main.body if op.opcode == "codebook_matmul")
    refs = {op.results[0].name: str(op.attr("ref")) for op in imported.module.main.body[:-1]}
    order, bias = (imported.module.constants[refs[v.name]] for v in product.operands[4:])
    np.testing.assert_array_equal(order, np.arange(10))
    assert order.dtype == np.int32
    assert bias.shape == (10,)
    assert not bias.any()


def test_attributes_are_passed_on(assert_interpreted: Any) -> None:
    layer = Linear(weights(6, 70, 2, 18, 6, 32), bias=True, compute="int8")
    imported = assert_interpreted(layer, torch.randn(3, 70))
    (product,) = (op for op in imported.module.main.body if op.opcode == "codebook_matmul")
    found = {name: product.attr(name) for name in ("bits", "segment_size", "compute")}
    assert found == {"bits": 2, "segment_size": 32, "compute": "int8"}


def test_bfloat16_codebooks_are_kept_in_float32(assert_interpreted: Any) -> None:
    layer = Linear(weights(6, 33, 3, 2), bias=True)
    layer.codebooks = layer.codebooks.bfloat16()
    imported = assert_interpreted(layer, torch.randn(3, 33))
    (product,) = (op for op in imported.module.main.body if op.opcode == "codebook_matmul")
    assert product.operands[2].type.dtype == "float32"


def test_no_outliers_are_no_op(assert_interpreted: Any) -> None:
    layer = Linear(weights(6, 33, 3, 2, outliers=True), bias=True)
    layer.outlier_starts = torch.zeros(7, dtype=torch.int32)
    layer.outlier_columns = torch.zeros(0, dtype=torch.int32)
    layer.outlier_values = torch.zeros(0)
    imported = assert_interpreted(layer, torch.randn(3, 33))
    assert opcodes(imported.module) == ["codebook_matmul"]


def test_embedding_of_int32(assert_interpreted: Any) -> None:
    model = Embedding(weights(20, 40, 4, 3))
    inputs = [torch.randint(0, 20, (n, 5), dtype=torch.int32) for n in (3, 1)]
    imported = assert_interpreted(model, *inputs)
    assert opcodes(imported.module) == ["reshape", "codebook_dequantize", "reshape"]


def test_regions_beside_exact_layers() -> None:
    imported = import_torch(Words().eval(), torch.randint(0, 20, (3, 7)))
    assert imported.kind == "mixed"
    found = [opcodes(region.module) for region in imported.regions]
    # the known places are looked up at once; Relax casts row numbers
    assert found == [["reshape", "codebook_dequantize", "reshape", "affine"], ["codebook_matmul"]]


# compiled


def test_compiled_layers() -> None:
    model = Net(last_bits=4).eval()  # the compiler takes longest for 3
    artifact = lutcc.compile(model, torch.randn(4, 40), target="avx2")
    for rows in (1, 3, 37):
        x = torch.randn(rows, 40)
        with torch.no_grad():
            want = model(x)
        np.testing.assert_allclose(artifact(x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.thorough
def test_compiled_words() -> None:
    model = Words().eval()
    artifact = lutcc.compile(model, torch.randint(0, 20, (3, 7)), target="avx2")
    for rows in (1, 4):
        x = torch.randint(0, 20, (rows, 7))
        with torch.no_grad():
            want = model(x)
        np.testing.assert_allclose(artifact(x), want, rtol=1e-4, atol=1e-4)
