"""What is tuned: a kernel at a number of rows, told apart by its text alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Workload:
    """A kernel with everything its speed depends on but the processor and the config.

    Attributes
    ----------
    kind
        ``stage``: a fused group of lutcc's operations; ``product``: one that stands alone, such as
        ``dense``; ``relax``: a loop nest of an exact layer.
    op
        Short name for people and for grouping: the opcodes joined by ``+``, or the name TVM gave.
    kernel
        Canonical text: an IR function without names and constants' values, or a TVM script.
    rows
        Value of the batch symbol it is measured at; 0 where the kernel has none.
    threads
        Threads that run it.
    cache
        ``hot``: the same memory again and again; ``cold``: caches emptied before each call.
    dims
        Numbers that describe the kernel (rows, columns, codebooks, entries, ...), for the cost
        model and for people; derived from ``kernel``, not part of its identity.
    cost
        ``lookups``, ``flops`` and ``bytes`` of one call; derived as well.
    """

    kind: str
    op: str
    kernel: str
    rows: int
    threads: int = 1
    cache: str = "hot"
    dims: Mapping[str, float] = field(default_factory=dict, compare=False)
    cost: Mapping[str, float] = field(default_factory=dict, compare=False)

    @property
    def kernel_id(self) -> str:
        """16 hexadecimal digits for the kernel at any number of rows."""
        return _digest([self.kind, self.kernel])[:16]

    @property
    def id(self) -> str:
        """SHA-256 of the canonical JSON of all that identifies the workload."""
        return _digest([self.kind, self.kernel, self.rows, self.threads, self.cache])

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        return {
            "kind": self.kind,
            "op": self.op,
            "kernel": self.kernel,
            "kernel_id": self.kernel_id,
            "rows": self.rows,
            "threads": self.threads,
            "cache": self.cache,
            "dims": dict(self.dims),
            "cost": dict(self.cost),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the workload that :meth:`to_json` described."""
        names = ("kind", "op", "kernel", "rows", "threads", "cache", "dims", "cost")
        return cls(**{name: data[name] for name in names})
