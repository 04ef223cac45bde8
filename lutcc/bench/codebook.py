"""Products with codebook weights against what a user has: onnxruntime's 4-bit weights, dense torch.

Everything runs on one core, in turns: lutcc in a process without torch, onnxruntime's MatMulNBits
(blocks of 32 and 128 weights, int8 arithmetic: its fastest) in another, torch in a third. *Hot*:
one call after the other. *Cold*: before each call, 64 MiB are written, so that weights come from
memory. Beside them stands the time to read the packed indices once, which no
product of one row can beat.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutcc.bench.baselines import ONEDNN, PRECISIONS, runs_here, write_chain
from lutcc.bench.codebook_kernels import matmul_module, random_codebooks
from lutcc.bench.compare import Comparison, Subject
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import OnRow, collected
from lutcc.bench.timing import Timing
from lutcc.runtime import cpu


@dataclass(frozen=True, slots=True)
class Shape:
    """A product of (N, K) with M rows of weights, at some bits an index."""

    rows: int
    columns: int
    outputs: int
    bits: tuple[int, ...] = (4,)

    def __str__(self) -> str:
        return f"{self.rows} x {self.columns} x {self.outputs}"


SHAPES = (
    Shape(1, 4096, 4096, (4, 3, 2)),
    Shape(1, 4096, 11008),
    Shape(8, 4096, 11008),
    Shape(512, 4096, 4096),
)
QUICK_SHAPES = (Shape(1, 1024, 1024, (4, 2)), Shape(8, 1024, 1024), Shape(64, 1024, 1024))
#: Block sizes of onnxruntime's MatMulNBits.
BLOCKS = (32, 128)
#: Rows up to which calls are also timed cold.
COLD_ROWS = 8
_INPUT = "x"


def computes() -> tuple[str, ...]:
    """Return the arithmetic that is worth timing: bfloat16 where the CPU multiplies it."""
    return ("int8", "float32", "bfloat16") if "avx512_bf16" in cpu.flags() else ("int8", "float32")


def has_onnxruntime() -> bool:
    """Return whether onnxruntime can be compared with."""
    return all(importlib.util.find_spec(name) is not None for name in ("onnxruntime", "onnx"))


def bench_codebook(
    options: BenchOptions,
    on_row: OnRow = None,
    shapes: Sequence[Shape] | None = None,
) -> list[dict[str, Any]]:
    """Measure every shape of :data:`SHAPES`, or the given ones.

    Returns
    -------
    list
        A row for each shape: ``hot`` and ``cold`` (None for many rows), the times (seconds) of all
        candidates; ``index_bytes`` by bits; ``threads``, the times on one and two cores where the
        indices stay in the last cache, None where there is one core; ``onnxruntime``, whether it
        was there.
    """
    return collected(_rows(options, shapes or (QUICK_SHAPES if options.quick else SHAPES)), on_row)


def _rows(options: BenchOptions, shapes: Sequence[Shape]) -> Iterator[dict[str, Any]]:
    for shape in shapes:
        with tempfile.TemporaryDirectory(prefix="lutcc-bench-") as name, Comparison() as compare:
            folder, rng = Path(name), np.random.default_rng(options.seed)
            x = rng.normal(size=(shape.rows, shape.columns)).astype(np.float32)
            compare.add_input(_INPUT, x)
            subjects, pair, nbytes = _own(compare, folder, shape, options, rng)
            subjects += _onnxruntime(compare, shape, options.seed)
            subjects += _dense(compare, folder, shape, options.seed)
            hot = compare.measure(subjects, _INPUT, seconds=options.seconds, rounds=options.rounds)
            cold = None
            if shape.rows <= COLD_ROWS:
                cold = compare.measure_cold(subjects, _INPUT, rounds=options.rounds)
            threads = None
            if pair is not None:
                threads = compare.measure(
                    pair, _INPUT, seconds=options.seconds, rounds=options.rounds
                )
        yield {
            "N": shape.rows, "K": shape.columns, "M": shape.outputs, "bits": list(shape.bits),
            "isa": cpu.best_isa() or "", "index_bytes": nbytes,
            "onnxruntime": has_onnxruntime(), "bf16_native": "avx512_bf16" in cpu.flags(),
            "hot": _json(hot), "cold": None if cold is None else _json(cold),
            "threads": None if threads is None else _json(threads),
        }  # fmt: skip


def _json(times: dict[str, Timing]) -> dict[str, Any]:
    return {label: asdict(timing) for label, timing in times.items()}


def _own(
    compare: Comparison,
    folder: Path,
    shape: Shape,
    options: BenchOptions,
    rng: np.random.Generator,
) -> tuple[list[Subject], list[Subject] | None, dict[str, int]]:
    """Compile lutcc's products; also the pair to compare one core with two, and index bytes."""
    from lutcc.codegen.targets import parse_targets
    from lutcc.compiler import compile_module

    subjects, pair, sizes = [], None, {}
    usable = _usable_cores()
    for bits in shape.bits:
        weights = random_codebooks(rng, shape.outputs, shape.columns, bits)
        sizes[str(bits)] = int(weights["indices"].nbytes)
        for compute in computes():
            module = matmul_module(weights, shape.columns, bits, compute)
            path = folder / f"{bits}-{compute}.lutcc"
            compile_module(module, parse_targets(options.isa or "host")).save(path)
            label = f"lutcc {bits} bits {compute}"
            subject, _ = compare.add_artifact(label, path)
            subjects.append(subject)
            if compute == "int8" and pair is None and len(usable) > 1:
                both, _ = compare.add_artifact("two cores", path, cores=usable[-2:])
                pair = [Subject("one core", subject.worker, subject.name), both]
        nbytes, read = sizes[str(bits)], f"lutcc {bits} bits int8"
        subjects.append(compare.add_read(f"read {bits} bits", _INPUT, nbytes, of=read))
    return subjects, pair, sizes


