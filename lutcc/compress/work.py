"""Finished layers of a compression that is under way: a run that was interrupted goes on there."""

from __future__ import annotations

import json
import os
import shutil
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lutcc.codebook_weights import CodebookWeights
from lutcc.compress.stored import TensorRecord, parts_of, prefix_of
from lutcc.errors import InputError, LutccError
from lutcc.runtime.files import cannot_write

_OPTIONS = "options.json"


class WorkFolder:
    """A folder of finished tensors, one safetensors file for each, written when it is finished.

    Parameters
    ----------
    path
        Made if it does not exist.
    options
        What everything in it is made with.
    fresh
        Whether what is there already is thrown away.

    Raises
    ------
    InputError
        If what is there was made with other options.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        wanted = json.loads(json.dumps(dict(options)))
        if fresh and path.exists():
            shutil.rmtree(path)
        path.mkdir(exist_ok=True)
        found = _read_options(path / _OPTIONS)
        if found is None:
            text = json.dumps(wanted, indent=1)
            _replace(path / _OPTIONS, lambda file: file.write_text(text, encoding="utf-8"))
        elif found != wanted:
            keys = [k for k in {**found, **wanted} if found.get(k) != wanted.get(k)]
            changed = ", ".join(f"{k}={found.get(k)!r}" for k in keys)
            raise InputError(
                f"an interrupted run is there that had {changed}",
                where=str(path),
                fix="give the same options to go on with it, or --fresh to start again",
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes away from the folder.

        Raises
        ------
        InputError
            If one works there.
        """
        lock = FileLock(self.path.with_name(self.path.name + ".lock"))
        try:
            with lock.acquire(timeout=0):
                yield
        except Timeout as error:
            raise InputError(
                "another process compresses into it",
                where=str(self.path),
                fix="wait for it, or name another output",
            ) from error
        finally:
            if not lock.is_locked:
                Path(lock.lock_file).unlink(missing_ok=True)

    def part(self, name: str) -> Path:
        """Return the file of a tensor."""
        return self.path / f"{urllib.parse.quote(name, safe='')}.safetensors"

    def record(self, name: str, source: str) -> TensorRecord | None:
        """Return the record of a finished tensor; None if it is not, or was made of another.

        Parameters
        ----------
        name
            Of the tensor.
        source
            The digest of all that it is made of.
        """
        try:
            with safe_open(self.part(name), framework="pt") as opened:
                metadata = opened.metadata() or {}
            if metadata.get("source") == source:
                return TensorRecord.from_dict(json.loads(metadata["record"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            pass  # not there, or of no use: it is made again
        return None

    def weights(self, record: TensorRecord) -> CodebookWeights:
        """Read the codebook form of a finished tensor."""
        prefix = prefix_of(record.name)
        with safe_open(self.part(record.name), framework="pt") as opened:
            arrays = {
                name.removeprefix(prefix): opened.get_tensor(name).numpy()
                for name in opened.keys()  # noqa: SIM118 - no mapping
            }
        return CodebookWeights.from_arrays(
            arrays, bits=record.bits, columns=record.columns, segment_size=record.segment_size
        )

    def keep(
        self, record: TensorRecord, value: CodebookWeights | torch.Tensor, source: str
    ) -> None:
        """Write a finished tensor; it is there whole or not at all."""
        if isinstance(value, CodebookWeights):
            tensors = parts_of(record.name, value)
        else:
            tensors = {record.name: value.contiguous()}
        metadata = {"source": source, "record": json.dumps(record.to_dict())}
        _replace(self.part(record.name), lambda file: save_file(tensors, file, metadata))

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.path)


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    except (OSError, MemoryError) as error:
        unfinished.unlink(missing_ok=True)
        raise cannot_write(path, error) from error
    except SafetensorError as error:  # says nothing but what the system said
        unfinished.unlink(missing_ok=True)
        raise LutccError(
            f"cannot be written: {error}",
            where=str(path),
            fix="free some space, or name an output elsewhere; finished layers are kept",
        ) from error


def _read_options(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
