"""What a lowered module is, without any compiler object: all that a manifest stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from lutcc.errors import CompileError


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of an entry point.

    Attributes
    ----------
    name
        Name in the module.
    shape
        Each dimension an int, or ``[symbol, factor]`` for ``factor * symbol``.
    dtype
        Element type.
    """

    name: str
    shape: tuple[int | tuple[str, int], ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Program:
    """One module lowered for one instruction-set level.

    Attributes
    ----------
    isa, features
        The level, and the CPU flags that its code needs.
    entry
        Symbol of the serial entry point; ``entry + "_mt"`` is the parallel one.
    inputs, outputs
        Signature.
    blob, blob_nbytes
        How the constants are packed, see :mod:`lutcc.schedules.x86.pack`.
    workspace
        Bytes that a caller provides: ``fixed + per_row * n + per_thread * threads``.
    kernels
        One record per stage: name, operations, config, and where the config came from.
    batch
        Name of the symbolic dimension, or None.
    """

    isa: str
    features: tuple[str, ...]
    entry: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    blob: tuple[Mapping[str, Any], ...]
    blob_nbytes: int
    workspace: Mapping[str, int]
    kernels: tuple[Mapping[str, Any], ...]
    batch: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; :meth:`from_json` reads them back."""
        data = asdict(self)
        for key in ("inputs", "outputs"):
            for spec in data[key]:
                spec["shape"] = [list(d) if isinstance(d, tuple) else d for d in spec["shape"]]
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Return the program that :meth:`to_json` described.

        Raises
        ------
        CompileError
            If fields are missing or unknown.
        """
        names = {field.name for field in fields(cls)}
        if set(data) != names:
            raise CompileError(
                f"fields {sorted(set(data) ^ names)} are missing or unknown", where="program"
            )

        def specs(items: Any) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(
                    item["name"],
                    tuple(tuple(d) if isinstance(d, list) else d for d in item["shape"]),
                    item["dtype"],
                )
                for item in items
            )

        values = dict(data)
        values.update(
            features=tuple(data["features"]),
            inputs=specs(data["inputs"]),
            outputs=specs(data["outputs"]),
            blob=tuple(data["blob"]),
            kernels=tuple(data["kernels"]),
        )
        return cls(**values)