def _usable_cores() -> list[int]:
    """Return the cores that this process, which is bound to one, could run on."""
    bound = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    usable = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, bound)
    return usable


def _onnxruntime(compare: Comparison, shape: Shape, seed: int) -> list[Subject]:
    if not has_onnxruntime():
        return []
    sizes = {"columns": shape.columns, "outputs": shape.outputs, "seed": seed}
    return [
        compare.add_blocked(f"onnxruntime 4 bits block {block}", _INPUT, block=block, **sizes)
        for block in BLOCKS
        if shape.columns % block == 0
    ]


def _dense(compare: Comparison, folder: Path, shape: Shape, seed: int) -> list[Subject]:
    """Load a layer in every precision."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape.outputs, shape.columns, generator=draw)
    path = folder / "dense.safetensors"
    write_chain(str(path), [(weight, None)])
    chosen = [p for p in (*PRECISIONS, *ONEDNN) if p != "bf16_cast" and runs_here(p)]
    return compare.add_dense("dense", path, chosen)


def blocked_product(
    columns: int, outputs: int, block: int, seed: int, x: np.ndarray
) -> Callable[[], Any]:
    """Return a call of onnxruntime's MatMulNBits at 4 bits, on one thread, on random weights."""
    import onnx
    import onnxruntime

    rng = np.random.default_rng(seed)
    blocks = columns // block
    packed = rng.integers(0, 256, (outputs, blocks, block // 2)).astype(np.uint8)
    scales = rng.uniform(0.01, 0.02, outputs * blocks).astype(np.float32)
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", "packed", "scales"], ["y"], domain="com.microsoft",
        K=columns, N=outputs, bits=4, block_size=block, accuracy_level=4,
    )  # fmt: skip
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [node],
        "product",
        [onnx.helper.make_tensor_value_info("x", kind, ["n", columns])],
        [onnx.helper.make_tensor_value_info("y", kind, ["n", outputs])],
        [onnx.numpy_helper.from_array(packed, "packed"),
         onnx.numpy_helper.from_array(scales, "scales")],
    )  # fmt: skip
    versions = [
        onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)
    ]  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=versions, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x))
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((len(x), outputs), np.float32))
    binding.bind_ortvalue_output("y", y)
    return lambda: session.run_with_iobinding(binding)
