"""The IR reference, generated from the op table and the pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import fields, is_dataclass

import numpy as np

from lutcc.ir.builder import Builder
from lutcc.ir.module import Module
from lutcc.ir.ops import OPS
from lutcc.ir.passes import PIPELINE, Pass
from lutcc.ir.printer import to_text
from lutcc.ir.registry import Registry
from lutcc.ir.spec import AttrSpec, OpDef, Operand
from lutcc.ir.types import DTYPES, Layout, Sym, TensorType

_LOWERING = {
    "kernel": "a schedule of its own, `schedules/x86/{name}.py`",
    "data_movement": "the shared schedule `schedules/x86/data_movement.py`",
    "structural": "nothing: it shapes the program",
    "folded": "nothing: a pass folds it away",
    "training": "nothing: it belongs to training and runs as a torch operator",
}


_INTRODUCTION = """# IR reference

This page is generated from the op table (`lutcc.ir.docs`). A module holds functions, of which
`main` is run, and constants; a function is a straight line of operations. `lutcc.ir.to_text` writes
a module and `lutcc.ir.parse` reads it back; `lutcc.ir.interpret` runs it in NumPy and defines what
it computes.
"""


def op_table_markdown(registry: Registry = OPS) -> str:
    """Return the whole IR reference as Markdown: types, ops, passes and the text form.

    Examples
    --------
    >>> op_table_markdown().splitlines()[0]
    '# IR reference'
    """
    parts = [
        _INTRODUCTION,
        "## Types\n\n" + types_markdown(),
        "## Ops\n\n" + ops_markdown(registry),
        "## Passes\n\nBefore it is lowered, a module goes through:\n\n" + passes_markdown(),
        "## Text form\n\n```\n" + to_text(_example()) + "```\n",
    ]
    return "\n".join(parts)


def _example() -> Module:
    """Return a module small enough to print."""
    builder = Builder("main")
    x = builder.param("x", TensorType((Sym("n"), 3), "float32"))
    splitdims = builder.constant("splitdims", np.array([[0], [2]], np.int32))
    splitvals = builder.constant("splitvals", np.array([[0, 0.5], [0, -1]], np.float32))
    codes = builder.op("tree_encode", x, splitdims, splitvals)
    lut = builder.constant("lut", np.array([[[0], [7]], [[3], [1]]], np.uint8))
    acc = builder.op("lut_accumulate", codes, lut)
    scale = builder.constant("scale", np.array([0.1], np.float32))
    offset = builder.constant("offset", np.array([-0.4], np.float32))
    builder.returns(builder.op("lut_dequantize", acc, scale, offset, activation="relu"))
    return builder.module()


def ops_markdown(registry: Registry = OPS) -> str:
    """Return the reference of all ops as Markdown: an overview table, then one section per op.

    Examples
    --------
    >>> ops_markdown().splitlines()[0]
    '| op | operands | results | what it does |'
    """
    lines = ["| op | operands | results | what it does |", "| --- | --- | --- | --- |"]
    for opdef in registry.values():
        operands = ", ".join(f"`{o.name}`" for o in opdef.operands) or "-"
        if opdef.variadic:
            operands = "any"
        results = ", ".join(f"`{r}`" for r in opdef.results)
        link = f"[`{opdef.name}`](#{opdef.name})"
        lines.append(f"| {link} | {operands} | {results} | {_cell(opdef.summary)} |")
    for opdef in registry.values():
        lines.extend(["", *_op_section(opdef)])
    return "\n".join(lines) + "\n"


def _op_section(opdef: OpDef) -> list[str]:
    lines = [
        f"### {opdef.name}",
        "",
        opdef.summary,
        "",
        "**Definition.** " + _cell(opdef.definition),
        "",
    ]
    if opdef.operands:
        lines += ["| operand | shape | element type | what it holds |", "| --- | --- | --- | --- |"]
        lines += [_operand_row(operand) for operand in opdef.operands]
        lines.append("")
    if opdef.attrs:
        lines += ["| attribute | kind | default | what it says |", "| --- | --- | --- | --- |"]
        lines += [_attr_row(spec) for spec in opdef.attrs]
        lines.append("")
    exact = "bit-exact" if opdef.tolerance == 0 else f"relative tolerance {opdef.tolerance:g}"
    if opdef.exact is not None:
        exact += " (see the definition for what is bit-exact)"
    rows = "row-wise" if opdef.rowwise else "not row-wise"
    lowering = _LOWERING[opdef.lowering].format(name=opdef.name)
    cost = inspect.getdoc(opdef.cost) or ""
    lines += [
        f"* **Cost.** {_cell(cost)}",
        f"* **Backends.** {exact}; {rows}; becomes code through {lowering}.",
        f"* **Source.** {_cell(opdef.source)}.",
    ]
    return lines


def _operand_row(operand: Operand) -> str:
    if operand.shape is None:
        shape = "any"
    elif isinstance(operand.shape, str):
        shape = f"that of `{operand.shape[1:]}`"
    else:
        shape = "(" + ", ".join(operand.shape) + ("," if len(operand.shape) == 1 else "") + ")"
    dtype = operand.dtype
    dtype = f"that of `{dtype[1:]}`" if dtype.startswith("=") else dtype.replace("|", " or ")
    return f"| `{operand.name}` | {shape} | {dtype} | {_cell(operand.doc)} |"


def _attr_row(spec: AttrSpec) -> str:
    if spec.default is not None:
        default = f"`{spec.default!r}`"
    else:
        default = "may be absent" if spec.optional else "must be given"
    doc = spec.doc
    if spec.choices:
        doc += "; one of " + ", ".join(f"`{c}`" for c in spec.choices)
    if spec.minimum is not None and spec.maximum is not None:
        doc += f"; {spec.minimum}..{spec.maximum}"
    elif spec.minimum is not None:
        doc += f"; at least {spec.minimum}"
    return f"| `{spec.name}` | {spec.kind} | {default} | {_cell(doc)} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")


def passes_markdown(pipeline: Sequence[Pass] = PIPELINE) -> str:
    """Return the reference of the pipeline as Markdown: each pass with its options, in order.

    Examples
    --------
    >>> passes_markdown().splitlines()[0]
    '1. **InlineCalls**'
    """
    lines: list[str] = []
    for index, step in enumerate(pipeline, start=1):
        options = (
            ", ".join(f"`{f.name}={getattr(step, f.name)!r}`" for f in fields(step))
            if is_dataclass(step)
            else ""
        )
        text = inspect.getdoc(type(step)) or ""
        body = text.split("\nParameters\n")[0].split("\nExamples\n")[0].strip()
        lines.append(f"{index}. **{type(step).__name__}**" + (f" ({options})" if options else ""))
        lines.extend(["", *("   " + line if line else "" for line in body.splitlines()), ""])
    return "\n".join(lines).rstrip().replace("``", "`") + "\n"


def types_markdown() -> str:
    """Return the reference of types and layouts as Markdown.

    Examples
    --------
    >>> "row_blocked" in types_markdown()
    True
    """
    names = ", ".join(f"`{name}` ({size})" for name, size in DTYPES.items())
    parts = [f"Element types, and bytes per element: {names}."]
    for kind in (TensorType, Layout):
        doc = inspect.getdoc(kind) or ""
        parts.append(
            f"**{kind.__name__}.** " + doc.split("\nParameters\n")[0].split("\nRaises\n")[0]
        )
    return "\n\n".join(part.strip() for part in parts).replace("``", "`") + "\n"
