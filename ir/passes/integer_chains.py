"""Look-ups after look-ups in integers: trees compare the sums themselves.

A tree behind a look-up layer asks whether ``y = activation(fma(float32(acc), scale, offset)) > t``.
Per column y is a function of one integer, so the answer is known for every sum that the table can
give: exactly, rounding included. Where y never falls it is ``acc > T`` for an integer T. Where it
never rises (a negative scale, of a batch norm say), the column's table is mirrored first. Where it
turns (GELU), the answer is whether acc is outside an interval, or inside one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lutcc.ir.module import Module, Operation
from lutcc.ir.passes.base import NewConstants
from lutcc.ir.passes.chain_notes import LookupNote, notes_of
from lutcc.ir.passes.chains import Chain, constants_of, find_chains
from lutcc.ir.passes.choose_accumulate import bounded
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.types import Array


class IntegerChains:
    """Let trees behind look-ups compare integer sums, where that gives the same codes."""

    def __call__(self, module: Module) -> Module:
        """Return the module with thresholds in the sums' domain; only main is looked at."""
        return self.noting(module, [])

    def noting(self, module: Module, notes: list[LookupNote]) -> Module:
        """Return the same; ``notes`` takes what becomes of the sums of each look-up."""
        found = find_chains(module)
        notes += notes_of(module, found)
        made, arrays = NewConstants(module), constants_of(module)
        body = list(module.main.body)
        for chain in found.chains:
            lut = arrays[chain.sums.operands[1].name]
            body = [new for op in body for new in _rewritten(op, chain, lut, made)]
        main = replace(module.main, body=tuple(body))
        others = tuple(f for f in module.functions if f.name != "main")
        return DeadCode()(Module((main, *others), made.arrays))


def _rewritten(op: Operation, chain: Chain, lut: Array, made: NewConstants) -> list[Operation]:
    """Return what becomes of an operation where the trees of a chain read its sums."""
    mapped = chain.mapped
    if op == chain.sums and mapped.mirrored.any():
        flipped = np.where(mapped.mirrored, ~lut, lut)  # 255 - e, or -1 - e
        table = made.make(f"{op.operands[1].name}_mirrored", flipped)
        operands = (op.operands[0], table.results[0])
        return [table, bounded(replace(op, operands=operands), flipped)]
    if op in chain.trees:
        tables = mapped.tables[chain.trees.index(op)]
        names = ("sums",) if len(tables) == 1 else ("starts", "widths")
        values = [
            made.make(f"{op.operands[2].name}_{name}", table)
            for name, table in zip(names, tables, strict=True)
        ]
        operands = (chain.sums.results[0], op.operands[1], *(v.results[0] for v in values))
        opcode = "tree_encode" if len(tables) == 1 else "interval_encode"
        return [*values, replace(op, opcode=opcode, operands=operands)]
    return [op]
