"""Regions after the passes, and what becomes of the look-ups in them."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from lutcc.codegen.lower import prepare
from lutcc.frontend.checks import layer_of, op_name
from lutcc.frontend.partition import Region
from lutcc.frontend.relax.kernels import with_whole_rows
from lutcc.ir.module import Module
from lutcc.ir.passes import LookupNote


def prepared_region(region: Region, notes: list[LookupNote]) -> Module:
    """Return a region's module after the passes; ``notes`` takes what becomes of its look-ups."""
    told: list[LookupNote] = []
    module = prepare(with_whole_rows(region.module), told)
    outputs = dict(zip((v.name for v in region.module.main.returns), region.outputs, strict=True))
    for note in told:
        reason = _outside(outputs[note.result], region) if note.result in outputs else ""
        if reason:
            note = replace(note, reason=reason, cut=True)
        notes.append(replace(note, region=region.name))
    return module


def _outside(node: Node, region: Region) -> str:
    """Return which layers outside read an output of a region, if any do."""
    names: dict[str, None] = {}
    for user in node.users:
        if user in region.nodes or user.op == "output":
            continue
        layer = layer_of(user)
        opcode = op_name(user).removeprefix("aten.").partition(".")[0]
        names[opcode if layer.startswith("op ") else f"{opcode} of {layer}"] = None
    if not names:
        return ""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    verb = "reads" if len(names) == 1 else "read"
    return f"{', '.join(list(names)[:2])}{more} {verb} it outside the region"
