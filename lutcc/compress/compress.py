"""Compress a checkpoint tensor by tensor, without data and without the model's code."""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lutcc import recipes
from lutcc.compress.checkpoint import Checkpoint
from lutcc.compress.stored import FILE, Compressed, TensorRecord, join
from lutcc.compress.work import WorkFolder
from lutcc.errors import InputError, suggest
from lutcc.nn.conversion_plan import has_wildcards
from lutcc.nn.fitted_layers import digest

Progress = Callable[[int, int, str], None]
_FLOATS = ("F64", "F32", "F16", "BF16")


def compress_checkpoint(
    path: str | Path,
    output: str | Path,
    config: recipes.Codebook | None = None,
    *,
    layers: Sequence[str] = ("*",),
    exact: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
) -> Compressed:
    """Write the weights of a checkpoint with codebooks.

    Weights with two dimensions or four (those of linear layers, embeddings and 2-D convolutions)
    are compressed one after the other, from their values alone; one is in memory at a time. The
    rest (norms, biases, other shapes and dtypes) is stored in float16 where it fits. Every
    finished tensor is on disk at once, and an interrupted run goes on there if it is repeated.

    Parameters
    ----------
    path
        A folder, file or index of safetensors; see :class:`lutcc.compress.Checkpoint`.
    output
        The ``.safetensors`` file to write, or a folder for it, into which config and tokenizer
        files are copied as well.
    config
        What is asked for; alpha 5.33 if not given. ``learn`` and ``reorder="fold"`` need data and
        the model's code, and do not matter here.
    layers, exact
        Patterns of names, with or without ``.weight``: what is compressed, and what is not after
        all.
    fresh
        Whether what an interrupted run left is thrown away.
    progress
        Called as ``progress(done, total, name)`` before each tensor and once at the end.

    Raises
    ------
    InputError
        If the checkpoint cannot be read, a pattern matches nothing, weights are not finite, or a
        weight named without wildcards cannot be compressed so far.

    Examples
    --------
    >>> compress_checkpoint("llama-7b", "llama-7b-5.33")  # doctest: +SKIP
    """
    config = config or recipes.Codebook()
    source, target = Checkpoint(path), target_of(output)
    if target.resolve() in {info.file.resolve() for info in source.tensors.values()}:
        raise InputError(
            "the output is the checkpoint itself", where=str(output), fix="name another file"
        )
    chosen = _chosen(source, layers, exact)
    options = {**dataclasses.asdict(config), "layers": list(layers), "exact": list(exact)}
    work = WorkFolder(target.with_name(target.name + ".partial"), options, fresh=fresh)
    records: dict[str, TensorRecord] = {}
    owners: dict[str, str] = {}  # of codebooks, by the digest of what they stand for
    with work.locked():
        for done, name in enumerate(source.tensors):
            if progress:
                progress(done, len(source.tensors), name)
            tensor = source.tensor(name)
            found = digest(tensor)
            if name in chosen and found in owners:
                records[name] = dataclasses.replace(
                    records[owners[found]], name=name, same_as=owners[found], seconds=0.0,
                    note=f"uses the codebooks of {owners[found]!r}",
                )  # fmt: skip
                continue
            record = work.record(name, found)
            if record is None:
                record, value = _compress(source, name, tensor, config, chosen.get(name))
                work.keep(record, value, found)
                del value
            del tensor
            records[name] = record
            if record.method == "codebook":
                owners[found] = name
        if progress:
            progress(len(source.tensors), len(source.tensors), "")
        made = Compressed(records, options)
        parts = [work.part(name) for name, record in records.items() if not record.same_as]
        join(parts, target, made.to_metadata())
        if not str(output).endswith(".safetensors"):
            _copy_others(source, target.parent)
        work.remove()
    return made


def target_of(output: str | Path) -> Path:
    """Return the file to write; its folder exists afterwards."""
    path = Path(output)
    if path.suffix == ".safetensors":
        if path.is_dir() or not path.parent.is_dir():
            raise InputError(
                "cannot be written", where=str(path), fix="name a file in a folder that exists"
            )
        return path
    if path.exists() and not path.is_dir():
        raise InputError(
            "is no folder", where=str(path), fix="name a folder, or a .safetensors file"
        )
    path.mkdir(parents=True, exist_ok=True)
    return path / FILE


