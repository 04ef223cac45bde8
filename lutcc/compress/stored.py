"""The file that a compressed model is stored in: safetensors, with a record of every tensor.

A weight ``fc.weight`` (M, ...) that is written with codebooks is stored as ``fc.indices``,
``fc.codebooks``, ``fc.scales`` and maybe more, as the ``state_dict`` of the layers in
:mod:`lutcc.nn` has them; all others under their own names. The file's metadata say which is which.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from lutcc.codebook_weights import REFERENCE_BITS, CodebookWeights, Footprint
from lutcc.errors import InputError
from lutcc.runtime.files import write_whole

FORMAT, VERSION = "lutcc-codebooks", 1
FILE = "model.safetensors"
_PARTS = ("indices", "codebooks", "scales", "order", "outlier_starts", "outlier_columns",
          "outlier_values")  # fmt: skip
_COPIED = 1 << 22  # bytes at once


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """What became of one tensor of a model.

    Attributes
    ----------
    name, shape
        Of the tensor in the exact model.
    method
        "codebook" or "exact".
    footprint
        Its bits, as stored.
    bits, columns, segment_size
        Of the codebook form; 0 for exact tensors.
    error
        Relative error: of the weights, or of the layer's outputs where it was learnt from data.
    rows
        Rows of data that it was learnt from.
    same_as
        The tensor whose codebooks it shares, or "".
    note
        What the user should know, or "".
    seconds
        What it took.
    """

    name: str
    shape: tuple[int, ...]
    method: str
    footprint: Footprint
    bits: int = 0
    columns: int = 0
    segment_size: int = 0
    error: float = 0.0
    rows: int = 0
    same_as: str = ""
    note: str = ""
    seconds: float = 0.0

    @classmethod
    def exact(
        cls, name: str, shape: Sequence[int], bits: int = REFERENCE_BITS, note: str = ""
    ) -> Self:
        """Return the record of a tensor that is stored as it is, at ``bits`` an entry."""
        count = int(np.prod(shape, dtype=np.int64))
        return cls(name, tuple(shape), "exact", Footprint(count, count * bits, 0, 0), note=note)

    @classmethod
    def of(cls, name: str, shape: Sequence[int], weights: CodebookWeights, **facts: Any) -> Self:
        """Return the record of a compressed tensor."""
        return cls(
            name, tuple(shape), "codebook", weights.footprint(), weights.bits, weights.columns,
            weights.segment_size, **facts,
        )  # fmt: skip

    @property
    def prefix(self) -> str:
        """What the names of its parts begin with."""
        return prefix_of(self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """Return what :meth:`to_dict` gave."""
        values = dict(facts)
        values["shape"] = tuple(values["shape"])
        values["footprint"] = Footprint(**values["footprint"])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Compressed:
    """What the metadata of a compressed model say.

    Attributes
    ----------
    records
        By name of the exact tensor.
    options
        What it was compressed with.
    activations
        Where inputs were known: bytes of activations at most, before and after, and more.
    """

    records: dict[str, TensorRecord]
    options: dict[str, Any] = field(default_factory=dict)
    activations: dict[str, Any] = field(default_factory=dict)

    @property
    def footprint(self) -> Footprint:
        """Bits of all tensors; what is shared counts once."""
        parts = [r.footprint for r in self.records.values() if not r.same_as]
        return sum(parts, Footprint(0, 0, 0, 0))

    def to_metadata(self) -> dict[str, str]:
        """Return the metadata of a safetensors file."""
        return {
            "format": FORMAT,
            "version": str(VERSION),
            "tensors": json.dumps([record.to_dict() for record in self.records.values()]),
            "options": json.dumps(self.options),
            "activations": json.dumps(self.activations),
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str] | None, where: str) -> Self:
        """Read what :meth:`to_metadata` gave.

        Raises
        ------
        InputError
            If these are other metadata, or of a newer version.
        """
        found = metadata or {}
        if found.get("format") != FORMAT:
            raise InputError(
                "is no compressed model", where=where, fix="`lutcc compress` writes one"
            )
        if found.get("version") != str(VERSION):
            raise InputError(
                f"has version {found.get('version')}, this lutcc reads {VERSION}",
                where=where,
                fix="read it with the lutcc that wrote it, or compress again",
            )
        try:
            records = [TensorRecord.from_dict(r) for r in json.loads(found["tensors"])]
            options, activations = (json.loads(found[k]) for k in ("options", "activations"))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"its metadata are damaged: {error!r}", where=where, fix="compress again"
            ) from error
        return cls({record.name: record for record in records}, options, activations)


def prefix_of(name: str) -> str:
    """Return what the names of a tensor's parts begin with.

    Examples
    --------
    >>> prefix_of("encoder.fc.weight"), prefix_of("weight"), prefix_of("table")
    ('encoder.fc.', '', 'table.')
    """
    return name.removesuffix("weight") if f".{name}".endswith(".weight") else f"{name}."


def model_file(path: str | Path) -> Path:
    """Return the file of a compressed model that is given as the file or its folder."""
    given = Path(path)
    return given / FILE if given.is_dir() else given


def read_records(path: str | Path) -> Compressed:
    """Return what is known of the tensors of a compressed model; no tensor is read.

    Raises
    ------
    InputError
        If it is no compressed model, or cannot be read.
    """
    file = model_file(path)
    try:
        with safe_open(file, framework="pt") as opened:
            return Compressed.from_metadata(opened.metadata(), str(file))
    except (SafetensorError, OSError) as error:
        raise _unreadable(file, error) from error


def load_compressed(path: str | Path) -> dict[str, CodebookWeights | torch.Tensor]:
    """Read a compressed model.

    Parameters
    ----------
    path
        What `lutcc compress` wrote: the file, or its folder.

    Returns
    -------
    By name of the exact tensor: :class:`CodebookWeights` (a convolution's as a matrix of outputs
    and patches), or the tensor as it is. Tensors that share codebooks have the same object.

    Raises
    ------
    InputError
        If it is no compressed model, cut off, or lacks a part.

    Examples
    --------
    >>> load_compressed("compressed")["fc.weight"].dequantize()  # doctest: +SKIP
    """
    file = model_file(path)
    records = read_records(file).records
    found: dict[str, CodebookWeights | torch.Tensor] = {}
    try:
        with safe_open(file, framework="pt") as opened:
            present = set(opened.keys())
            for record in records.values():
                if record.same_as:
                    continue
                if record.method == "exact":
                    found[record.name] = opened.get_tensor(record.name)
                    continue
                arrays = {
                    part: opened.get_tensor(record.prefix + part).numpy()
                    for part in _PARTS
                    if record.prefix + part in present
                }
                found[record.name] = CodebookWeights.from_arrays(
                    arrays,
                    bits=record.bits,
                    columns=record.columns,
                    segment_size=record.segment_size,
                )
    except (SafetensorError, OSError, KeyError) as error:
        raise _unreadable(file, error) from error
    return {name: found[record.same_as or name] for name, record in records.items()}


def parts_of(name: str, weights: CodebookWeights) -> dict[str, torch.Tensor]:
    """Return the tensors that a compressed weight is stored as, by name."""
    return {
        prefix_of(name) + part: torch.from_numpy(np.ascontiguousarray(array))
        for part, array in weights.to_arrays().items()
    }


def join(parts: Iterable[Path], target: Path, metadata: Mapping[str, str]) -> None:
    """Write the tensors of several safetensors files into one; no tensor is held in memory.

    Wide dtypes come first, so that every tensor is aligned. The target appears when it is complete.
    """
    sources: list[tuple[str, dict[str, Any], Path, int]] = []
    for path in parts:
        header, start = _header(path)
        sources += [(name, entry, path, start) for name, entry in header.items()]
    sources.sort(key=lambda source: -_item_bits(source[1]["dtype"]))
    head: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for name, entry, _, _ in sources:
        first, last = entry["data_offsets"]
        head[name] = {**entry, "data_offsets": [position, position + last - first]}
        position += last - first
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)

    def write(out: IO[bytes]) -> None:
        out.write(struct.pack("<Q", len(text)) + text)
        for _, entry, path, start in sources:
            first, last = entry["data_offsets"]
            with path.open("rb") as source:
                source.seek(start + first)
                left = last - first
                while left:
                    block = source.read(min(left, _COPIED))
                    if not block:
                        raise InputError("is cut off", where=str(path), fix="start afresh")
                    out.write(block)
                    left -= len(block)

    write_whole({target: write}, nbytes=8 + len(text) + position)


def _header(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return a safetensors file's header, and where its data begin."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return header, 8 + size


def _item_bits(dtype: str) -> int:
    return int("".join(c for c in dtype.split("_")[0] if c.isdigit()) or 8)


def _unreadable(file: Path, error: Exception) -> InputError:
    if not file.exists():
        return InputError("there is no such file", where=str(file), fix="name a compressed model")
    return InputError(
        f"cannot be read: {error}",
        where=str(file),
        fix="it is cut off or damaged: copy it again, or compress again",
    )
