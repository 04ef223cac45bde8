"""What cannot be compiled, and how a node is named in messages."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node

from lutcc.errors import FrontendError

INPUT_DTYPES = {
    torch.float32: "float32",
    torch.uint8: "uint8",
    torch.int8: "int8",
    torch.int32: "int32",
    torch.int64: "int64",
    torch.bool: "bool",
}
_RANDOM = (
    "rand",
    "randn",
    "randint",
    "randperm",
    "bernoulli",
    "multinomial",
    "normal",
    "exponential",
)
_SAMPLING = (
    "column_row_scores",
    "channel_scores",
    "column_row_sample",
    "sampled_backward_linear",
    "sampled_backward_conv2d",
)
"""What sampled layers do in training mode only."""


def layer_of(node: Node) -> str:
    """Return the layer that made ``node``, by path and class, or else the node's own name.

    Examples
    --------
    >>> layer_of(node)
    "layer '1' (BatchNorm1d)"
    """
    stack = node.meta.get("nn_module_stack")
    if stack:
        path, kind = list(stack.values())[-1]
        name = path.removeprefix("L['self'].").removeprefix("L['self']")
        name = "" if name.startswith("_empty_nn_module_stack") else name
        kind = kind if isinstance(kind, str) else kind.__name__
        if name:
            return f"layer {name!r} ({kind.rsplit('.', 1)[-1]})"
    return f"op {node.name!r}"


def place_of(node: Node) -> str:
    """Return the layer that made ``node`` and the line of the model that called for it.

    Examples
    --------
    >>> place_of(node)
    "layer '1' (Odd), model.py:12 `return torch.linalg.qr(x)[0]`"
    """
    line = _source_line(node.meta.get("stack_trace"))
    return layer_of(node) + (f", {line}" if line else "")


def _source_line(trace: str | None) -> str | None:
    """Return file, number and text of the last line of a trace that is not torch's own."""
    found = re.findall(r'File "([^"]+)", line (\d+), in [^\n]+\n\s+([^\n]+)', trace or "")
    own = str(Path(torch.__file__).parent)
    for file, number, text in reversed(found):
        if not file.startswith((own, "<")):
            return f"{Path(file).name}:{number} `{text.strip()}`"
    return None


def op_name(node: Node) -> str:
    """Return the name of a node's op as torch prints it, such as ``aten.gelu.default``."""
    target = node.target
    return (
        str(target)
        if not callable(target) or isinstance(target, torch._ops.OpOverload)
        else target.__name__
    )


def refuse_training_and_random(program: ExportedProgram) -> None:
    """Refuse layers in training mode, and ops that draw random numbers.

    Raises
    ------
    FrontendError
        For the first one; the message names the place and the fix.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    for node in nodes:  # first, because some of these layers draw a seed
        if op_name(node).removeprefix("lutcc.").split(".")[0] in _SAMPLING:
            raise FrontendError(
                "a sampled layer is in training mode",
                where=layer_of(node),
                fix="call model.eval() before exporting: it computes exactly then",
            )
    for node in nodes:
        name = op_name(node)
        base = name.removeprefix("aten.").split(".")[0].rstrip("_")
        if name.startswith("aten.batch_norm.") or name.startswith("aten.native_batch_norm."):
            if node.args[5]:
                raise FrontendError(
                    "batch norm computes its statistics from the batch (training mode, or "
                    "track_running_stats=False), so "
                    "one row's result depends on the others",
                    where=layer_of(node),
                    fix="call model.eval() before exporting, and keep running statistics",
                )
        elif base in ("_native_batch_norm_legit_functional", "_native_batch_norm_legit"):
            raise FrontendError(
                "batch norm is in training mode",
                where=layer_of(node),
                fix="call model.eval() before exporting",
            )
        elif base in ("dropout", "feature_dropout", "alpha_dropout", "native_dropout"):
            rate = node.args[1] if len(node.args) > 1 else 0.5
            if (node.args[2] if len(node.args) > 2 else True) and rate:
                raise FrontendError(
                    "dropout is in training mode",
                    where=layer_of(node),
                    fix="call model.eval() before exporting",
                )
        elif name.startswith("aten.") and base.removesuffix("_like") in _RANDOM:
            raise FrontendError(
                f"{name} draws random numbers, which a compiled artifact does not",
                where=layer_of(node),
                fix="draw them outside the model and pass them as an input",
            )


def refuse_mutation(program: ExportedProgram) -> None:
    """Refuse models that write to their inputs, buffers or parameters.

    Raises
    ------
    FrontendError
        For the first one; the message names the place and the fix.
    """
    changed = (
        OutputKind.BUFFER_MUTATION,
        OutputKind.USER_INPUT_MUTATION,
        OutputKind.PARAMETER_MUTATION,
    )
    for spec in program.graph_signature.output_specs:
        if spec.kind in changed:
            kind = "input" if spec.kind == OutputKind.USER_INPUT_MUTATION else "buffer"
            raise FrontendError(
                f"the model changes {spec.target!r} while it runs, and an artifact keeps no state",
                where=f"{kind} {spec.target!r}",
                fix="call model.eval(), or pass the state as an input and return the new one",
            )


def _only_lutcc_reads_halves(node: Node) -> bool:
    """Tell whether a parameter is of half precision and only ops of lutcc read it: they take it."""
    return node.meta["val"].dtype in (torch.bfloat16, torch.float16) and all(
        op_name(user).startswith("lutcc.") for user in node.users
    )


def refuse_dtypes_and_devices(program: ExportedProgram) -> None:
    """Refuse inputs and parameters that lutcc does not compile.

    Raises
    ------
    FrontendError
        For the first one; the message names the place and the fix.
    """
    kinds = (InputKind.CUSTOM_OBJ, InputKind.TOKEN)
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op != "placeholder":
            continue
        spec, value = specs[node.name], node.meta.get("val")
        what = (
            f"input {node.name!r}"
            if spec.kind == InputKind.USER_INPUT
            else f"parameter {spec.target!r}"
        )
        if spec.kind in kinds or not isinstance(value, torch.Tensor):
            raise FrontendError(
                f"is a {type(value).__name__}, not a tensor",
                where=what,
                fix=(
                    "pass tensors only; bind other arguments with functools.partial or a "
                    "wrapper module"
                ),
            )
        narrow = spec.kind != InputKind.USER_INPUT and _only_lutcc_reads_halves(node)
        if value.dtype not in INPUT_DTYPES and not narrow:
            raise FrontendError(
                f"has dtype {str(value.dtype).removeprefix('torch.')}, and lutcc computes in "
                "float32",
                where=what,
                fix="call model.float() and pass float32 example inputs; lutcc.convert with "
                "recipes.Exact(compute='bfloat16') makes its layers multiply in bfloat16",
            )
        if value.device.type != "cpu":
            raise FrontendError(
                f"lives on {value.device}, and artifacts run on the CPU",
                where=what,
                fix="call model.cpu() and pass example inputs on the CPU",
            )
