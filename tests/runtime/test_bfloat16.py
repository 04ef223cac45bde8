"""bfloat16 in and out of artifacts: arrays of ml_dtypes, torch tensors, and neither torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch

import lutcc
from lutcc import ir
from lutcc.errors import InputError
from lutcc.runtime import kernel
from lutcc.runtime.bfloat16 import as_numpy, to_array, to_tensor

BF16 = np.dtype(ml_dtypes.bfloat16)
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(5, 32)).astype(BF16)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense layer in bfloat16, and its input as float32."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), 32), "bfloat16"))
    ones = b.constant("units", np.ones(5, np.float32))
    bias = b.constant("bias", np.zeros(5, np.float32))
    attrs = {"compute": "bfloat16", "out_dtype": "bfloat16"}
    b.returns(b.op("dense", x, b.constant("weight", WEIGHT), ones, bias, **attrs))
    file = tmp_path_factory.mktemp("bfloat16") / "dense.lutcc"
    lutcc.compile(b.module()).save(file)
    return file


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(count).normal(size=(count, 32)).astype(BF16)


def near(got: np.ndarray, x: np.ndarray) -> None:
    want = x.astype(np.float64) @ WEIGHT.astype(np.float64).T
    assert got.dtype == BF16
    assert got.shape == want.shape
    np.testing.assert_allclose(got.astype(np.float64), want, rtol=2.0**-8, atol=1e-4)


def test_arrays_and_tensors_alike(path: Path) -> None:
    artifact = lutcc.load(path)
    for count in (1, 7, 40):
        x = rows(count)
        got = artifact(x)
        near(got, x)
        tensor = artifact(torch.from_numpy(x.view(np.int16)).view(torch.bfloat16))
        assert tensor.dtype is torch.bfloat16
        np.testing.assert_array_equal(as_numpy(tensor), got)


def test_memory_of_any_kind(path: Path) -> None:
    artifact = lutcc.load(path)
    x = rows(8)
    want = artifact(x)
    wide = np.zeros((16, 64), BF16)
    wide[::2, 1::2] = x
    fixed = x.copy()
    fixed.flags.writeable = False
    bytes_off = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(BF16).reshape(x.shape)
    for given in (wide[::2, 1::2], np.asfortranarray(x), fixed, x[::-1][::-1], bytes_off):
        np.testing.assert_array_equal(artifact(given), want)
    np.testing.assert_array_equal(artifact(x[::-1]), want[::-1])
    assert artifact(x[:0]).shape == (0, 5)


def test_other_dtypes_are_refused(path: Path) -> None:
    artifact = lutcc.load(path)
    for wrong in (rows(2).astype(np.float32), rows(2).view(np.uint16)):
        with pytest.raises(
            InputError, match=r"(?s)expected dtype bfloat16.*x.astype\(ml_dtypes.bf"
        ):
            artifact(wrong)
    with pytest.raises(InputError, match=r"(?s)float32.*x.to\(torch.bfloat16"):
        artifact(torch.zeros(2, 32))


def test_one_thread_takes_the_short_way(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows are work for several threads, but there is one, nothing is looked at twice."""
    monkeypatch.setattr(kernel, "SECONDS_PER_THREAD", 1e-15)
    artifact, x = lutcc.load(path), rows(3)
    artifact.num_threads = 1
    tensor = torch.from_numpy(x.view(np.int16)).view(torch.bfloat16)
    artifact(tensor)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the long way")

    monkeypatch.setattr(kernel, "admit", refuse)
    near(artifact(x), x)
    near(as_numpy(artifact(tensor)), x)
    artifact.num_threads = 2
    for given in (x, tensor):
        with pytest.raises(AssertionError, match="the long way"):
            artifact(given)


def test_there_and_back() -> None:
    """The same memory, whoever holds it."""
    x = rows(3)
    back = to_array(to_tensor(x[:, ::2]))
    np.testing.assert_array_equal(back, x[:, ::2])
    assert np.shares_memory(back, x)
    held = to_array(torch.ones(4, dtype=torch.bfloat16))  # the tensor itself is gone
    np.testing.assert_array_equal(held.astype(np.float32), np.ones(4))


def test_no_torch_is_needed(path: Path) -> None:
    code = (
        "import sys, ml_dtypes, numpy as np\n"
        "from lutcc.runtime import load\n"
        f"y = load({str(path)!r})(np.ones((2, 32), ml_dtypes.bfloat16))\n"
        "assert y.dtype == ml_dtypes.bfloat16 and 'torch' not in sys.modules\n"
        "print(float(y[1, 0]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    want = WEIGHT.astype(np.float64).sum(1)[0]
    assert float(done.stdout) == pytest.approx(want, rel=2.0**-8, abs=1e-4)
