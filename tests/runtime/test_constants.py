"""constants.safetensors: every element type comes back bit by bit."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
import pytest

import lutcc
from lutcc import ir
from lutcc.errors import ArtifactError
from lutcc.ir.types import DTYPES, numpy_dtype
from lutcc.runtime import Artifact, constants
from tests.runtime.conftest import scale_array, scale_module, scale_program


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_round_trip(name: str) -> None:
    """All types of the IR, also empty arrays, NaN payloads and arrays that are not contiguous."""
    dtype = numpy_dtype(name)
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, 60) if name == "bool" else rng.integers(0, 256, 60 * dtype.itemsize)
    array = np.frombuffer(bits.astype(np.uint8).tobytes(), dtype).reshape(3, 20)
    stored = {"a": array, "b": array[:, ::3].T, "none": array[:0], "one": array[1, 2]}
    loaded = constants.load(constants.dump(stored))
    assert sorted(loaded) == sorted(stored)
    for key, want in stored.items():
        assert loaded[key].dtype == dtype
        assert loaded[key].shape == want.shape
        assert loaded[key].tobytes() == want.tobytes()
        assert not loaded[key].flags.writeable


def test_torch_reads_bfloat16() -> None:
    """The file is an ordinary one: others read it too."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import load

    array = np.array([1.5, -2.25, 3e38], ml_dtypes.bfloat16)
    tensor = load(constants.dump({"a": array}))["a"]
    assert tensor.dtype == torch.bfloat16
    np.testing.assert_array_equal(tensor.float().numpy(), array.astype(np.float32))


def test_types_that_cannot_be_stored_or_read() -> None:
    with pytest.raises(
        ArtifactError, match="'a' has dtype complex128, which cannot be stored"
    ) as e:
        constants.dump({"a": np.zeros(1, complex)})
    assert "bfloat16" in (e.value.fix or "")
    header = json.dumps({"a": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0\0"
    with pytest.raises(ArtifactError, match="'a' has the element type F8_E4M3, which lutcc does"):
        constants.load(data)


def test_bfloat16_constants_of_an_artifact(library, tmp_path) -> None:
    """Saved, loaded, and equal to those of the module, whose text holds only their sha256."""
    tables = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(ml_dtypes.bfloat16)
    plain = scale_module(scale_array())
    module = ir.Module(plain.functions, {**plain.constants, "tables": tables})
    made = Artifact.from_programs(module, [scale_program("avx2")], {"avx2": library}, {})
    loaded = lutcc.load(made.save(tmp_path / "a.lutcc"))
    assert loaded.module == module
    assert loaded.module.constant("tables").tobytes() == tables.tobytes()
