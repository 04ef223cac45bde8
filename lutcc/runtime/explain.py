"""What ``artifact.explain()`` returns: which kernels run on this processor, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from lutcc.runtime.cpu import Host
from lutcc.runtime.explain_lookups import LookupRow, lookup_lines


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """One ISA variant of an artifact and what was decided about it."""

    isa: str
    file: str
    features: tuple[str, ...]
    missing: tuple[str, ...]
    chosen: bool
    reason: str


@dataclass(frozen=True, slots=True)
class KernelNote:
    """One kernel of the chosen variant: its stage, ops, configuration and where that came from."""

    stage: str
    ops: tuple[str, ...]
    config: Any
    source: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which variant runs and why, its kernels, chains of look-ups, tables, and work per row.

    ``str(explanation)`` reads well; ``to_dict()`` is plain JSON.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    open_sizes: tuple[str, ...]
    host: Host
    variants: tuple[VariantChoice, ...]
    kernels: tuple[KernelNote, ...]
    tables: tuple[dict[str, Any], ...]
    packed_bytes: int | None
    workspace: dict[str, int] | None
    work_per_row: dict[str, float]
    threads: int
    parallel_from_rows: int | None
    versions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    lookups: tuple[LookupRow, ...] = ()

    @property
    def chosen(self) -> VariantChoice | None:
        """The variant that runs here, or None when none does."""
        return next((variant for variant in self.variants if variant.chosen), None)

    @property
    def table_bytes(self) -> int:
        """Bytes of all constants as they are stored."""
        return sum(table["bytes"] for table in self.tables)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        chosen = self.chosen
        return {
            "kind": self.kind,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "open_sizes": list(self.open_sizes),
            "host": self.host.to_dict(),
            "isa": chosen.isa if chosen else None,
            "variants": [
                {
                    "isa": v.isa,
                    "file": v.file,
                    "features": list(v.features),
                    "missing": list(v.missing),
                    "chosen": v.chosen,
                    "reason": v.reason,
                }
                for v in self.variants
            ],
            "kernels": [
                {"stage": k.stage, "ops": list(k.ops), "config": k.config, "source": k.source}
                for k in self.kernels
            ],
            "tables": [dict(table) for table in self.tables],
            "table_bytes": self.table_bytes,
            "packed_bytes": self.packed_bytes,
            "workspace": self.workspace,
            "work_per_row": dict(self.work_per_row),
            "threads": self.threads,
            "parallel_from_rows": self.parallel_from_rows,
            "versions": dict(self.versions),
            "notes": list(self.notes),
            "lookups": [row.to_dict() for row in self.lookups],
        }

    def __str__(self) -> str:
        host = self.host
        lines = [
            f"{'look-up kernels' if self.kind == 'ir' else 'mixed model (Relax)'}: "
            f"{', '.join(self.inputs)} -> {', '.join(self.outputs)}",
            f"open sizes  {', '.join(self.open_sizes) or 'none'}",
            f"processor  {host.model}, {host.allowed_cpus} CPUs allowed, "
            f"best level {host.isa or 'none'}"
            + (f" (capped at {host.max_isa} by LUTCC_MAX_ISA)" if host.max_isa else ""),
            "variants",
        ]
        width = max(len(v.isa) for v in self.variants)
        for v in self.variants:
            lines.append(f"  {'*' if v.chosen else ' '} {v.isa:{width}}  {v.reason}")
        if self.kernels:
            lines.append("kernels")
            for k in self.kernels:
                config = (
                    k.config if isinstance(k.config, str) else json.dumps(k.config, default=str)
                )
                lines.append(f"    {k.stage}: {' + '.join(k.ops)}  [{k.source}]  {config}")
        lines += lookup_lines(self.lookups)
        lines.append(f"tables  {_bytes(self.table_bytes)} in {len(self.tables)} constants")
        for table in self.tables:
            shape = "x".join(map(str, table["shape"])) or "scalar"
            lines.append(f"    {table['name']}: {table['dtype']} {shape}, {_bytes(table['bytes'])}")
        if self.packed_bytes is not None:
            lines.append(f"packed for this variant  {_bytes(self.packed_bytes)}")
        if self.work_per_row:
            parts = [f"{value:,.0f} {key}" for key, value in self.work_per_row.items() if value]
            lines.append(f"work per row  {', '.join(parts) or 'none'}")
        tail = f" from {self.parallel_from_rows} rows on" if self.parallel_from_rows else ""
        lines.append(f"threads  {self.threads}{tail if self.threads > 1 else ''}")
        lines += [f"note  {note}" for note in self.notes]
        return "\n".join(lines)


def _bytes(count: int) -> str:
    if count < 10_000:
        return f"{count} bytes"
    return f"{count / 1e3:,.1f} kB" if count < 10_000_000 else f"{count / 1e6:,.1f} MB"
