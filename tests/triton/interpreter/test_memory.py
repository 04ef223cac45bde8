"""The watch over kernels' memory sees what it is there for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime.errors import InterpreterError

from lutcc.schedules.triton.jit import jit
from tests.triton.interpreter.repair import to_tf32


@jit
def copy_kernel(x, y, n, READ: tl.constexpr, WRITE: tl.constexpr, SIZE: tl.constexpr):
    """Copy; READ and WRITE are added to what the program number gives."""
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    v = tl.load(x + i + READ, mask=i < n)
    tl.store(y + i + WRITE, v, mask=i < n)


@jit
def unmasked_kernel(x, y, n, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    tl.store(y + i, tl.load(x + i), mask=i < n)


@jit
def same_place_kernel(x, y, n, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y + i, tl.load(x + tl.program_id(0) * SIZE + i), mask=i < n)


@jit
def scatter_kernel(x, y, where, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    tl.store(y + tl.load(where + i), tl.load(x + i))


@jit
def add_kernel(x, y, PLAIN: tl.constexpr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    v = tl.load(x + i)
    if PLAIN and tl.program_id(0) == 0:
        tl.store(y + i, v)
    else:
        tl.atomic_add(y + i, v)


def test_clean_kernels_pass():
    x, y = torch.randn(100), torch.empty(100)
    copy_kernel[(2,)](x, y, 100, READ=0, WRITE=0, SIZE=64)
    assert torch.equal(x, y)
    total = torch.zeros(16)
    add_kernel[(3,)](x, total, PLAIN=False, SIZE=16)
    torch.testing.assert_close(total, 3 * x[:16])
    scatter_kernel[(1,)](x, y, torch.arange(16).flip(0), SIZE=16)
    assert torch.equal(y[:16], x[:16].flip(0))


@pytest.mark.parametrize(
    ("launch", "message"),
    [
        (lambda x, y: unmasked_kernel[(2,)](x, y, 100, SIZE=64), "load outside of every tensor"),
        (
            lambda x, y: copy_kernel[(2,)](x, y, 100, READ=0, WRITE=7, SIZE=64),
            "store outside of every tensor",
        ),
        (lambda x, y: same_place_kernel[(2,)](x, y, 50, SIZE=50 // 2 + 7), "writes what program 0"),
        (
            lambda x, y: copy_kernel[(2,)](x, x, 64, READ=32, WRITE=0, SIZE=32),
            "writes what program 0 read",
        ),
        (
            lambda x, y: copy_kernel[(2,)](x, x, 64, READ=0, WRITE=32, SIZE=32),
            "reads what program 0 wrote",
        ),
        (
            lambda x, y: scatter_kernel[(1,)](x, y, torch.zeros(16, dtype=torch.int64), SIZE=16),
            "one store writes an element twice",
        ),
        (lambda x, y: add_kernel[(2,)](x, y, PLAIN=True, SIZE=16), "to what a store wrote"),
        (
            lambda x, y: copy_kernel[(1,)](x[::2], y, 20, READ=0, WRITE=0, SIZE=32),
            "load between the elements of a tensor",
        ),
    ],
)
def test_seeded_bugs_are_seen(launch, message):
    x, *others = torch.randn(100), torch.zeros(100)
    while abs(others[-1].data_ptr() - x.data_ptr()) < 4096:  # past one's end is not the other
        others.append(torch.zeros(100))
    with pytest.raises(InterpreterError, match=message):
        launch(x, others[-1])


def test_a_bug_seeded_into_a_real_kernel_is_seen(monkeypatch):
    """A mask that is one column too wide."""
    from lutcc.schedules.triton import weighted_gather as module

    def launch(kernel, grid):
        def run(*args, **kwargs):
            args = list(args)
            args[7] += 1  # outputs
            return kernel[grid](*args, **kwargs)

        return run

    class Wrong:
        def __getitem__(self, grid):
            return launch(kernel, grid)

    kernel = module.weighted_gather_kernel
    codes, scores = torch.zeros(3, 2, dtype=torch.int32), torch.ones(3, 2)
    monkeypatch.setattr(module, "weighted_gather_kernel", Wrong())
    with pytest.raises(InterpreterError, match="outside of every tensor"):
        module.weighted_gather(codes, scores, torch.ones(2, 1, 9))


def test_bfloat16_is_computed_as_such():
    @jit
    def kernel(x, y, z, SIZE: tl.constexpr):
        i = tl.arange(0, SIZE)
        v = tl.load(x + i)
        tl.store(y + i, v * v + v)
        tl.store(z + i, tl.load(z + i).to(tl.bfloat16).to(tl.float32))

    x = torch.randn(16).to(torch.bfloat16)
    y, z = torch.empty_like(x), torch.randn(16)
    rounded = z.to(torch.bfloat16).float()
    kernel[(1,)](x, y, z, SIZE=16)
    assert torch.equal(z, rounded)
    assert torch.equal(y, x * x + x)


def test_tf32_rounds_as_a_tensor_core():
    x = np.array([1 + 2**-11, 1 + 2**-12, -(1 + 3 * 2**-11)], np.float32)
    assert to_tf32(x).tolist() == [1 + 2**-10, 1.0, -(1 + 2**-9)]
