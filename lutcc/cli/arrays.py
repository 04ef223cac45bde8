"""Reads and writes the arrays that commands are given: ``.npy`` and ``.safetensors``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lutcc.errors import InputError, UsageError, suggest


def read_array(text: str, what: str, *, ndim: int | None = None) -> np.ndarray:
    """Read ``file.npy``, ``file.safetensors`` (one tensor) or ``file.safetensors:name``.

    Raises
    ------
    UsageError
        When there is no such file or tensor, or the file is of another kind.
    InputError
        When the file is damaged or the array has another rank than ``ndim``.
    """
    path, name = _split(text)
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}{_nearby(path)}", where=what)
    if path.suffix == ".npy":
        array = _read_npy(path, what)
    elif path.suffix == ".safetensors":
        array = _read_safetensors(path, name, what)
    else:
        raise UsageError(
            f"{path.name!r} is neither .npy nor .safetensors",
            where=what,
            fix="numpy.save(path, array) writes .npy",
        )
    if ndim is not None and array.ndim != ndim:
        shape = "a vector (M,)" if ndim == 1 else f"{ndim} dimensions"
        raise InputError(f"{text!r} has shape {array.shape}, not {shape}", where=what)
    return array


def write_array(path: Path, array: np.ndarray) -> None:
    """Write ``.npy``; the file appears only when it is whole."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    part.replace(path)


def existing_file(text: str, what: str) -> Path:
    """Return the path of a file or folder that is there.

    Raises
    ------
    UsageError
        When it is not; the message names similar ones beside it.
    """
    path = Path(text)
    if not path.exists():
        raise UsageError(f"no file {text!r}{_nearby(path)}", where=what)
    return path


def _split(text: str) -> tuple[Path, str | None]:
    path, colon, name = text.rpartition(":")
    if colon and path.endswith(".safetensors"):
        return Path(path), name
    return Path(text), None


def _nearby(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f" (nor a folder {str(folder)!r})"
    names = [entry.name for entry in folder.iterdir()]
    hint = suggest(path.name, names)
    return f"; {hint}" if hint.startswith("did you mean") else ""


def _read_npy(path: Path, what: str) -> np.ndarray:
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        fix = "save it again with numpy.save, as numbers (not objects)"
        raise InputError(f"{path} cannot be read: {error}", where=what, fix=fix) from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an .npz archive", where=what, fix="save one array as .npy")
    return array


def _read_safetensors(path: Path, name: str | None, what: str) -> np.ndarray:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = sorted(file.keys())
            chosen = names[0] if name is None and len(names) == 1 else name
            if chosen is None:
                listed = ", ".join(names[:10])
                raise UsageError(
                    f"{path} holds {len(names)} tensors",
                    where=what,
                    fix=f"{path}:NAME; names: {listed}",
                )
            if chosen not in names:
                raise UsageError(
                    f"{path} holds no tensor {chosen!r}", where=what, fix=suggest(chosen, names)
                )
            return file.get_tensor(chosen)
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise InputError(f"{path} cannot be read: {error}", where=what) from error
