"""LookupFFN's operators from torch to the IR, alone and inside a transformer.

A sign is not continuous: where some |z| is within a rounding error of 0, two correct
implementations may take different table rows. The inputs here are chosen so that no |z| is.
"""

from __future__ import annotations

import os

os.environ.setdefault("TVM_BIND_THREADS", "0")

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc import ir
from lutcc.frontend import import_torch

_op = torch.ops.lutcc


class Lookup(nn.Module):
    """A LookupFFN written out with the operators: BH2, hash, gather, scale, bias."""

    def __init__(
        self,
        width: int = 12,
        tables: int = 6,
        length: int = 4,
        table_dtype: str = "float32",
        block_dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        super().__init__()
        import lutcc.ops  # noqa: F401  registers the operators

        self.length, self.table_dtype, self.options = length, table_dtype, options
        self.columns = tables * length
        wide = 1 << (self.columns - 1).bit_length()
        self.first = nn.Parameter(torch.randn(4, 4, wide // 4) / 2)
        self.second = nn.Parameter(torch.randn(wide // 8, 8, 8) / 8**0.5)
        self.block_dtype = block_dtype
        self.tables = nn.Parameter(torch.randn(tables, 2**length, width) / tables)
        self.bias = nn.Parameter(torch.randn(width))

    def project(self, x: torch.Tensor) -> torch.Tensor:
        x = _op.hadamard(x, 0.25)
        x = _op.block_diagonal_matmul(x, self.first.to(self.block_dtype))
        x = _op.hadamard(x, x.shape[-1] ** -0.5)
        return _op.block_diagonal_matmul(x, self.second.to(self.block_dtype), self.columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        codes, scores = _op.sign_hash(self.project(x), self.length, **self.options)
        if self.table_dtype == "int8":
            scale = self.tables.abs().amax((0, 1)) / 127
            tables = (self.tables / scale).round().to(torch.int8)
            y = _op.weighted_gather(codes, scores, tables) * scale
        else:
            tables = self.tables.to(getattr(torch, self.table_dtype))
            y = _op.weighted_gather(codes, scores, tables)
        return y + self.bias


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Block(nn.Module):
    """A transformer's layer with look-ups for its feed-forward block."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ffn = Lookup(width)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm1(x + self.attention(x, x, x, need_weights=False)[0])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return self.norm2(x + self.ffn(x))


def certain(
    shape: tuple[int, ...],
    margin: Callable[[torch.Tensor], torch.Tensor],
    least: float = 2e-4,
) -> torch.Tensor:
    """Return an input of random entries whose soft bits (``margin``) are all away from 0."""
    kept: list[torch.Tensor] = []
    for seed in range(200):
        x = torch.randn(1, *shape[1:], generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            if float(margin(x).abs().min()) > least:
                kept.append(x)
        if len(kept) == shape[0]:
            return torch.cat(kept)
    raise AssertionError("no such input")


def opcodes(imported: Any) -> list[str]:
    return [op.opcode for op in imported.module.main.body if op.opcode != "constant"]


PROJECTION = ["hadamard", "block_diagonal_matmul"] * 2


@pytest.mark.one_in(4)
@pytest.mark.parametrize("lead", [(7,), (2, 5)], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"variant": "softmax", "neighbors": 3},
        {"variant": "gelu", "neighbors": 5},
        {"variant": "constant"},
    ],
    ids=str,
)
def test_lookup_layer(
    assert_interpreted: Any, options: dict[str, Any], lead: tuple[int, ...]
) -> None:
    model = Lookup(**options)
    inputs = [certain((n, *lead[1:], 12), model.project) for n in (lead[0], 1)]
    imported = assert_interpreted(model, *inputs)
    moved = [op for op in opcodes(imported) if op != "reshape"]
    assert moved == [*PROJECTION, "sign_hash", "weighted_gather", "affine"]
    assert opcodes(imported).count("reshape") == (0 if len(lead) == 1 else 2)
    (gather,) = (op for op in imported.module.main.body if op.opcode == "weighted_gather")
    assert gather.operands[2].type.shape == (6, 16, 12)
    assert "tables" in imported.module.constants


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_rounded_tables_are_evaluated_at_import(assert_interpreted: Any, kind: str) -> None:
    model = Lookup(table_dtype=kind, block_dtype=torch.bfloat16)
    imported = assert_interpreted(model, certain((9, 12), model.project, least=1e-3))
    dtypes = sorted(str(a.dtype) for a in imported.module.constants.values() if a.ndim == 3)
    assert dtypes == sorted(["bfloat16", "bfloat16", kind])
    affines = 1 if kind == "bfloat16" else 2  # scale per column, bias
    assert opcodes(imported).count("affine") == affines


def test_score_dtype_is_kept() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("tables", torch.randn(3, 4, 5).bfloat16())

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            codes, scores = _op.sign_hash(z, 2)
            return _op.weighted_gather(codes, scores, self.tables, "bfloat16")

    imported = import_torch(Rounded().eval(), torch.randn(4, 6))
    assert imported.module is not None
    (gather,) = (op for op in imported.module.main.body if op.opcode == "weighted_gather")
    assert dict(gather.attrs)["score_dtype"] == "bfloat16"
    assert (
        ir.parse(ir.to_text(imported.module), constants=imported.module.constants).main
        == imported.module.main
    )


def test_codes_and_scores_as_results(assert_interpreted: Any) -> None:
    class Hash(nn.Module):
        def forward(self, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return _op.sign_hash(z, 4, "softmax", 2)

    imported = assert_interpreted(Hash(), torch.randn(5, 2, 12), torch.randn(1, 2, 12))
    assert [(p.dtype, p.shape[1:]) for p in imported.outputs] == [
        ("int32", (2, 6)),
        ("float32", (2, 6)),
    ]


def test_residual_is_part_of_the_module(assert_interpreted: Any) -> None:
    model = Residual(Lookup())
    imported = assert_interpreted(model, certain((6, 12), model.inner.project))  # type: ignore[operator]
    assert opcodes(imported)[-2:] == ["affine", "add"]


def test_blocks_and_tables_computed_from_the_input_go_through_nothing() -> None:
    """Only constants are compiled in; the message names the place."""

    class Learned(nn.Module):
        def forward(self, x: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
            codes, scores = _op.sign_hash(x, 2)
            return _op.weighted_gather(codes, scores, tables)

    inputs = (torch.randn(4, 6), torch.randn(3, 4, 5))
    imported = import_torch(Learned().eval(), inputs, dynamic_batch=False)
    assert imported.kind == "mixed"
    assert any("not a constant" in note for note in imported.notes)


def test_one_region_per_layer_of_a_transformer() -> None:
    model = nn.Sequential(Block(), Block()).eval()
    imported = import_torch(model, torch.randn(2, 5, 12))
    assert imported.kind == "mixed"
    lookups = [
        [op.opcode for op in region.module.main.body if op.opcode != "constant"]
        for region in imported.regions
        if any(op.opcode == "weighted_gather" for op in region.module.main.body)
    ]
    # the residual is added in the same pass over memory; norms beside it have stages of their own
    chain = [*PROJECTION, "sign_hash", "weighted_gather", "affine", "add"]
    assert lookups == [["layer_norm", *chain, "layer_norm"]] * 2


# compiled


@pytest.mark.one_in(3)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_compiled_layer(kind: str) -> None:
    model = Residual(Lookup(table_dtype=kind)).eval()
    example = torch.randn(4, 12)
    artifact = lutcc.compile(model, example)
    for rows in (1, 3, 37):
        x = certain((rows, 12), model.inner.project)  # type: ignore[operator]
        with torch.no_grad():
            want = model(x)
        np.testing.assert_allclose(artifact(x), want, rtol=1e-4, atol=2e-5)


@pytest.mark.thorough
def test_compiled_transformer(run_relax: Any) -> None:
    model = Block().eval()
    inputs = [
        (certain((n, 5, 12), lambda x: model.ffn.project(model.before(x))),) for n in (2, 1, 6)
    ]
    imported = import_torch(model, inputs[0])
    for (result,), (x,) in zip(run_relax(imported, inputs), inputs, strict=True):
        with torch.no_grad():
            np.testing.assert_allclose(result, model(x).numpy(), rtol=1e-4, atol=2e-5)
