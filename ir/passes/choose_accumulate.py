"""Exact or averaged accumulation, chosen from a proven overflow bound and an error budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutcc.ir.module import Module, Operation
from lutcc.ir.ops.lut_accumulate import proven_bound
from lutcc.ir.passes.base import Editor, rewrite
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.types import Array


def averaging_bias(ncodebooks: int, upcast_every: int) -> float:
    """Return the expected sum of the rounding errors of "mean", in units of its accumulator.

    Every ``(a + b + 1) >> 1`` rounds up by a half if ``a + b`` is odd: 1/4 on average, 1/2 at most.
    A full group of U entries has log2(U) levels and so the bias log2(U) / 4 (over all groups, and
    times U: the C log2(U) / 4 of the MADDNESS code); a node over padding alone has none. The error
    itself lies between 0 and twice the bias.

    Source: Blalock and Guttag, "Multiplying matrices without multiplying", appendix.

    Examples
    --------
    >>> averaging_bias(32, 16)
    2.0
    >>> averaging_bias(1, 2)
    0.25
    """

    def group(entries: int, width: int) -> float:
        if entries == 0 or width == 1:
            return 0.0
        left = min(entries, width // 2)
        return (group(left, width // 2) + group(entries - left, width // 2)) / 2 + 0.25

    full, rest = divmod(ncodebooks, upcast_every)
    return full * group(upcast_every, upcast_every) + group(rest, upcast_every)


def averaging_error(lut: Array, upcast_every: int) -> float:
    """Return a bound of |corrected mean - exact| relative to the range of the exact sums.

    Parameters
    ----------
    lut
        (C, K, M) uint8.
    upcast_every
        U.

    Returns
    -------
    float
        ``U * averaging_bias`` over the largest range of any output; infinity if no output varies.

    Examples
    --------
    >>> lut = np.zeros((4, 2, 1), np.uint8)
    >>> lut[:, 1] = 100
    >>> averaging_error(lut, 4)  # 4 * 0.5 of 400
    0.005
    """
    spread = lut.max(axis=1).astype(np.int64) - lut.min(axis=1)
    largest = int(spread.sum(axis=0).max())
    return (
        upcast_every * averaging_bias(lut.shape[0], upcast_every) / largest if largest else np.inf
    )


def bounded(sums: Operation, lut: Array) -> Operation:
    """Return a ``lut_accumulate`` with the ``bound`` of its table; float32 tables have none.

    Parameters
    ----------
    sums
        The operation.
    lut
        (C, K, M), its table.
    """
    if lut.dtype == np.float32:
        return sums
    every = int(sums.attr("upcast_every"))  # type: ignore[arg-type]
    return sums.with_attrs(bound=proven_bound(lut, str(sums.attr("accumulate")), every))


@dataclass(frozen=True, slots=True)
class ChooseAccumulate:
    """Prove the largest sum of every constant integer table, and choose how it is summed.

    Every ``lut_accumulate`` over a constant table gets the attribute ``bound``: a schedule may sum
    in 16 bits where it is at most 65535. What asks for "mean" keeps it. What asks for "exact"
    becomes "mean" only if the proven error stays within the error budget and its one reader is a
    ``lut_dequantize`` whose constants can take up the factor U and the correction of the bias.

    Parameters
    ----------
    error_budget
        Largest allowed |averaged - exact|, relative to the range of the sums; 0 keeps exact sums.
    upcast_every
        Group size U that averaging would use, a power of two in 2..256.

    Examples
    --------
    >>> from lutcc.ir import Builder, TensorType
    >>> b = Builder("main")
    >>> codes = b.param("codes", TensorType((8, 2), "uint8"))
    >>> lut = b.constant("lut", np.full((2, 4, 1), 7, np.uint8))
    >>> b.returns(b.op("lut_accumulate", codes, lut))
    >>> ChooseAccumulate()(b.module()).main.body[-1].attr("bound")
    14
    """

    error_budget: float = 0.0
    upcast_every: int = 16

    def __call__(self, module: Module) -> Module:
        """Return the module with bounds recorded."""
        return rewrite(module, (self._average, self._record_bound), DeadCode())

    def _record_bound(self, editor: Editor, op: Operation) -> bool:
        if op.opcode != "lut_accumulate":
            return False
        lut = editor.array(op.operands[1])
        known = op if lut is None else bounded(op, lut)
        if known == op:
            return False
        editor.emit(known)
        return True

    def _average(self, editor: Editor, op: Operation) -> bool:
        if op.opcode != "lut_dequantize" or self.error_budget <= 0:
            return False
        sums = editor.sole_producer(op.operands[0], "lut_accumulate")
        constants = editor.arrays(*op.operands[1:])
        lut = None if sums is None else editor.array(sums.operands[1])
        if sums is None or constants is None or lut is None or lut.dtype != np.uint8:
            return False
        if sums.attr("accumulate") != "exact":
            return False
        if averaging_error(lut, self.upcast_every) > self.error_budget:
            return False
        scale, offset = (a.astype(np.float64) for a in constants)
        with np.errstate(all="ignore"):
            wide = (scale * self.upcast_every).astype(np.float32)
            bias = averaging_bias(lut.shape[0], self.upcast_every)
            shifted = (offset - scale * self.upcast_every * bias).astype(np.float32)
        if not (np.isfinite(wide).all() and np.isfinite(shifted).all()):
            return False
        acc = editor.fresh(sums.result.name, sums.result.type)
        editor.emit_op(
            "lut_accumulate",
            sums.operands,
            (acc,),
            accumulate="mean",
            upcast_every=self.upcast_every,
            bound=proven_bound(lut, "mean", self.upcast_every),
        )
        values = (
            editor.emit_constant(editor.ref(op.operands[1]), wide),
            editor.emit_constant(editor.ref(op.operands[2]), shifted),
        )
        editor.emit(Operation(op.opcode, (acc, *values), op.results, op.attrs))
        return True
