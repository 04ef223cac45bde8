"""Several arrays in one file (.npz, .safetensors), as the inputs and outputs of an artifact."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from lutcc.cli.arrays import existing_file, output_file, read_array
from lutcc.errors import ArtifactError, InputError, UsageError, suggest
from lutcc.runtime.files import write_whole

if TYPE_CHECKING:
    from lutcc.runtime import TensorSpec

ARCHIVES = (".npz", ".safetensors")
_DAMAGE = (
    ValueError, EOFError, LookupError, OSError, RuntimeError, NotImplementedError, OverflowError,
    MemoryError, TypeError, SyntaxError, struct.error, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def read_npz(path: Path, what: str) -> dict[str, np.ndarray]:
    """Read every array of a .npz archive, in its order.

    Raises
    ------
    InputError
        When it is damaged, or holds something else than arrays of numbers; nothing is unpickled.
    """
    fix = "write it (again) with numpy.savez(path, name=array, ...)"
    if not zipfile.is_zipfile(path):
        raise InputError(
            f"{path} is no .npz archive, or it is cut off or damaged", where=what, fix=fix
        )
    arrays: dict[str, np.ndarray] = {}
    name = ""
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                arrays[name] = archive[name]
                if not isinstance(arrays[name], np.ndarray):
                    raise ValueError("it is no array")
    except _DAMAGE as error:
        entry = f"{path}: {name!r}" if name else str(path)
        if "allow_pickle" in str(error):
            raise InputError(
                f"{entry} holds pickled objects, which could run any code and are not read",
                where=what,
                fix="save arrays of numbers: array.astype(numpy.float32)",
            ) from error
        raise InputError(f"{entry} cannot be read: {error}", where=what, fix=fix) from error
    return arrays


def read_safetensors(path: Path, what: str) -> dict[str, np.ndarray]:
    """Read every tensor of a .safetensors file (read-only), by name.

    Raises
    ------
    InputError
        When it is damaged or holds an element type that no artifact takes.
    """
    from lutcc.runtime import constants

    try:
        return constants.load(path.read_bytes())
    except ArtifactError as error:
        raise InputError(
            f"{path} cannot be read: {error.what}",
            where=what,
            fix="write it (again) with safetensors.numpy.save_file",
        ) from error


def read_inputs(texts: Sequence[str], specs: Sequence[TensorSpec]) -> list[np.ndarray]:
    """Read what an artifact is to be called with.

    Parameters
    ----------
    texts
        One file for each input, as :func:`lutcc.cli.arrays.read_array` takes them; or one .npz or
        .safetensors file that holds all of them by name. A .npz whose arrays have no names
        (``numpy.savez(path, a, b)``) holds them in order; the name of a single array does not
        matter.
    specs
        The artifact's inputs.

    Returns
    -------
    NumPy arrays in the order of ``specs``.

    Raises
    ------
    UsageError
        When there is no such file, or the number or names of the arrays are not the artifact's.
    InputError
        When a file is damaged.
    """
    arrays: Sequence[np.ndarray]
    if len(texts) == 1 and Path(texts[0]).suffix in ARCHIVES:
        path = existing_file(texts[0], "INPUT")
        read = read_npz if path.suffix == ".npz" else read_safetensors
        arrays = _in_order(read(path, "INPUT"), specs, path)
    else:
        arrays = [read_array(text, f"input {index}") for index, text in enumerate(texts)]
        if len(arrays) != len(specs):
            raise UsageError(
                f"{len(arrays)} inputs given, the artifact takes {len(specs)}",
                where="INPUT",
                fix=", ".join(map(str, specs)),
            )
    return list(arrays)


def _in_order(
    arrays: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], path: Path
) -> list[np.ndarray]:
    names = [spec.name for spec in specs]
    unnamed = [f"arr_{index}" for index in range(len(arrays))]
    if set(arrays) == set(names):
        return [arrays[name] for name in names]
    if len(arrays) == len(names) and (len(names) == 1 or set(arrays) == set(unnamed)):
        return [arrays[name] for name in (unnamed if len(names) > 1 else arrays)]
    missing = [name for name in names if name not in arrays]
    extra = [name for name in arrays if name not in names]
    parts = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
    parts += [f"also holds {', '.join(map(repr, extra[:10]))}"] if extra else []
    fix = f"the artifact takes {', '.join(map(str, specs))}"
    if extra and missing:
        hint = suggest(extra[0], missing)
        fix += f"; {extra[0]!r}: {hint}" if hint.startswith("did you mean") else ""
    raise UsageError(f"{path} {' and '.join(parts)}", where="INPUT", fix=fix)


def output_files(texts: Sequence[str], specs: Sequence[TensorSpec]) -> list[Path]:
    """Return where outputs go, checked before the work: .npy files in order, or one archive.

    Raises
    ------
    UsageError
        When a suffix says nothing or cannot hold an output, a file is named twice, an archive is
        not the only one, there are more files than outputs, or a folder is missing or may not be
        written.
    """
    paths = [output_file(text) for text in texts]
    for path in paths:
        if path.suffix not in (".npy", *ARCHIVES):
            raise UsageError(
                f"{str(path)!r} is neither .npy nor .npz nor .safetensors",
                where="--output",
                fix="end the name with one of them",
            )
        if path.is_dir():
            raise UsageError(f"{str(path)!r} is a folder", where="--output", fix="name a file")
    if len(set(paths)) < len(paths):
        raise UsageError("a file is named twice", where="--output", fix="name each file once")
    if len(paths) > 1 and any(path.suffix in ARCHIVES for path in paths):
        raise UsageError(
            "an archive takes all outputs, other files cannot be named beside it",
            where="--output",
            fix="name the archive alone, or one .npy for each output",
        )
    if len(paths) > len(specs):
        raise UsageError(
            f"{len(paths)} outputs named, the artifact gives {len(specs)}",
            where="--output",
            fix=", ".join(map(str, specs)),
        )
    for path, spec in zip([*paths, *paths[:1] * len(specs)], specs, strict=False):
        if spec.dtype == "bfloat16" and path.suffix != ".safetensors":
            raise UsageError(
                f"output {spec.name!r} is bfloat16, which {path.suffix} files cannot say",
                where="--output",
                fix="name one .safetensors file for all outputs",
            )
    return paths


def write_outputs(paths: Sequence[Path], arrays: Mapping[str, np.ndarray]) -> None:
    """Write the outputs of an artifact to the paths that :func:`output_files` returned.

    Raises
    ------
    LutccError
        When a file cannot be written (no space, no permission); then none appears.
    """
    if len(paths) == 1 and paths[0].suffix in ARCHIVES:
        write = _npz_writer if paths[0].suffix == ".npz" else _safetensors_writer
        write_whole({paths[0]: write(arrays)})
        return
    write_whole({p: _npy_writer(a) for p, a in zip(paths, arrays.values(), strict=False)})


def _npy_writer(array: np.ndarray) -> Callable[[IO[bytes]], None]:
    def write(stream: IO[bytes]) -> None:
        # Given a file, NumPy writes it behind Python's back and does not say why that failed.
        np.lib.format.write_array(_Stream(stream), array, allow_pickle=False)  # pyright: ignore[reportArgumentType]

    return write


class _Stream:
    """A file of which NumPy sees ``write`` only."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.write = stream.write


def _npz_writer(arrays: Mapping[str, np.ndarray]) -> Callable[[IO[bytes]], None]:
    def write(stream: IO[bytes]) -> None:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                info = zipfile.ZipInfo(f"{name}.npy")  # numpy.savez takes no name "file"
                with archive.open(info, "w", force_zip64=True) as entry:
                    _npy_writer(array)(entry)

    return write


def _safetensors_writer(arrays: Mapping[str, np.ndarray]) -> Callable[[IO[bytes]], object]:
    from lutcc.runtime import constants

    data = constants.dump(arrays)
    return lambda stream: stream.write(data)
