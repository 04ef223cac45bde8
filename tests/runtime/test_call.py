"""Calling an artifact: every kind of array that works, every mistake and its message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lutcc
from lutcc import ir
from lutcc.codegen.targets import parse_targets
from lutcc.compiler import compile_module
from lutcc.errors import BackendError, InputError
from lutcc.runtime import Artifact


def rows(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 16)).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_numpy_in_numpy_out(artifact: Artifact, scale: np.ndarray, n: int) -> None:
    x = rows(n)
    y = artifact(x)
    assert type(y) is np.ndarray
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, x * scale)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000])
def test_torch_in_torch_out(artifact: Artifact, scale: np.ndarray, n: int) -> None:
    x = torch.from_numpy(rows(n))
    y = artifact(x)
    assert type(y) is torch.Tensor
    assert y.dtype is torch.float32
    assert torch.equal(y, x * torch.from_numpy(scale))


def test_no_rows(artifact: Artifact) -> None:
    assert artifact(np.zeros((0, 16), np.float32)).shape == (0, 16)
    assert tuple(artifact(torch.zeros(0, 16)).shape) == (0, 16)


class _Labelled(np.ndarray):
    """A subclass that changes nothing."""


def _views() -> dict[str, np.ndarray]:
    big = np.random.default_rng(1).standard_normal((40, 40)).astype(np.float32)
    readonly = big[:9, :16].copy()
    readonly.flags.writeable = False
    raw = np.zeros(9 * 16 * 4 + 1, np.uint8)
    misaligned = raw[1:].view(np.float32).reshape(9, 16)
    misaligned[...] = big[:9, :16]
    fortran = np.asfortranarray(big[:9, :16])
    frozen_strides = big[::2, ::2][:, :16]
    frozen_strides.flags.writeable = False
    return {
        "row slice": big[3:12, :16],
        "column steps": big[:, ::2][:, :16],
        "row steps": big[::3, :16],
        "transposed": big.T[:9, :16],
        "fortran": fortran,
        "negative rows": big[::-1, :16],
        "negative columns": big[:9, 15::-1],
        "broadcast row": np.broadcast_to(big[0, :16], (9, 16)),
        "broadcast column": np.broadcast_to(big[:9, :1], (9, 16)),
        "one row of many": big[5:6, :16],
        "one row, transposed": big.T[5:6, :16],
        "read-only": readonly,
        "read-only strided": frozen_strides,
        "misaligned": misaligned,
        "swapped bytes": big[:9, :16].astype(">f4"),
        "subclass": big[:9, :16].view(_Labelled),
        "packed field": _packed_field(big[:9, :16]),
    }


def _packed_field(x: np.ndarray) -> np.ndarray:
    """A view whose strides are no multiples of the element size."""
    record = np.zeros(x.shape, np.dtype([("skip", "u1"), ("value", "<f4")]))
    record["value"] = x
    return record["value"]


@pytest.mark.parametrize("name", list(_views()))
def test_any_numpy_view(artifact: Artifact, scale: np.ndarray, name: str) -> None:
    x = _views()[name]
    before = np.array(x)
    y = artifact(x)
    np.testing.assert_array_equal(y, (np.asarray(x).astype(np.float32) * scale))
    np.testing.assert_array_equal(np.array(x), before)
    assert y.flags.writeable


def test_any_torch_view(artifact: Artifact, scale: np.ndarray) -> None:
    big = torch.from_numpy(rows(40)).reshape(20, 32)
    want = torch.from_numpy(scale)
    complex_part = torch.complex(big[:, :16].contiguous(), big[:, 16:].contiguous()).conj().imag
    assert complex_part.is_neg()
    odd = torch.frombuffer(memoryview(bytearray(range(1, 256)) * 3)[1:577], dtype=torch.float32)
    assert odd.data_ptr() % 4
    for x in (
        big[:, ::2],
        big[::2, :16],
        big.t()[:, :16],
        big[:1, :16].expand(5, 16),
        big[:5, :1].expand(5, 16),
        big[3:4, :16],
        complex_part,
        odd[:144].reshape(9, 16),
        torch.nn.Parameter(big[:, :16].clone(), requires_grad=False),
    ):
        assert torch.equal(artifact(x), x * want)


def test_gradients(artifact: Artifact) -> None:
    x = torch.randn(3, 16, requires_grad=True)
    with pytest.raises(InputError, match=r"(?s)argument 'x'.*gradient.*no_grad"):
        artifact(x)
    with torch.no_grad():
        y = artifact(x)
    assert not y.requires_grad
    with torch.inference_mode():
        assert artifact(torch.randn(3, 16)).shape == (3, 16)


def test_default_device_and_dtype_do_not_matter(artifact: Artifact, scale: np.ndarray) -> None:
    x = torch.randn(3, 16)
    old = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            y = artifact(x)
            z = artifact(x[:0])
    finally:
        torch.set_default_dtype(old)
    assert y.dtype is z.dtype is torch.float32
    assert y.device.type == z.device.type == "cpu"
    assert torch.equal(y, x * torch.from_numpy(scale))


WRONG = {
    "float64": (lambda: np.zeros((2, 16)), r"float32.*float64.*astype"),
    "float16": (lambda: np.zeros((2, 16), np.float16), r"float32.*float16.*astype"),
    "integers": (lambda: np.zeros((2, 16), np.int32), r"float32.*int32.*astype"),
    "objects": (lambda: np.zeros((2, 16), object), r"float32.*object.*astype"),
    "rank 1": (lambda: np.zeros(16, np.float32), r"expected 2 dimensions.*got 1.*x\[None\]"),
    "rank 3": (lambda: np.zeros((2, 4, 16), np.float32), r"expected 2 dimensions.*got 3.*reshape"),
    "rank 0": (lambda: np.zeros((), np.float32), r"expected 2 dimensions.*got 0"),
    "NumPy scalar": (lambda: np.float32(3), r"got float32"),
    "columns": (lambda: np.zeros((2, 15), np.float32), r"\(n, 16\).*\(2, 15\).*must be 16"),
    "no rows, wrong": (lambda: np.zeros((0, 15), np.float32), r"must be 16, not 15"),
    "list": (lambda: [[0.0] * 16], r"got list.*numpy.asarray"),
    "None": (lambda: None, r"got NoneType"),
    "scalar": (lambda: 3.0, r"got float"),
    "masked": (lambda: np.ma.zeros((2, 16), np.float32), r"masked.*filled"),
    "torch float64": (lambda: torch.zeros(2, 16).double(), r"float32.*torch.float64.*x.to"),
    "torch bfloat16": (lambda: torch.zeros(2, 16).bfloat16(), r"float32.*torch.bfloat16.*x.to"),
    "torch columns": (lambda: torch.zeros(2, 17), r"must be 16, not 17"),
    "torch rank": (lambda: torch.zeros(16), r"expected 2 dimensions"),
    "meta": (lambda: torch.zeros(2, 16, device="meta"), r"CPU tensor.*meta.*x.cpu"),
    "sparse": (lambda: torch.zeros(2, 16).to_sparse(), r"dense.*to_dense"),
    "csr": (lambda: torch.eye(16).to_sparse_csr(), r"dense.*to_dense"),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("name", list(WRONG))
def test_mistakes_are_explained(artifact: Artifact, name: str) -> None:
    make, pattern = WRONG[name]
    artifact(np.zeros((1, 16), np.float32))
    artifact(torch.zeros(1, 16))
    with pytest.raises(InputError, match=f"(?s)argument 'x'.*{pattern}"):
        artifact(make())


def test_fake_tensors_are_refused(artifact: Artifact) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), pytest.raises(InputError, match="FakeTensor"):
        artifact(torch.zeros(2, 16))


@pytest.mark.parametrize("count", [0, 2, 3])
def test_number_of_arguments(artifact: Artifact, count: int) -> None:
    with pytest.raises(InputError, match=rf"(?s)expected 1 tensors.*x: float32.*got {count}"):
        artifact(*[np.zeros((1, 16), np.float32)] * count)


def test_kernel_errors_come_out(artifact: Artifact) -> None:
    with pytest.raises(BackendError, match=r"kernels-.*scale failed: poisoned"):
        artifact(rows(77))
    assert artifact(rows(5)).shape == (5, 16)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_strides(make_artifact, scale: np.ndarray, data: st.DataObject) -> None:
    artifact = _ONE.setdefault("artifact", make_artifact())
    n = data.draw(st.integers(0, 9))
    steps = [data.draw(st.sampled_from([-3, -2, -1, 1, 2, 5])) for _ in range(2)]
    base = np.zeros((n * abs(steps[0]) + 1, 16 * abs(steps[1])), np.float32)
    if data.draw(st.booleans()):
        base = np.asfortranarray(base)
    base[...] = np.random.default_rng(n).standard_normal(base.shape)
    x = base[: n * abs(steps[0]), :][:: steps[0], :: steps[1]]
    np.testing.assert_array_equal(artifact(x), x * scale)
    if min(steps) > 0:
        t = torch.from_numpy(base)[: n * steps[0], :][:: steps[0], :: steps[1]]
        assert torch.equal(artifact(t), t * torch.from_numpy(scale))


_ONE: dict[str, Artifact] = {}


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """An artifact of images (n, 6, 5, 3) -> (n, 3, 5, 3): the larger of two rows."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), 6, 5, 3), "float32"))
    y = b.op("max_pool2d", x, kernel=(2, 1), stride=(2, 1))
    b.returns(b.op("reshape", y, shape=(ir.Sym("n"), 3, 5, 3)))
    path = tmp_path_factory.mktemp("images") / "pooled.lutcc"
    compile_module(b.module(), parse_targets("host")).save(path)
    return lutcc.load(path)


