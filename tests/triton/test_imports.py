"""The GPU side works where TVM is absent, and the rest where Triton is."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("absent", "modules"),
    [
        ("tvm", ["lutcc.nn", "lutcc.ops.cuda", "lutcc.bench.gpu", "lutcc.bench.gpu_models"]),
        ("triton", ["lutcc.nn", "lutcc.bench.gpu", "lutcc.bench.gpu_models"]),
    ],
)
def test_imports_without(absent, modules):
    # None in sys.modules makes an import fail as it does where the package is not installed.
    script = f"""
import importlib, sys
sys.modules.update({{name: None for name in ({absent!r}, "tvm_ffi")[: 1 + ({absent!r} == "tvm")]}})
for name in {modules!r}:
    importlib.import_module(name)
import torch
x = torch.ones(2, 6, requires_grad=True)
y = torch.ops.lutcc.bh_stage(x, torch.ones(2, 4, 4), 0.5, None)[0]
y.sum().backward()
print(y.shape, x.grad.shape)
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == "torch.Size([2, 8]) torch.Size([2, 6])"
