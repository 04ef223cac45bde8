"""How an op becomes a module, and a module a kernel that is ready to run."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
import torch

from lutcc import ir
from lutcc.ir import Attr
from lutcc.runtime.kernel import LookupKernel, ThreadChoice
from lutcc.runtime.signature import spec_from_any

#: Libraries kept; the least recently used goes first.
MAX_LIBRARIES = 64


def module_of(
    opcode: str,
    attrs: tuple[tuple[str, Attr], ...],
    activations: Sequence[ir.TensorType],
    tables: Sequence[np.ndarray | ir.TensorType],
) -> ir.Module:
    """Return a module of one op; tables given as types become parameters, as arrays constants."""
    builder = ir.Builder("main")
    operands = []
    for operand, value in zip(ir.OPS[opcode].operands, (*activations, *tables), strict=True):
        make = builder.constant if isinstance(value, np.ndarray) else builder.param
        operands.append(make(operand.name, value))  # type: ignore[arg-type]
    builder.returns(*builder.ops(opcode, *operands, **dict(attrs)))  # type: ignore[arg-type]
    return builder.module()


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Return the tensor's memory as an array."""
    tensor = tensor.detach().resolve_neg()
    if tensor.dtype is torch.bfloat16:  # NumPy itself has no such type
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def build(
    module: ir.Module, isa: str, libraries: OrderedDict[str, bytes]
) -> tuple[LookupKernel, bool]:
    """Lower a module, build it (unless ``libraries`` has its code) and open it.

    Returns
    -------
    tuple
        The kernel, and whether it was built.
    """
    from lutcc import codegen

    lowered = codegen.lower(module, isa)
    program = json.loads(json.dumps(lowered.program.to_json()))
    code = hashlib.sha256(
        json.dumps([_code_key(lowered.module), program], sort_keys=True).encode()
    ).hexdigest()
    library = libraries.get(code)
    built = library is None
    if library is None:
        with tempfile.TemporaryDirectory(prefix="lutcc-") as folder:
            library = Path(codegen.build([lowered], folder)[isa]).read_bytes()
        libraries[code] = library
        while len(libraries) > MAX_LIBRARIES:
            libraries.popitem(last=False)
    else:
        libraries.move_to_end(code)
    cost = ir.cost(lowered.module, n=1024).total
    work = {
        "lookups": cost.lookups / 1024,
        "flops": cost.flops / 1024,
        "bytes": (cost.bytes_read - cost.table_bytes + cost.bytes_written) / 1024,
    }
    return LookupKernel(
        program,
        library,
        f"kernels-{isa}.so",
        lowered.module.constants,
        [spec_from_any(value, "inputs") for value in program["inputs"]],
        [spec_from_any(value, "outputs") for value in program["outputs"]],
        choice=ThreadChoice(),
        work_per_row=work,
    ), built


def _code_key(module: ir.Module) -> str:
    """Return the text of the module's operations and types without its constants' data."""
    functions = [
        [
            f.name,
            [str(v) for v in f.params],
            [
                [
                    op.opcode,
                    [str(v) for v in op.operands],
                    [str(v) for v in op.results],
                    repr(op.attrs),
                ]
                for op in f.body
            ],
            [str(v) for v in f.returns],
        ]
        for f in module.functions
    ]
    return json.dumps(functions)
