"""What ``artifact.explain()`` returns: which kernels run on this processor, and why."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lutcc.runtime import cpu
from lutcc.runtime.explain_kernels import KernelNote, kernel_notes
from lutcc.runtime.explain_lookups import LookupRow, lookup_lines, lookup_rows
from lutcc.runtime.signature import bounds_from, open_sizes
from lutcc.runtime.stored_model import StoredModel
from lutcc.runtime.variants import VariantChoice, Variants


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which variant runs and why, its kernels, chains of look-ups, tables, and work per row.

    ``str(explanation)`` reads well; ``to_dict()`` is plain JSON.
    """

    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    open_sizes: tuple[str, ...]
    host: cpu.Host
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

    @classmethod
    def of(
        cls, model: StoredModel, variants: Variants, *, threads: int, parallel_from_rows: int | None
    ) -> Explanation:
        """Return what there is to say of a model on this processor.

        Parameters
        ----------
        model
            The files.
        variants
            Those of the model, of which at most one runs.
        threads
            How many a large enough call uses.
        parallel_from_rows
            Which call is large enough; None where that is not known.
        """
        manifest = model.manifest
        chosen = variants.find()
        program = None if chosen is None else chosen.program
        return cls(
            kind=manifest.kind,
            inputs=tuple(map(str, manifest.inputs)),
            outputs=tuple(map(str, manifest.outputs)),
            open_sizes=open_sizes(manifest.inputs, bounds_from(manifest.extra)),
            host=cpu.host(),
            variants=variants.choices(),
            kernels=() if chosen is None else kernel_notes(chosen, manifest.extra),
            tables=tuple(
                {"name": n, "dtype": str(a.dtype), "shape": list(a.shape), "bytes": a.nbytes}
                for n, a in model.constants().items()
            ),
            packed_bytes=None if program is None else program["blob_nbytes"],
            workspace=None if program is None else dict(program["workspace"]),
            work_per_row=dict(manifest.work_per_row),
            threads=threads,
            parallel_from_rows=parallel_from_rows,
            versions={"lutcc": manifest.lutcc_version, **manifest.versions},
            notes=_notes(manifest.extra),
            lookups=lookup_rows(manifest.extra),
        )

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


def _notes(extra: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the import and the tuning logs had to say; ``extra`` may hold anything."""
    lists = [extra.get(name) for name in ("notes", "tuning_notes")]
    return tuple(str(note) for notes in lists if isinstance(notes, list) for note in notes)
