"""Typical inputs of a model, as commands are given them: arrays, or sentences in a text file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.cli.archives import ARCHIVES, read_npz, read_safetensors
from lutcc.cli.arrays import existing_file, read_array
from lutcc.errors import FrontendError, InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

MOST_LINES = 1024
"""Lines of a text file that are read."""


def read_typical(text: str) -> np.ndarray | dict[str, np.ndarray]:
    """Read typical inputs: one array, or several by name; every value is finite."""
    path = Path(text)
    if path.suffix in ARCHIVES and path.is_file():
        read = read_npz if path.suffix == ".npz" else read_safetensors
        arrays = read(path, "--calibration")
        for name, array in arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise InputError(
                    f"{path}: {name!r} holds NaN or infinity",
                    where="--calibration",
                    fix="drop or replace those values first",
                )
        return arrays
    return read_array(text, "--calibration", finite=True)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    """Return floats as float32, and numbers and flags as they are."""
    import torch

    kept = array.dtype.kind in "biu"
    return torch.from_numpy(np.array(array, None if kept else np.float32, order="C"))


def text_batches(
    model: nn.Module, folder: Path, text: str, length: int
) -> list[dict[str, torch.Tensor]]:
    """Return batches of tokens for the model of a Hugging Face folder.

    Parameters
    ----------
    model
        What :func:`lutcc.cli.hugging_face.load_text_model` gave.
    folder
        Where it is from: its tokenizer lies there too.
    text
        A .txt file, a sentence a line; or arrays, by name, or one of ``input_ids``.
    length
        Tokens of a row; of sentences only: longer ones are cut off, shorter ones are padded.

    Raises
    ------
    LutccError
        When there is no such file, or it does not fit the model.
    """
    from lutcc.cli.hugging_face import calibration_batches

    if text.endswith(".txt"):
        arrays = _tokens(folder, existing_file(text, "--calibration"), length)
    else:
        read = read_typical(text)
        arrays = read if isinstance(read, dict) else {"input_ids": read}
    tensors = {name: as_tensor(array) for name, array in arrays.items()}
    return calibration_batches(model, tensors, text)


def _tokens(folder: Path, path: Path, length: int) -> dict[str, Any]:
    """Tokenize the lines of a file, with the folder's tokenizer."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 text", where="--calibration", fix="name a text file, or an .npz"
        ) from error
    sentences = [line for line in lines if line][:MOST_LINES]
    if not sentences:
        raise InputError(
            f"{path} holds no text", where="--calibration", fix="write a sentence on each line"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        found = tokenizer(
            sentences, padding="max_length", truncation=True, max_length=length, return_tensors="np"
        )
    except Exception as error:  # whatever its readers raise; a tokenizer without padding
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise FrontendError(
            f"its tokenizer cannot be used: {first[0]}",
            where=str(folder),
            fix="save it there (tokenizer.save_pretrained), or pass tokens: "
            "numpy.savez(path, input_ids=ids, attention_mask=mask)",
        ) from error
    return {name: np.asarray(found[name], np.int64) for name in ("input_ids", "attention_mask")}