def test_images_of_any_layout(pooled: Artifact) -> None:
    big = np.random.default_rng(0).normal(size=(9, 12, 10, 6)).astype(np.float32)
    readonly = big[:, :6, :5, :3].copy()
    readonly.flags.writeable = False
    views = {
        "contiguous": big[:, :6, :5, :3].copy(),
        "cut out": big[::2, 1:7, 2:7, ::2],
        "channels first": np.ascontiguousarray(big[:, :3, :6, :5]).transpose(0, 2, 3, 1),
        "backwards": big[::-1, 5::-1, :5, :3],
        "read-only": readonly,
        "none": big[:0, :6, :5, :3],
        "one": big[4:5, :6, :5, :3],
    }
    for name, x in views.items():
        want = x.reshape(len(x), 3, 2, 5, 3).max(axis=2)
        np.testing.assert_array_equal(pooled(x), want, err_msg=name)
        if name != "read-only" and name != "backwards":
            given = torch.from_numpy(x)
            np.testing.assert_array_equal(pooled(given).numpy(), want, err_msg=name)


def test_more_numbers_of_images_than_are_remembered(pooled: Artifact) -> None:
    x = np.random.default_rng(0).normal(size=(600, 6, 5, 3)).astype(np.float32)
    want = x.reshape(600, 3, 2, 5, 3).max(axis=2)
    for n in (*range(1, 600, 2), 1, 3, 599):
        np.testing.assert_array_equal(pooled(x[:n]), want[:n])


@pytest.mark.parametrize("shape", [(), (6, 5, 3), (2, 6, 5, 4), (2, 90), (1, 2, 6, 5, 3), (2, 6)])
def test_images_of_a_wrong_shape_are_refused(pooled: Artifact, shape: tuple[int, ...]) -> None:
    for _ in range(2):  # it is not remembered
        with pytest.raises(InputError, match="expected"):
            pooled(np.zeros(shape, np.float32))
        with pytest.raises(InputError, match="expected"):
            pooled(torch.zeros(shape))
