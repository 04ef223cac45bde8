"""Checks the paths and reads the arrays (.npy, .npz, .safetensors) that commands are given."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from lutcc.errors import InputError, UsageError, suggest


def read_array(
    text: str, what: str, *, ndim: int | None = None, finite: bool = False
) -> np.ndarray:
    """Read ``file.npy``, or of a .npz or .safetensors file ``file`` (one tensor) or ``file:name``.

    With ``finite``, NaN and infinity are refused.

    Raises
    ------
    UsageError
        When there is no such file or tensor, or the file is of another kind.
    InputError
        When the file is damaged, the array has another rank than ``ndim``, or a value is not
        finite.
    """
    path, name = _split(text)
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}{_nearby(path)}", where=what)
    if path.suffix == ".npy":
        array = _read_npy(path, what)
    elif path.suffix == ".safetensors":
        array = _read_safetensors(path, name, what)
    elif path.suffix == ".npz":
        from lutcc.cli.archives import read_npz

        arrays = read_npz(path, what)
        array = arrays[_chosen(path, name, sorted(arrays), what)]
    else:
        raise UsageError(
            f"{path.name!r} is neither .npy nor .npz nor .safetensors",
            where=what,
            fix="numpy.save(path, array) writes .npy",
        )
    if ndim is not None and array.ndim != ndim:
        shape = "a vector (M,)" if ndim == 1 else f"{ndim} dimensions"
        raise InputError(f"{text!r} has shape {array.shape}, not {shape}", where=what)
    if finite:
        from lutcc.fit.inputs import not_finite

        problem = not_finite(array)
        if problem is not None:
            raise InputError(
                f"{text!r}: {problem}", where=what, fix="drop or replace those values first"
            )
    return array


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


def output_file(text: str, what: str = "--output", *, folder: bool = True) -> Path:
    """Return a path that can be written, checked before the work whose result goes there.

    A new file or artifact folder takes its place, so its folder must be writable; only what is no
    file (``/dev/stdout``) is written into. ``folder``: it may be an artifact folder.

    Raises
    ------
    UsageError
        When its folder is missing or may not be written, or it is a folder where none may be.
    """
    path = Path(text)
    above = path.parent
    if not above.is_dir():
        what_is = "is no folder" if above.exists() else "does not exist"
        raise UsageError(
            f"{text!r} cannot be written: the folder {str(above)!r} {what_is}",
            where=what,
            fix="name another path" if above.exists() else f"mkdir -p {above}",
        )
    if path.is_dir() and not folder:
        raise UsageError(f"{text!r} is a folder", where=what, fix="name a file")
    special = path.exists() and not (path.is_file() or path.is_dir())
    _writable(path if special else above, text, what)
    return path


def output_folder(text: str, what: str = "--output") -> Path:
    """Return a folder that is there or can be made, checked before the work.

    Raises
    ------
    UsageError
        When a file is in the way, or it may not be written.
    """
    path = Path(text)
    nearest = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not nearest.is_dir():
        raise UsageError(f"{str(nearest)!r} is a file", where=what, fix="name a folder")
    _writable(nearest, text, what)
    return path


def _writable(path: Path, text: str, what: str) -> None:
    if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
        raise UsageError(
            f"{text!r} cannot be written: no permission to write {str(path)!r}",
            where=what,
            fix=f"name another path, or chmod u+w {path}",
        )


def _split(text: str) -> tuple[Path, str | None]:
    path, colon, name = text.rpartition(":")
    if colon and path.endswith((".safetensors", ".npz")):
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
    with path.open("rb") as file:
        start = file.read(6)
    if start[:6] != b"\x93NUMPY" and start[:4] != b"PK\x03\x04":  # numpy.load takes it for a pickle
        raise InputError(
            f"{path} is not a valid .npy array",
            where=what,
            fix="numpy.save(path, array) writes one",
        )
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
            return file.get_tensor(_chosen(path, name, sorted(file.keys()), what))
    except (SafetensorError, TypeError) as error:  # TypeError: a dtype that NumPy lacks
        raise InputError(f"{path} cannot be read: {error}", where=what) from error


def _chosen(path: Path, name: str | None, names: list[str], what: str) -> str:
    """Return the name of the one tensor that is meant."""
    chosen = names[0] if name is None and len(names) == 1 else name
    if chosen is None:
        listed = ", ".join(names[:10])
        raise UsageError(
            f"{path} holds {len(names)} tensors",
            where=what,
            fix=f"{path}:NAME; names: {listed}" if names else "name a file that holds one",
        )
    if chosen not in names:
        raise UsageError(
            f"{path} holds no tensor {chosen!r}", where=what, fix=suggest(chosen, names)
        )
    return chosen
