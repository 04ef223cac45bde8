"""What a user would run instead of convolutions by look-ups: torch, and onnxruntime, exactly.

Every precision is given its best chance: channels last, weights converted or reordered beforehand,
relu fused, int8 with scales found on data beforehand, so that nothing is measured at run time.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lutcc.bench.baselines import in_turn, runs_here
from lutcc.errors import UsageError, suggest

#: Precisions and what runs them.
PRECISIONS = {
    "fp32_onednn": "float32 through oneDNN, weights reordered, relu fused",
    "bf16": "bfloat16 as torch runs it, bf16 in",
    "bf16_onednn": "bfloat16 through oneDNN, weights reordered, relu fused, bf16 in",
    "int8_onednn": "static int8 (oneDNN), float32 in and out",
    "int8_x86": "static int8 (FBGEMM/oneDNN 'x86' engine), float32 in and out",
    "int8_onnxruntime": "static int8 (onnxruntime), float32 in and out",
}


def precisions_here() -> list[str]:
    """Return the precisions that this CPU runs."""
    return [precision for precision in PRECISIONS if runs_here(precision)]


def write_network(path: Path, weights: Sequence[np.ndarray], pooled: Sequence[int]) -> None:
    """Store the weights of convolutions 3x3 and of a linear layer, and behind which pooling is."""
    from safetensors.numpy import save_file

    tensors = {str(i): np.ascontiguousarray(w) for i, w in enumerate(weights)}
    save_file(tensors, str(path), metadata={"pooled": ",".join(map(str, pooled))})


def read_network(path: Path) -> tuple[list[np.ndarray], tuple[int, ...]]:
    """Return what :func:`write_network` stored."""
    from safetensors import safe_open

    with safe_open(str(path), framework="np") as file:
        count = len(list(file.keys()))
        weights = [file.get_tensor(str(i)) for i in range(count)]
        listed = (file.metadata() or {})["pooled"]
    return weights, tuple(int(i) for i in listed.split(",") if i)


def prepare_network(path: Path, precision: str, inputs: Sequence[np.ndarray]) -> Callable[[], Any]:
    """Return a call that runs a stored network on (N, C, H, W) float32, the next input each time.

    Raises
    ------
    UsageError
        For an unknown precision.
    """
    weights, pooled = read_network(path)
    if precision == "int8_onnxruntime":
        return in_turn(_onnxruntime(weights, pooled, inputs))
    if precision in ("fp32_onednn", "bf16_onednn"):
        return in_turn(_fused(weights, pooled, precision, inputs))
    if precision == "bf16":
        return in_turn(_plain(weights, pooled, inputs))
    if precision in ("int8_onednn", "int8_x86"):
        engine = precision.removeprefix("int8_")
        return in_turn(_quantised(weights, pooled, engine, inputs))
    raise UsageError(f"unknown precision {precision!r}", fix=suggest(precision, PRECISIONS))


def _fused(
    weights: Sequence[np.ndarray],
    pooled: Sequence[int],
    precision: str,
    inputs: Sequence[np.ndarray],
) -> list[Callable[[], Any]]:
    """Return oneDNN's own calls, as ``torch.compile`` makes them with ``freezing``."""
    import torch

    torch.set_num_threads(1)
    ops, one = torch.ops.mkldnn, [1, 1]
    dtype = torch.bfloat16 if precision == "bf16_onednn" else torch.float32

    def call(x: np.ndarray) -> Callable[[], Any]:
        given = torch.from_numpy(x).to(dtype).contiguous(memory_format=torch.channels_last)
        sizes, steps = list(given.shape), []
        for i, array in enumerate(weights[:-1]):
            weight = torch.from_numpy(array).to(dtype)
            packed = ops._reorder_convolution_weight(weight, one, one, one, 1, sizes)
            steps.append((packed, torch.zeros(len(array), dtype=dtype), i in pooled))
            half = 2 if i in pooled else 1
            sizes = [sizes[0], len(array), sizes[2] // half, sizes[3] // half]
        head = torch.from_numpy(weights[-1]).to(dtype)
        head, zero = ops._reorder_linear_weight(head), torch.zeros(len(weights[-1]), dtype=dtype)

        def run() -> Any:
            value = given
            for weight, bias, pool in steps:
                value = ops._convolution_pointwise(
                    value, weight, bias, one, one, one, 1, "relu", [], ""
                )
                if pool:
                    value = torch.max_pool2d(value, 2)
            return ops._linear_pointwise(value.flatten(1), head, zero, "none", [], "")

        return run

    return [call(x) for x in inputs]


def _plain(
    weights: Sequence[np.ndarray], pooled: Sequence[int], inputs: Sequence[np.ndarray]
) -> list[Callable[[], Any]]:
    """Return torch's own calls in bfloat16, on any CPU."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)
    last = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    kernels = [torch.from_numpy(array).to(**last) for array in weights[:-1]]
    head = torch.from_numpy(weights[-1]).to(torch.bfloat16)

    def run(value: Any) -> Any:
        with torch.inference_mode():
            for i, kernel in enumerate(kernels):
                value = F.conv2d(value, kernel, padding=1).relu_()
                if i in pooled:
                    value = F.max_pool2d(value, 2)
            return F.linear(value.flatten(1), head)

    given = [torch.from_numpy(x).to(**last) for x in inputs]
    return [lambda x=x: run(x) for x in given]


def _quantised(
    weights: Sequence[np.ndarray],
    pooled: Sequence[int],
    engine: str,
    inputs: Sequence[np.ndarray],
) -> list[Callable[[], Any]]:
    """Return torch's network of int8, its scales found on the first input."""
    import torch
    from torch import nn
    from torch.ao import quantization as ao

    torch.set_num_threads(1)
    torch.backends.quantized.engine = engine
    layers: list[nn.Module] = [ao.QuantStub()]
    fused = []
    for i, array in enumerate(weights[:-1]):
        conv = nn.Conv2d(array.shape[1], array.shape[0], 3, padding=1)
        conv.weight.data.copy_(torch.from_numpy(array))
        nn.init.zeros_(conv.bias) if conv.bias is not None else None
        fused.append([str(len(layers)), str(len(layers) + 1)])
        layers += [conv, nn.ReLU(), *([nn.MaxPool2d(2)] if i in pooled else [])]
    head = nn.Linear(weights[-1].shape[1], weights[-1].shape[0])
    head.weight.data.copy_(torch.from_numpy(weights[-1]))
    nn.init.zeros_(head.bias)
    model = nn.Sequential(*layers, nn.Flatten(), head, ao.DeQuantStub()).eval()
    given = [torch.from_numpy(x).contiguous(memory_format=torch.channels_last) for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao.quantization announces its successor
        model = ao.fuse_modules(model, fused)
        model.qconfig = ao.get_default_qconfig(engine)  # type: ignore[assignment]
        observed = ao.prepare(model)
        observed(given[0])
        whole = ao.convert(observed)
    return [lambda x=x: whole(x) for x in given]


def _onnxruntime(
    weights: Sequence[np.ndarray], pooled: Sequence[int], inputs: Sequence[np.ndarray]
) -> list[Callable[[], Any]]:
    """Return onnxruntime's network of int8, its scales found on the first input."""
    import tempfile

    import onnx
    import onnxruntime
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        """Gives one input."""

        def __init__(self) -> None:
            self.left = iter([{"x": inputs[0]}])

        def get_next(self) -> Any:
            return next(self.left, None)

    with tempfile.TemporaryDirectory(prefix="lutcc-bench-") as folder:
        plain, narrow = Path(folder) / "plain.onnx", Path(folder) / "int8.onnx"
        onnx.save(_onnx_model(weights, pooled, inputs[0].shape), str(plain))
        quantization.quantize_static(
            str(plain),
            str(narrow),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            str(narrow), options, providers=["CPUExecutionProvider"]
        )
    return [lambda x=x: session.run(None, {"x": x}) for x in inputs]


def _onnx_model(
    weights: Sequence[np.ndarray], pooled: Sequence[int], shape: tuple[int, ...]
) -> Any:
    """Return the network in ONNX's form, float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, arrays, value = [], {}, "x"
    names = (f"v{i}" for i in itertools.count())

    def add(kind: str, *operands: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, operands, [name := next(names)], **attributes))
        return name

    for i, weight in enumerate(weights[:-1]):
        arrays[f"w{i}"], arrays[f"b{i}"] = weight, np.zeros(len(weight), np.float32)
        value = add("Relu", add("Conv", value, f"w{i}", f"b{i}", pads=[1, 1, 1, 1]))
        if i in pooled:
            value = add("MaxPool", value, kernel_shape=[2, 2], strides=[2, 2])
    arrays["head"], arrays["bias"] = weights[-1], np.zeros(len(weights[-1]), np.float32)
    value = add("Gemm", add("Flatten", value), "head", "bias", transB=1)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "network",
        [info("x", TensorProto.FLOAT, ["n", *shape[1:]])],
        [info(value, TensorProto.FLOAT, ["n", len(weights[-1])])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
