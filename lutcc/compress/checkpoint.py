"""Checkpoints in safetensors, read one tensor at a time."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from lutcc.errors import InputError

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a checkpoint says of a tensor.

    Attributes
    ----------
    file
        Where it is.
    shape, dtype
        Its shape, and its dtype in safetensors' words, such as ``"BF16"``.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


class Checkpoint:
    """The tensors of a safetensors file, or of a folder of them.

    Parameters
    ----------
    path
        A ``.safetensors`` file, a ``.index.json`` of shards, or a folder that holds one of these.
        Only headers are read before a tensor is asked for.

    Attributes
    ----------
    tensors
        What there is, by name, in the order of the shards.

    Raises
    ------
    InputError
        If there is no checkpoint, a shard is missing, cut off, or lacks a tensor of the index.

    Examples
    --------
    >>> from safetensors.numpy import save_file
    >>> save_file({"fc.weight": np.zeros((4, 8), np.float16)}, path / "model.safetensors")
    >>> Checkpoint(path).tensors["fc.weight"].shape
    (4, 8)
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.tensors: dict[str, TensorInfo] = {}
        index = _index_of(self.path)
        if index is None:
            for file in _files_of(self.path):
                self._add(file)
            return
        shards = _shards(index)
        for file in sorted({index.parent / name for name in shards.values()}):
            if not file.is_file():
                count = sum(index.parent / name == file for name in shards.values())
                raise InputError(
                    f"the shard {file.name} with {count} tensors is missing",
                    where=str(index),
                    fix="download or copy it to the same folder",
                )
            self._add(file)
        lost = [name for name in shards if name not in self.tensors]
        if lost:
            raise InputError(
                f"{len(lost)} tensors of the index are in no shard, {lost[0]!r} for one",
                where=str(index),
                fix="download the shards that belong to this index",
            )

    @property
    def folder(self) -> Path:
        """The folder that the checkpoint is in."""
        return self.path if self.path.is_dir() else self.path.parent

    def tensor(self, name: str) -> torch.Tensor:
        """Read a tensor.

        Raises
        ------
        InputError
            If it cannot be read.
        """
        file = self.tensors[name].file
        try:
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from error

    def _add(self, file: Path) -> None:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - no mapping
                    part = opened.get_slice(name)
                    if name in self.tensors:
                        raise InputError(
                            f"{name!r} is in {self.tensors[name].file.name} too",
                            where=str(file),
                            fix="name the file that is meant instead of the folder",
                        )
                    self.tensors[name] = TensorInfo(file, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError) as error:
            raise _unreadable(file, error) from error


def _index_of(path: Path) -> Path | None:
    if path.name.endswith(".index.json"):
        return path
    if path.is_dir():
        found = sorted(path.glob("*.safetensors.index.json"))
        if len(found) > 1:
            names = ", ".join(p.name for p in found)
            raise InputError(
                f"the folder has several indices: {names}", where=str(path), fix="name one of them"
            )
        return found[0] if found else None
    return None


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            other = [p.name for s in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in path.glob(s)]
            raise InputError(
                f"the folder holds no *.safetensors{f', but {other[0]}' if other else ''}",
                where=str(path),
                fix="save the state_dict with safetensors.torch.save_file: pickles are not read"
                if other
                else "name the folder of the checkpoint",
            )
        return files
    if not path.is_file():
        raise InputError("there is no such file", where=str(path), fix="name a checkpoint")
    return [path]


def _shards(index: Path) -> dict[str, str]:
    """Return the name of the shard of each tensor."""
    try:
        shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        if not isinstance(shards, dict) or not all(isinstance(v, str) for v in shards.values()):
            raise ValueError("weight_map is no mapping of names")
    except OSError as error:
        raise InputError("there is no such file", where=str(index)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"is no index of shards: {error}",
            where=str(index),
            fix='it must hold {"weight_map": {tensor: file}}',
        ) from error
    outside = [name for name in shards.values() if Path(name).name != name]
    if outside:
        raise InputError(
            f"the shard {outside[0]!r} lies in another folder",
            where=str(index),
            fix="put shards beside their index",
        )
    return shards


def _unreadable(file: Path, error: Exception) -> InputError:
    return InputError(
        f"cannot be read: {error}",
        where=str(file),
        fix="it is cut off or no safetensors file: copy or download it again",
    )
