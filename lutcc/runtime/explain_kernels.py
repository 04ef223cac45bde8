"""The part of ``artifact.explain()`` about the kernels of the variant that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lutcc.runtime.manifest import Variant


@dataclass(frozen=True, slots=True)
class KernelNote:
    """One kernel of the chosen variant: its stage, ops, configuration and where that came from."""

    stage: str
    ops: tuple[str, ...]
    config: Any
    source: str


def kernel_notes(variant: Variant, extra: Mapping[str, Any]) -> tuple[KernelNote, ...]:
    """Return the kernels of a variant: of its program, or (mixed models) of extra."""
    if variant.program is not None:
        records = variant.program["kernels"]
    else:
        listed = extra.get("kernels")
        records = listed.get(variant.isa, []) if isinstance(listed, dict) else []
    return tuple(
        KernelNote(
            str(record.get("stage", "")),
            tuple(map(str, record.get("ops", ()))),
            record.get("config", {}),
            str(record.get("source", "default")),
        )
        for record in records
        if isinstance(record, dict)
    )
