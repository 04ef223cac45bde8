"""Every op has a definition, a schedule, a golden and a benchmark; the goldens hold."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from lutcc import ir
from lutcc.errors import VerifyError
from tests.ir import plain
from tests.ir.test_interpreter import assert_same

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = Path(__file__).parent / "goldens"
OPCODES = sorted(ir.OPS)

#: Ops without a schedule file of their own, and where they become code instead.
LOWERED_ELSEWHERE = {
    "constant": "structural: packed into the blob that kernels read (schedules/x86/pack.py)",
    "call": "structural: each callee becomes a stage of the entry point",
    "batch_norm": "folded: fold_batch_norm_and_affine leaves an affine or less",
    "reshape": "schedules/x86/data_movement.py",
    "im2col": "schedules/x86/data_movement.py",
    "max_pool2d": "schedules/x86/data_movement.py",
    "rows_to_nchw": "schedules/x86/data_movement.py",
    "repack": "schedules/x86/data_movement.py",
    "column_row_scores": "training: lutcc/ops/sampled_scores.py",
    "channel_scores": "training: lutcc/ops/sampled_channels.py",
    "column_row_sample": "training: lutcc/ops/sampled_selection.py",
}


@pytest.mark.parametrize("opcode", OPCODES)
def test_definition(opcode: str) -> None:
    opdef = ir.OPS[opcode]
    assert opdef.name == opcode
    assert callable(opdef.reference)
    assert callable(opdef.infer)
    assert callable(opdef.cost)
    assert opdef.summary.endswith(".")
    assert opdef.definition
    assert opdef.source
    assert opdef.results
    source = importlib.import_module(f"lutcc.ir.ops.{opcode}")
    assert source.OP is opdef, "one file per op"
    for part in (*opdef.operands, *opdef.attrs):
        assert part.doc, f"{opcode} {part.name} says nothing"


@pytest.mark.parametrize("opcode", OPCODES)
def test_schedule(opcode: str) -> None:
    lowering = ir.OPS[opcode].lowering
    own = ROOT / "schedules" / "x86" / f"{opcode}.py"
    if lowering == "kernel":
        assert opcode not in LOWERED_ELSEWHERE
        assert own.is_file(), f"{opcode} has no schedule: write {own.relative_to(ROOT)}"
        return
    where = LOWERED_ELSEWHERE[opcode]
    if lowering == "data_movement":
        assert (ROOT / where).is_file()
    else:
        assert where.startswith(lowering)
    if lowering == "training":
        assert (ROOT / where.removeprefix("training: ")).is_file()


def test_no_stale_entry_in_the_table() -> None:
    assert {op for op in OPCODES if ir.OPS[op].lowering != "kernel"} == set(LOWERED_ELSEWHERE)


def test_every_file_of_ops_is_registered() -> None:
    files = {p.stem for p in (ROOT / "ir" / "ops").glob("*.py")} - {"__init__"}
    assert files == set(OPCODES)


#: Ops that run no code of their own, so that there is nothing to time.
NOT_TIMED = {
    "constant": "data",
    "call": "its callee is timed",
    "batch_norm": "folded away",
    "reshape": "a view",
    "column_row_scores": "no kernel: timed with the products by lutcc bench sampled",
    "channel_scores": "no kernel: timed with the products by lutcc bench sampled",
    "column_row_sample": "no kernel: timed with the products by lutcc bench sampled",
    "repack": "part of the loads and stores of the stage at whose edge it stands",
}


@pytest.mark.parametrize("opcode", sorted(set(OPCODES) - set(NOT_TIMED)))
def test_benchmark(opcode: str) -> None:
    benchmarks = importlib.import_module("lutcc.bench.kernels").BENCHMARKS
    assert opcode in benchmarks, f"{opcode} has no benchmark in lutcc.bench.kernels.BENCHMARKS"


def _numbers(array: np.ndarray) -> dict[str, Any]:
    flat = [v.item() for v in array.reshape(-1)]
    data = [v if np.isfinite(v) else str(v) for v in flat]
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}


def _array(stored: dict[str, Any]) -> np.ndarray:
    values = [float(v) if isinstance(v, str) else v for v in stored["data"]]
    return np.array(values, np.dtype(stored["dtype"])).reshape(stored["shape"])


def _rng_inputs(opcode: str) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return small inputs with prime sizes and special values, and attributes."""
    rng = np.random.default_rng(sum(map(ord, opcode)))

    def f(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    def ints(high: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        return rng.integers(0, high, shape).astype(dtype)

    x = f(3, 5)
    x[1, 2], x[2, 0], x[2, 4] = np.nan, np.inf, -np.inf
    inputs: dict[str, tuple[list[np.ndarray], dict[str, Any]]] = {
        "tree_encode": ([x, ints(5, (3, 4), "int32"), f(3, 16)], {}),
        "nearest_encode": ([x, f(4, 7), f(3, 4), ints(5, (7,), "int32")], {"starts": (0, 2, 2, 7)}),
        "lut_accumulate": (
            [ints(4, (3, 7), "uint8"), ints(256, (7, 4, 3), "uint8")],
            {"accumulate": "mean", "upcast_every": 4},
        ),
        "lut_dequantize": (
            [rng.integers(-(2**31), 2**31, (3, 2)).astype(np.int32), f(2), f(2)],
            {"activation": "relu"},
        ),
        "quantize": ([x * 99, np.full(5, 0.5, np.float32), f(5) + 99], {}),
        "linear": ([f(3, 5), f(2, 5), f(2)], {"activation": "relu"}),
        "relu": ([x], {}),
        "add": ([x, f(3, 5)], {}),
        "affine": ([x, f(5), f(5)], {}),
        "batch_norm": ([f(3, 5), f(5), f(5), f(5), np.abs(f(5))], {"eps": 1e-3}),
        "reshape": ([f(3, 4)], {"shape": (2, 3, 2)}),
        "im2col": (
            [f(2, 1, 3, 4)],
            {"kernel": (2, 3), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 1)},
        ),
        "rows_to_nchw": ([f(12, 2)], {"oh": 3, "ow": 2}),
        "repack": ([f(3, 5)], {"layout": ir.Layout("row_blocked", 2, 1)}),
        # Later ops come last, so that the numbers above stay what they were.
        "hadamard": ([f(3, 5)], {"scale": 8**-0.5}),
        "block_diagonal_matmul": (
            [f(3, 6), f(2, 3, 5).astype(ml_dtypes.bfloat16)],
            {"columns": 7},
        ),
        "sign_hash": ([f(3, 10)], {"code_length": 5, "neighbors": 3}),
        "weighted_gather": (
            [ints(8, (3, 6), "int32"), f(3, 6), rng.integers(-128, 128, (3, 8, 5)).astype("int8")],
            {},
        ),
        "column_row_scores": ([f(3, 7), f(7, 2)], {"group_size": 3}),
        "channel_scores": (
            [f(2, 4, 3, 5), f(2, 2, 2, 3)],
            {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2},
        ),
        "column_row_sample": (
            [np.abs(f(14))],
            {"k": 3, "mode": "wta_crs", "seed": 2**33 + 5, "groups": 2},
        ),
        "sampled_matmul": (
            [
                f(3, 7).astype(ml_dtypes.bfloat16),
                f(7, 2).astype(ml_dtypes.bfloat16),
                np.array([0, 2, 0], np.int32),
                np.array([1.5, 0.7, 0], np.float32),
                f(2),
            ],
            {"group_size": 3},
        ),
        "sampled_conv2d": (
            [
                f(1, 4, 3, 5),
                f(2, 2, 2, 3),
                np.array([1, 0, 2, 3], np.int32),
                np.array([2, 0, 0.5, 1], np.float32),
                f(2),
            ],
            {"stride": (2, 1), "padding": (1, 0), "dilation": (1, 2), "groups": 2},
        ),
        "codebook_matmul": (
            [
                f(2, 5),
                ints(256, (3, 2), "uint8"),
                f(2, 8).astype(np.float16),
                f(3).astype(np.float16),
                np.array([2, 0, 1], np.int32),
                f(3),
            ],
            {"bits": 3, "compute": "int8"},
        ),
        "codebook_dequantize": (
            [
                np.array([1, 0, 1], np.int32),
                ints(256, (2, 9), "uint8"),
                f(4, 4).astype(np.float16),
                f(1).astype(np.float16),
            ],
            {"bits": 2, "columns": 35, "segment_size": 32},
        ),
        "sparse_add": (
            [
                f(2, 3),
                f(2, 5),
                np.array([0, 2, 2, 3], np.int32),
                np.array([0, 4, 2], np.int32),
                f(3),
            ],
            {},
        ),
        "dense": (
            [f(2, 5), ints(128, (3, 5), "int8") - ints(128, (3, 5), "int8"), np.abs(f(3)), f(3)],
            {"compute": "int8", "activation": "relu"},
        ),
        "activation": ([x], {"kind": "gelu"}),
        "layer_norm": ([x[:2], np.ones(5, np.float32) / 3, x[0]], {"eps": 1e-3}),
        "softmax": ([x], {}),
        "attention": (
            [f(2, 3, 10), f(2, 7, 5), f(2, 7, 3), ints(2, (1, 2, 3, 7), "uint8")],
            {"heads": 2, "kv_heads": 1, "scale": 0.5, "mask": "keep"},
        ),
        "conv2d": (
            [
                f(2, 4, 3, 4),
                ints(128, (4, 2, 2, 3), "int8") - ints(128, (4, 2, 2, 3), "int8"),
                np.abs(f(4)),
                f(4),
            ],
            {
                "stride": (2, 1),
                "padding": (1, 0),
                "groups": 2,
                "compute": "int8",
                "activation": "relu",
            },
        ),
        "leaky_relu": ([x], {"slope": -0.1}),
        "clamp": ([x], {"low": -0.3, "high": 0.5}),
        "round": ([x * 2], {}),
        "interval_encode": (
            [
                rng.integers(-9, 9, (3, 5)).astype(np.int32),
                ints(5, (3, 2), "int32"),
                rng.integers(-9, 9, (3, 4)).astype(np.int32),
                np.array([[0, 5, 2, -5], [0, -1, 0, 3], [0, 9, -9, 1]], np.int32),
            ],
            {},
        ),
        "lut_conv2d": (
            [
                rng.integers(-9, 9, (2, 4, 3, 3)).astype(np.int32),
                ints(18, (3, 2), "int32"),
                rng.integers(-9, 9, (3, 4)).astype(np.int32),
                ints(128, (3, 4, 2), "int8") - ints(128, (3, 4, 2), "int8"),
                np.array([-4, 0, 5], np.int32),
            ],
            {"kernel": (2, 3), "stride": (2, 1), "padding": (1, 1), "dilation": (2, 1)},
        ),
        "max_pool2d": (
            [np.where(f(1, 5, 4, 3) > 1.4, np.nan, f(1, 5, 4, 3)).astype(np.float32)],
            {"kernel": (3, 2), "stride": (2, 1), "padding": (1, 1), "dilation": (1, 2)},
        ),
    }
    return inputs[opcode]


def _golden(opcode: str) -> dict[str, Any]:
    """Make a golden from the plain definitions, without the interpreter."""
    if opcode == "constant":
        text = (
            "lutcc.ir 1\n\nconstant @c : float32[2] = dense [0.1, -3.0]\n\n"
            'func @main() {\n  %value = constant() {ref = "c"} : float32[2]\n  return %value\n}\n'
        )
        return {"module": text, "inputs": [], "outputs": [_numbers(plain.f32([0.1, -3.0]))]}
    if opcode == "call":
        text = (
            "lutcc.ir 1\n\nfunc @main(%x: float32[2*m, 2]) {\n"
            '  %result = call(%x) {callee = "twice"} : float32[2*m, 2]\n  return %result\n}\n\n'
            "func @twice(%x: float32[n, 2]) {\n  %z = add(%x, %x) : float32[n, 2]\n  return %z\n}\n"
        )
        x = plain.f32([[1, -2], [0.5, 3]])
        return {"module": text, "inputs": [_numbers(x)], "outputs": [_numbers(plain.f32(2 * x))]}
    arrays, attrs = _rng_inputs(opcode)
    b = ir.Builder("main")
    params = [
        b.param(operand.name, ir.TensorType(array.shape, array.dtype.name))
        for operand, array in zip(ir.OPS[opcode].operands, arrays, strict=True)
    ]
    b.returns(*b.ops(opcode, *params, **attrs))
    with np.errstate(all="ignore"):
        outputs = plain.DEFINITIONS[opcode](arrays, **attrs)
    return {
        "module": ir.to_text(b.module()),
        "inputs": [_numbers(a) for a in arrays],
        "outputs": [_numbers(a) for a in outputs],
    }


@pytest.mark.parametrize("opcode", OPCODES)
def test_golden(opcode: str, request: pytest.FixtureRequest) -> None:
    path = GOLDENS / f"{opcode}.json"
    if request.config.getoption("--update-golden", default=False):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(_golden(opcode), indent=1) + "\n", encoding="utf-8")
    assert path.is_file(), f"{opcode} has no golden: run pytest tests/ir --update-golden"
    golden = json.loads(path.read_text(encoding="utf-8"))
    module = ir.parse(golden["module"])
    assert any(op.opcode == opcode for op in module.main.body)
    inputs = [_array(a) for a in golden["inputs"]]
    got = ir.interpret(module, inputs)
    assert len(got) == len(golden["outputs"])
    for array, stored in zip(got, golden["outputs"], strict=True):
        assert_same(opcode, array, _array(stored), inputs or [np.ones(1)])
    assert golden == json.loads(json.dumps(_golden(opcode))), f"golden of {opcode} is out of date"


def test_registry_is_immutable_and_refuses_duplicates() -> None:
    relu = ir.OPS["relu"]
    with pytest.raises(VerifyError, match="'relu' is defined twice"):
        ir.OPS.extended(relu)
    assert "relu" not in ir.Registry()
    with pytest.raises(TypeError):
        ir.OPS["relu"] = relu  # type: ignore[index]