def _chosen(source: Checkpoint, layers: Sequence[str], exact: Sequence[str]) -> dict[str, bool]:
    """Return the tensors to compress, and whether a wildcard named each."""
    chosen: dict[str, bool] = {}
    for pattern in layers:
        found = [name for name in source.tensors if matches(name, pattern)]
        if not found:
            raise _nothing(pattern, "--layers", source)
        chosen |= dict.fromkeys(found, has_wildcards(pattern))
    for pattern in exact:
        found = [name for name in source.tensors if matches(name, pattern)]
        if not found:
            raise _nothing(pattern, "--exact", source)
        for name in found:
            chosen.pop(name, None)
    return chosen


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern means a tensor: by its name, or by that of its layer.

    Examples
    --------
    >>> matches("model.norm.weight", "*.norm"), matches("model.norm.weight", "norm")
    (True, False)
    """
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".weight"), pattern)


def _nothing(pattern: str, option: str, source: Checkpoint) -> InputError:
    return InputError(
        f"no tensor is called {pattern!r}", where=option, fix=suggest(pattern, source.tensors)
    )


def _compress(
    source: Checkpoint,
    name: str,
    tensor: torch.Tensor,
    config: recipes.Codebook,
    by_wildcard: bool | None,
) -> tuple[TensorRecord, Any]:
    """Return what is stored of a tensor; ``by_wildcard`` is None if it shall stay exact."""
    started = time.perf_counter()
    reason = "" if by_wildcard is None else _unfit(source, name)
    if by_wildcard is None or reason:
        if reason and not by_wildcard:
            raise InputError(
                f"cannot be compressed: {reason}", where=name, fix="do not name it in --layers"
            )
        return as_stored(
            name, tensor, f"left exact: {reason}" if reason and _counts(tensor) else ""
        )
    weights = tensor.flatten(1).float().numpy()
    wrong = int((~np.isfinite(weights)).sum())
    if wrong:
        raise InputError(
            f"{wrong} of the weights are NaN or infinite",
            where=name,
            fix=f"mend the checkpoint, or leave it as it is: --exact {name}",
        )
    mode = "scales" if tensor.dim() == 4 else "codebooks"
    options = {**config.estimator_options(mode), "learn": "none", "weighting": "none"}
    try:
        fitted = _fit(weights, options)
    except InputError as error:
        if not by_wildcard:
            raise InputError(error.what, where=name, fix=error.fix) from error
        return as_stored(name, tensor, f"left exact: {error.what}")
    norm = float(np.linalg.norm(weights))
    error = float(np.linalg.norm(fitted.weights_.dequantize() - weights))
    record = TensorRecord.of(
        name,
        tuple(tensor.shape),
        fitted.weights_,
        error=error / norm if norm else float(error > 0),
        note=getattr(fitted, "note_", None) or "",
        seconds=time.perf_counter() - started,
    )
    return record, fitted.weights_


def _fit(weights: np.ndarray, options: dict[str, Any]) -> Any:
    from lutcc.fit import WeightCodebooks

    return WeightCodebooks(**options).fit(weights)


def _unfit(source: Checkpoint, name: str) -> str:
    """Say why a tensor cannot be compressed, or ""."""
    info = source.tensors[name]
    if info.dtype not in _FLOATS:
        return f"{info.dtype} is not compressed"
    if not f".{name}".endswith(".weight"):
        return "it is no layer's weight"
    if len(info.shape) not in (2, 4):
        return f"a weight with {len(info.shape)} dimensions is of no kind that is compressed"
    if 0 in info.shape:
        return "it is empty"
    return ""


def _counts(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is worth a line: norms and biases are exact anyway."""
    return tensor.dim() > 1


def as_stored(name: str, tensor: torch.Tensor, note: str) -> tuple[TensorRecord, torch.Tensor]:
    """Return a tensor in float16 if its values fit, and the record of it."""
    if tensor.is_floating_point() and tensor.element_size() >= 2:
        half = tensor.half()
        if bool((half.isfinite() == tensor.isfinite()).all()):
            tensor = half
        else:
            note = "; ".join(filter(None, [note, f"kept in {str(tensor.dtype)[6:]}: too large"]))
    bits = 8 * tensor.element_size()
    return TensorRecord.exact(name, tuple(tensor.shape), bits, note), tensor


def _copy_others(source: Checkpoint, folder: Path) -> None:
    """Copy what else belongs to the model: its config and tokenizer."""
    if not source.path.is_dir():
        return
    for pattern in ("*.json", "*.txt", "*.model", "*.jinja"):
        for file in source.folder.glob(pattern):
            if not file.name.endswith(".index.json") and file.parent.resolve() != folder.resolve():
                shutil.copyfile(file, folder / file.name)
