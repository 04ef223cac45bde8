"""Helpers of the frontend's tests: comparison with torch, and plain kernels for regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lutcc import ir
from lutcc.frontend import Imported, import_torch
from lutcc.ir.module import Module
from lutcc.ir.types import Sym


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def assert_interpreted() -> Callable[..., Imported]:
    """Import a model, and compare the interpreter with torch on several inputs."""

    def check(model: torch.nn.Module, *inputs: Any, atol: float = 2e-5) -> Imported:
        model.eval()
        imported = import_torch(model, inputs[0])
        assert imported.kind == "ir", imported.notes
        assert imported.module is not None
        ir.verify(imported.module)
        for arguments in inputs:
            arguments = arguments if isinstance(arguments, tuple) else (arguments,)
            with torch.no_grad():
                expected = model(*arguments)
            expected = expected if isinstance(expected, tuple) else (expected,)
            results = ir.interpret(imported.module, [a.numpy() for a in arguments])
            assert len(results) == len(expected)
            for result, reference, port in zip(results, expected, imported.outputs, strict=True):
                assert result.shape == tuple(reference.shape)
                assert result.dtype.name == port.dtype
                np.testing.assert_allclose(result, reference.numpy(), rtol=1e-5, atol=atol)
        return imported

    return check


@pytest.fixture
def run_relax(tmp_path: Any) -> Callable[..., list[list[np.ndarray]]]:
    """Build a mixed model, and return the outputs of each ISA level's library on each input."""

    def run(
        imported: Imported,
        inputs: Sequence[tuple[torch.Tensor, ...]],
        isas: Sequence[str] = ("avx2",),
        **options: Any,
    ) -> list[list[np.ndarray]]:
        import tvm
        from tvm import relax

        from lutcc.frontend.relax import build_mixed

        build = build_mixed(imported, isas, tmp_path, **options)
        results = []
        for isa in isas:
            machine = relax.VirtualMachine(
                tvm.runtime.load_module(str(build.so_paths[isa])), tvm.cpu()
            )
            params = [tvm.runtime.tensor(a) for a in build.params.values()]
            for arguments in inputs:
                tensors = [tvm.runtime.tensor(a.numpy()) for a in arguments]
                answer = machine["main"](*tensors, *params)
                parts = [answer] if hasattr(answer, "numpy") else list(answer)
                results.append([part.numpy() for part in parts])
        return results

    return run


@pytest.fixture
def te_region() -> Callable[[str, Module, str, object], Any]:
    """Return a region compiler that writes plain loops, to test the frontend by itself."""
    return _te_region


def _te_region(name: str, module: Module, isa: str, choice: object = None) -> Any:
    from tvm import te, tirx

    from lutcc.frontend.relax.kernels import RegionKernel, with_whole_rows
    from lutcc.frontend.relax.nests import loop_nest
    from lutcc.ir.passes.erase_layouts import EraseLayouts
    from lutcc.ir.passes.inline_calls import InlineCalls

    module = EraseLayouts()(InlineCalls()(with_whole_rows(module)))
    n = tirx.Var("n", "int64")
    total = sum(a.size for a in module.constants.values())
    blob = te.placeholder((total,), "float32", name="blob")
    parts, offsets, position = [], {}, 0
    for key, array in module.constants.items():
        offsets[key] = position
        parts.append((array.T if array.ndim == 2 else array).ravel())
        position += array.size
    values, refs = {}, {}
    for param in module.main.params:
        shape = tuple(n * d.factor if isinstance(d, Sym) else d for d in param.type.shape)
        values[param.name] = te.placeholder(shape, param.type.dtype, name=param.name)
    for op in module.main.body:
        out = op.results[0].name
        if op.opcode == "constant":
            refs[out] = offsets[str(op.attr("ref"))]
        elif op.opcode == "linear":
            values[out] = _te_linear(values[op.operands[0].name], blob, op, refs)
        elif op.opcode == "relu":
            values[out] = _te_map(
                lambda a: tirx.max(a, tirx.const(0.0, "float32")), values[op.operands[0].name]
            )
        elif op.opcode == "add":
            values[out] = _te_map(lambda a, b: a + b, *(values[v.name] for v in op.operands))
        else:
            raise NotImplementedError(op.opcode)
    arguments = [*(values[p.name] for p in module.main.params), blob]
    function = te.create_prim_func(
        [*arguments, *(values[v.name] for v in module.main.returns)], index_dtype_override="int64"
    )
    nest = loop_nest(function, isa)
    assert nest is not None
    function = nest.scheduled.without_attr("global_symbol")
    return RegionKernel(function, np.concatenate(parts).astype(np.float32), ({"stage": name},))


def _te_linear(x: Any, blob: Any, op: Any, refs: dict[str, int]) -> Any:
    from tvm import te

    width, depth = op.operands[1].type.shape
    weight, bias = (refs[v.name] for v in op.operands[1:])
    matrix = te.compute((depth, width), lambda i, j: blob[weight + i * width + j])
    k = te.reduce_axis((0, depth))
    product = te.compute((x.shape[0], width), lambda i, j: te.sum(x[i, k] * matrix[k, j], axis=k))
    return te.compute(product.shape, lambda i, j: product[i, j] + blob[bias + j])


def _te_map(formula: Callable[..., Any], *tensors: Any) -> Any:
    from tvm import te

    return te.compute(tensors[0].shape, lambda *i: formula(*(t(*i) for t in tensors)))
