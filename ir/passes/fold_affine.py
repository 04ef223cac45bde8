"""Batch norm, scale, shift and activations folded into tables, weights and epilogues."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutcc.ir.module import Module, Operation, Value
from lutcc.ir.ops import OPS
from lutcc.ir.passes.base import Editor, Rule, rewrite
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.passes.fold_constants import no_effect
from lutcc.ir.types import ROW_MAJOR, Array

#: Products whose sums are times units, plus a bias: their last operands.
_PRODUCTS = ("dense", "conv2d")


def _float32(*arrays: Array) -> list[Array] | None:
    """Round to float32; return None if something is not finite: then nothing is folded."""
    with np.errstate(all="ignore"):
        rounded = [np.asarray(a, np.float32) for a in arrays]
    return rounded if all(np.isfinite(a).all() for a in rounded) else None


def batch_norm_to_affine(editor: Editor, op: Operation) -> bool:
    """batch_norm(x) -> affine(x, gamma / sqrt(var + eps), beta - mean * scale)."""
    if op.opcode != "batch_norm":
        return False
    arrays = editor.arrays(*op.operands[1:])
    eps = op.attr("eps")
    if arrays is None or not isinstance(eps, float):
        return False
    gamma, beta, mean, var = (a.astype(np.float64) for a in arrays)
    with np.errstate(all="ignore"):
        scale = gamma / np.sqrt(var + eps)
        folded = _float32(scale, beta - mean * scale)
    if folded is None:
        return False
    name = op.result.name
    operands = (
        op.operands[0],
        editor.emit_constant(f"{name}.scale", folded[0]),
        editor.emit_constant(f"{name}.shift", folded[1]),
    )
    editor.emit_op("affine", operands, op.results)
    return True


def affine_into_producer(editor: Editor, op: Operation) -> bool:
    """affine(p(...)) -> p'(...), p = affine, lut_dequantize, linear or a float lut_accumulate.

    Of dense and conv2d it changes the units, and leaves the weights alone.
    """
    if op.opcode != "affine":
        return False
    constants = editor.arrays(*op.operands[1:])
    producer = editor.sole_producer(
        op.operands[0], "affine", "lut_dequantize", "linear", "lut_accumulate", *_PRODUCTS
    )
    if constants is None or producer is None:
        return False
    if producer.has_attr("activation") and producer.attr("activation") != "none":
        return False
    fixed = 2 if producer.opcode in _PRODUCTS else 1
    arrays = editor.arrays(*producer.operands[fixed:])
    if arrays is None:
        return False
    scale, shift = (a.astype(np.float64) for a in constants)
    wide = [a.astype(np.float64) for a in arrays]
    with np.errstate(all="ignore"):
        match producer.opcode:
            case "linear":
                folded = _float32(wide[0] * scale[:, None], wide[1] * scale + shift)
            case "lut_accumulate":
                table = wide[0] * scale
                table[0] += shift  # every row takes exactly one entry of the first table
                folded = _float32(table)
            case _:
                folded = _float32(wide[0] * scale, wide[1] * scale + shift)
    if folded is None:
        return False
    _emit_with_constants(editor, producer, op, folded, fixed)
    return True


def affine_into_linear(editor: Editor, op: Operation) -> bool:
    """linear(affine(x, s, t), W, b) -> linear(x, W * s, b + W t)."""
    if op.opcode != "linear":
        return False
    affine = editor.sole_producer(op.operands[0], "affine")
    constants = None if affine is None else editor.arrays(*affine.operands[1:])
    arrays = editor.arrays(*op.operands[1:])
    if affine is None or constants is None or arrays is None:
        return False
    scale, shift = (a.astype(np.float64) for a in constants)
    weight, bias = (a.astype(np.float64) for a in arrays)
    with np.errstate(all="ignore"):
        folded = _float32(weight * scale, bias + weight @ shift)
    if folded is None:
        return False
    moved = Operation("linear", (affine.operands[0], *op.operands[1:]), op.results, op.attrs)
    _emit_with_constants(editor, moved, op, folded)
    return True


def _emit_with_constants(
    editor: Editor, like: Operation, op: Operation, arrays: list[Array], fixed: int = 1
) -> None:
    """Emit ``like`` with new constants after its first operands, and with the results of ``op``."""
    values: list[Value] = []
    for old, array in zip(like.operands[fixed:], arrays, strict=True):
        values.append(editor.emit_constant(editor.ref(old), array))
    editor.emit(Operation(like.opcode, (*like.operands[:fixed], *values), op.results, like.attrs))


def activation_into_epilogue(editor: Editor, op: Operation) -> bool:
    """activation(p(...)) -> p(...) with its kind as attribute, and so for relu, where p takes it.

    p is lut_dequantize, linear or a product.
    """
    if op.opcode not in ("relu", "activation"):
        return False
    kind = "relu" if op.opcode == "relu" else str(op.attr("kind"))
    producer = editor.sole_producer(op.operands[0], "lut_dequantize", "linear", *_PRODUCTS)
    if producer is None or producer.attr("activation") != "none":
        return False
    if not any(s.name == "activation" and kind in s.choices for s in OPS[producer.opcode].attrs):
        return False
    if producer.result.type.layout != op.result.type.layout:
        return False
    fused = producer.with_attrs(activation=kind)
    editor.emit(Operation(fused.opcode, fused.operands, op.results, fused.attrs))
    return True


def activation_before_movement(editor: Editor, op: Operation) -> bool:
    """relu(reshape(x)) -> reshape(relu(x)), and so for activation, and for rows_to_nchw.

    That brings it towards what computes x.
    """
    if op.opcode not in ("relu", "activation") or op.result.type.layout != ROW_MAJOR:
        return False
    movement = editor.sole_producer(op.operands[0], "reshape", "rows_to_nchw")
    if movement is None:
        return False
    source = movement.operands[0]
    early = editor.fresh(op.result.name, source.type)
    editor.emit(Operation(op.opcode, (source,), (early,), op.attrs))
    editor.emit(Operation(movement.opcode, (early,), op.results, movement.attrs))
    return True


#: In this order at every operation, until none fires.
RULES: tuple[Rule, ...] = (
    batch_norm_to_affine,
    affine_into_producer,
    affine_into_linear,
    activation_into_epilogue,
    activation_before_movement,
    no_effect,
)


@dataclass(frozen=True, slots=True)
class FoldBatchNormAndAffine:
    """Fold batch norm into affine, affine into tables and weights, activations into epilogues.

    A producer is folded into only if nothing else reads its result, and only while all constants
    stay finite. Folding rounds once where the original rounded twice, so results may differ in the
    last places.

    Examples
    --------
    >>> from lutcc.ir import parse
    >>> m = parse('''lutcc.ir 1
    ... constant @w : float32[2, 1] = dense [1.0, 2.0]
    ... constant @b : float32[2] = dense [0.0, 1.0]
    ... func @main(%x: float32[n, 1]) {
    ...   %w = constant() {ref = "w"} : float32[2, 1]
    ...   %b = constant() {ref = "b"} : float32[2]
    ...   %h = linear(%x, %w, %b) : float32[n, 2]
    ...   %y = relu(%h) : float32[n, 2]
    ...   return %y }''')
    >>> [op.opcode for op in FoldBatchNormAndAffine()(m).main.body]
    ['constant', 'constant', 'linear']
    """

    def __call__(self, module: Module) -> Module:
        """Return the folded module."""
        return rewrite(module, RULES, DeadCode())
