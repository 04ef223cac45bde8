"""What is refused, and where the operators run: kernels, GPU, without TVM."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from lutcc import ops
from lutcc.errors import DependencyError, InputError
from lutcc.ops import kernels

_op = torch.ops.lutcc


@pytest.fixture(autouse=True)
def _mode() -> Iterator[None]:
    before = ops.get_compilation()
    ops.set_compilation("never")
    yield
    ops.set_compilation(before)


X = torch.zeros(2, 12)
BLOCKS = torch.zeros(3, 4, 5)
CODES = torch.zeros(2, 6, dtype=torch.int32)
SCORES = torch.zeros(2, 6)
TABLES = torch.zeros(3, 8, 5)

BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "integers": (lambda: _op.hadamard(X.int()), r"x must be torch.float32 or"),
    "no columns": (lambda: _op.hadamard(X[:, :0]), r"last dimension of at least 1.*\(2, 0\)"),
    "number": (lambda: _op.hadamard(torch.tensor(1.0)), r"last dimension.*\(\)"),
    "block dtype": (
        lambda: _op.block_diagonal_matmul(X, BLOCKS.double()),
        r"x is torch.float32, but blocks are torch.float64",
    ),
    "bfloat16 x": (
        lambda: _op.block_diagonal_matmul(X.bfloat16(), BLOCKS),
        r"x is torch.bfloat16, but blocks are torch.float32",
    ),
    "block rank": (
        lambda: _op.block_diagonal_matmul(X, BLOCKS[0]),
        r"blocks must be \(groups.*got \(4, 5\)",
    ),
    "no blocks": (lambda: _op.block_diagonal_matmul(X, BLOCKS[:0]), r"none of them 0"),
    "block rows": (
        lambda: _op.block_diagonal_matmul(X[:, 1:], BLOCKS),
        r"x \(2, 11\) needs G \* P = 3 \* 4 = 12 columns",
    ),
    "columns": (
        lambda: _op.block_diagonal_matmul(X, BLOCKS, 16),
        r"columns=16.*1..G \* Q = 3 \* 5",
    ),
    "columns 0": (lambda: _op.block_diagonal_matmul(X, BLOCKS, 0), r"columns=0 is not in"),
    "weight grad": (
        lambda: _op.block_diagonal_matmul_weight_grad(X, X, 3, 5),
        r"do not belong to 3 groups of 5",
    ),
    "code length": (lambda: _op.sign_hash(X, 17), r"code_length=17 is not in 1..16"),
    "code length 0": (lambda: _op.sign_hash(X, 0), r"code_length=0 is not in 1..16"),
    "no multiple": (lambda: _op.sign_hash(X, 5), r"\(2, 12\).*multiple of code_length=5"),
    "variant": (lambda: _op.sign_hash(X, 4, "relu"), r"variant='relu' is unknown"),
    "neighbors": (lambda: _op.sign_hash(X, 4, "gelu", 6), r"neighbors=6 is not in 1.*= 5"),
    "neighbors 0": (lambda: _op.sign_hash(X, 4, "gelu", 0), r"neighbors=0"),
    "constant": (lambda: _op.sign_hash(X, 4, "constant", 2), r"one code per table.*neighbors=2"),
    "hash grad": (
        lambda: _op.sign_hash_backward(X, X, 4, "gelu", 1),
        r"shape \(2, 3\), got .*\(2, 12\)",
    ),
    "code dtype": (lambda: _op.weighted_gather(CODES.long(), SCORES, TABLES), r"codes must be"),
    "table dtype": (
        lambda: _op.weighted_gather(CODES, SCORES, TABLES.double()),
        r"scores are torch.float32, but tables are torch.float64",
    ),
    "score dtype": (
        lambda: _op.weighted_gather(CODES, SCORES, TABLES, "float16"),
        r"score_dtype='float16' is unknown",
    ),
    "score dtype of int8": (
        lambda: _op.weighted_gather(CODES, SCORES, TABLES.to(torch.int8), "bfloat16"),
        r"not for int8 tables",
    ),
    "table rank": (
        lambda: _op.weighted_gather(CODES, SCORES, TABLES[0]),
        r"tables must be \(tables.*got \(8, 5\)",
    ),
    "no entries": (lambda: _op.weighted_gather(CODES, SCORES, TABLES[:, :0]), r"none of them 0"),
    "shapes": (lambda: _op.weighted_gather(CODES, SCORES[:, :3], TABLES), r"differ in shape"),
    "neighbours": (
        lambda: _op.weighted_gather(CODES[:, :4], SCORES[:, :4], TABLES),
        r"no equal share.*3 tables",
    ),
    "code": (lambda: _op.weighted_gather(CODES + 8, SCORES, TABLES), r"codes holds 8.*K = 8"),
    "negative code": (lambda: _op.weighted_gather(CODES - 1, SCORES, TABLES), r"codes holds -1"),
    "code of int8": (
        lambda: _op.weighted_gather(CODES + 8, SCORES, TABLES.to(torch.int8)),
        r"codes holds 8",
    ),
    "code in the gradient": (
        lambda: _op.weighted_gather_backward(torch.zeros(2, 5), CODES + 8, SCORES, TABLES),
        r"codes holds 8",
    ),
    "gather grad": (
        lambda: _op.weighted_gather_backward(X, CODES, SCORES, TABLES),
        r"shape \(2, 5\), got",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_mistakes_are_explained(name: str) -> None:
    call, pattern = BAD[name]
    with pytest.raises(InputError, match=rf"(?s)torch\.ops\.lutcc\..*{pattern}.*To mend it"):
        call()


@pytest.mark.parametrize("mode", ["auto", "always"])
def test_training_never_compiles(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(
        kernels, "_compile", lambda signature, *_: compiled.append(signature.opcode)
    )
    monkeypatch.setattr(kernels, "COMPILE_SECONDS", 0.0)
    ops.clear_kernels()
    ops.set_compilation(mode)
    blocks, tables = torch.randn(3, 4, 4), torch.randn(3, 16, 5)
    parameters = [torch.nn.Parameter(t) for t in (blocks, tables)]

    def layer(x: torch.Tensor) -> torch.Tensor:
        z = _op.block_diagonal_matmul(_op.hadamard(x)[..., :12], parameters[0])
        return _op.weighted_gather(*_op.sign_hash(z, 4), parameters[1])

    for _ in range(3):
        x = torch.randn(5, 12, requires_grad=True)
        layer(x).sum().backward()
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(0.1 * parameter.grad)  # type: ignore[operator]
    assert not compiled
    if mode == "always":
        with torch.no_grad():
            layer(torch.randn(5, 12))
        assert compiled == ["hadamard", "block_diagonal_matmul", "sign_hash", "weighted_gather"]
    ops.clear_kernels()


def test_gpu_without_triton_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from lutcc.ops import library

    monkeypatch.setitem(sys.modules, "lutcc.ops.cuda", None)
    with pytest.raises(DependencyError, match=r"(?s)lutcc.hadamard: .*Triton.*lutcc\[gpu\]"):
        library._on_cuda("hadamard")(X)


def test_one_implementation_per_backend() -> None:
    for name in (
        "hadamard",
        "block_diagonal_matmul",
        "block_diagonal_matmul_weight_grad",
        "sign_hash",
        "sign_hash_backward",
        "weighted_gather",
        "weighted_gather_backward",
    ):
        for key in ("CPU", "CUDA", "Autograd"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lutcc::{name}", key), (
                name,
                key,
            )


_WITHOUT_TVM = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tvm", "tvm_ffi"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
import torch
import lutcc.ops, lutcc.nn
lutcc.ops.set_compilation("always")
x = torch.randn(5, 12)
blocks, tables = torch.randn(3, 4, 4, requires_grad=True), torch.randn(3, 16, 5, requires_grad=True)
def layer(x):
    z = lutcc.ops.block_diagonal_matmul(lutcc.ops.hadamard(x)[..., :12], blocks)
    return lutcc.ops.weighted_gather(*lutcc.ops.sign_hash(z, 4), tables)
y = layer(x)
y.sum().backward()
with torch.no_grad():
    assert torch.equal(layer(x), y)
assert "tvm" not in sys.modules and "tvm_ffi" not in sys.modules
print("done", tuple(tables.grad.shape))
"""


def test_without_tvm() -> None:
    """As on a machine for GPU training: layers and operators work, on torch's own operators."""
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", _WITHOUT_TVM]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done (3, 16, 5)"
