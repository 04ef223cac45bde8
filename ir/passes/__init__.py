"""Passes: pure rewrites of a module, one file each, and the pipeline that lists them in order."""

from __future__ import annotations

from collections.abc import Sequence

from lutcc.ir.module import Module
from lutcc.ir.passes.assign_layouts import AssignLayouts
from lutcc.ir.passes.base import Pass
from lutcc.ir.passes.chain_notes import LookupNote
from lutcc.ir.passes.choose_accumulate import ChooseAccumulate, averaging_bias, averaging_error
from lutcc.ir.passes.dead_code import DeadCode
from lutcc.ir.passes.dead_columns import DeadColumns
from lutcc.ir.passes.erase_layouts import EraseLayouts
from lutcc.ir.passes.fold_affine import FoldBatchNormAndAffine
from lutcc.ir.passes.fold_constants import FoldConstants
from lutcc.ir.passes.fuse_images import FuseImages
from lutcc.ir.passes.fuse_rows import FuseRows
from lutcc.ir.passes.image_chains import ImageChains
from lutcc.ir.passes.inline_calls import InlineCalls
from lutcc.ir.passes.integer_chains import IntegerChains
from lutcc.ir.passes.lookup_convolutions import LookupConvolutions
from lutcc.ir.passes.pool_sums import PoolSums
from lutcc.ir.verifier import verify

#: What a module goes through before it is lowered, top to bottom. No pass folds the scale of a
#: ``hadamard`` into the blocks of the product after it: a kernel does that when it packs float32
#: blocks, in float64 and together with H itself, so that they are rounded once and not twice.
PIPELINE: tuple[Pass, ...] = (
    InlineCalls(),
    EraseLayouts(),
    FoldConstants(),
    FoldBatchNormAndAffine(),
    ChooseAccumulate(),
    LookupConvolutions(),
    ImageChains(),
    PoolSums(),
    IntegerChains(),
    DeadColumns(),
    FuseImages(),
    FuseRows(),
    AssignLayouts(),
    DeadCode(),
)


def run_pipeline(
    module: Module, passes: Sequence[Pass] = PIPELINE, notes: list[LookupNote] | None = None
) -> Module:
    """Run passes one after the other, verifying the module before the first and after each.

    ``notes`` takes what becomes of the sums of each look-up: whether they stay integers, and how
    many columns are computed.

    Raises
    ------
    VerifyError
        If the module is not valid, or a pass broke it (the message names the pass).

    Examples
    --------
    >>> from lutcc.ir import parse
    >>> m = parse('''lutcc.ir 1 func @main(%x: float32[n, 4]) {
    ...   %y = relu(%x) : float32[n, 4] return %y }''')
    >>> [f.name for f in run_pipeline(m).functions]
    ['main', 'rows0']
    """
    verify(module)
    for step in passes:
        if notes is not None and isinstance(step, IntegerChains | ImageChains | DeadColumns):
            module = step.noting(module, notes)
        else:
            module = step(module)
        verify(module)
    return module


__all__ = [
    "PIPELINE",
    "AssignLayouts",
    "ChooseAccumulate",
    "DeadCode",
    "DeadColumns",
    "EraseLayouts",
    "FoldBatchNormAndAffine",
    "FoldConstants",
    "FuseImages",
    "FuseRows",
    "ImageChains",
    "InlineCalls",
    "IntegerChains",
    "LookupConvolutions",
    "LookupNote",
    "Pass",
    "PoolSums",
    "averaging_bias",
    "averaging_error",
    "run_pipeline",
]
