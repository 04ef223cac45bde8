"""Text models in Hugging Face's layout: a folder with config.json and safetensors weights."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lutcc.errors import DependencyError, FrontendError, InputError, UsageError, suggest

INPUTS = ("input_ids", "attention_mask")
_EXPORT = "trace it yourself, torch.export.export(model, inputs), and torch.export.save that"


class TextModel(nn.Module):
    """A model of tokens and their mask, whose results are its tensors only.

    Parameters
    ----------
    model
        A text model of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Run the model; leave out None and what else is no tensor."""
        results = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True)
        return {name: v for name, v in results.items() if isinstance(v, torch.Tensor)}


def load_text_model(folder: Path) -> nn.Module:
    """Load the model of a folder, in float32 and eval mode, with transformers.

    Nothing is downloaded, and no code that lies in the folder is run.

    Raises
    ------
    DependencyError
        Without transformers.
    FrontendError
        When transformers cannot read it, weights are missing, or it is no model of one text.
    """
    where = str(folder)
    try:
        import transformers
    except ImportError as error:
        raise DependencyError(
            f"the package transformers cannot be imported ({error})",
            where=where,
            fix='pip install "transformers>=4.50"',
        ) from error
    kind = _model_class(transformers, folder)
    if not any(folder.glob("model*.safetensors")):
        raise FrontendError(
            "holds no model.safetensors",
            where=where,
            fix="write the folder (again) with model.save_pretrained(folder): pickles are not read",
        )
    transformers.utils.logging.disable_progress_bar()
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        model, info = kind.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # whatever its readers of JSON and safetensors raise
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise FrontendError(
            f"transformers {transformers.__version__} cannot load it: {first[0]}",
            where=where,
            fix="write it again with model.save_pretrained, or use the version that wrote it",
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)
    missing = sorted(info["missing_keys"])
    if missing:
        raise FrontendError(
            f"{len(missing)} weights are missing, {missing[0]!r} for one: they would be random",
            where=where,
            fix=f"save a whole {kind.__name__}, or name in config.json's architectures what it is",
        )
    _require_text(model, where)
    model.config.use_cache = False
    return model.float().eval()


def _model_class(transformers: Any, folder: Path) -> Any:
    where = str(folder / "config.json")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = config.get("architectures") or []
    except (ValueError, AttributeError) as error:
        raise FrontendError(
            f"is no JSON object: {error}", where=where, fix="copy or save the folder again"
        ) from error
    if not names:
        return transformers.AutoModel
    kind = getattr(transformers, str(names[0]), None)
    if kind is None:
        raise FrontendError(
            f"transformers {transformers.__version__} has no model {names[0]!r}",
            where=where,
            fix="update transformers; of a model whose code lies beside it, " + _EXPORT,
        )
    return kind


def _require_text(model: Any, where: str) -> None:
    takes = inspect.signature(model.forward).parameters
    lacks = [name for name in INPUTS if name not in takes]
    if model.config.is_encoder_decoder or lacks or model.main_input_name != INPUTS[0]:
        what = f"takes {model.main_input_name}" if not model.config.is_encoder_decoder else (
            "has an encoder and a decoder"
        )  # fmt: skip
        raise FrontendError(
            f"{type(model).__name__} {what}; only models of input_ids and attention_mask are "
            "compiled from a folder",
            where=where,
            fix=_EXPORT,
        )


def check_length(model: nn.Module, length: int) -> None:
    """Refuse a number of tokens that the model has no positions for.

    Raises
    ------
    UsageError
        With how many it has.
    """
    config: Any = model.config
    most = getattr(config, "max_position_embeddings", None)
    if length < 1 or (most is not None and length > most):
        raise UsageError(
            f"the model has {'no' if most is None else most} positions, not {length}",
            where="--length",
            fix=f"use 1 to {most}" if most is not None else "use 1 or more",
        )


def example_tokens(model: nn.Module, length: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Make inputs to trace a model with: two rows of random tokens, all of them attended to.

    Parameters
    ----------
    model
        What :func:`load_text_model` gave.
    length
        Tokens of a row.

    Raises
    ------
    UsageError
        When the model has not so many positions, or fails on so many tokens.
    """
    check_length(model, length)
    config: Any = model.config
    size = config.get_text_config().vocab_size
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, size, (2, length), generator=random)
    pad = getattr(config, "pad_token_id", None)
    if pad is not None:  # some models give padding no position of its own
        ids[ids == pad] = (pad + 1) % size
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    try:
        with torch.inference_mode():
            model(**made)
    except Exception as error:  # such as an IndexError of the table of positions
        first = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise UsageError(
            f"the model fails on {length} tokens: {first[0]}", where="--length", fix="use fewer"
        ) from error
    return made


def calibration_batches(
    model: nn.Module, arrays: dict[str, torch.Tensor], where: str, rows: int = 16
) -> list[dict[str, torch.Tensor]]:
    """Return token arrays as batches of keyword arguments.

    Parameters
    ----------
    model
        What :func:`load_text_model` gave.
    arrays
        ``input_ids`` (N, length), and others of the model's inputs with N rows; by default every
        token is attended to.
    where
        What messages call their origin.
    rows
        Rows of a batch.

    Raises
    ------
    InputError
        When a name, type, number of rows or token is not the model's.
    """
    known = inspect.signature(model.forward).parameters
    for name in arrays:
        if name not in known:
            raise InputError(f"the model takes no {name!r}", where=where, fix=suggest(name, INPUTS))
    ids = arrays.get("input_ids")
    if ids is None or ids.dim() != 2 or ids.is_floating_point() or ids.dtype is torch.bool:
        given = "none" if ids is None else f"{ids.dtype} {tuple(ids.shape)}"
        raise InputError(
            f"token numbers of shape (N, length) are needed as input_ids, given are {given}",
            where=where,
            fix="numpy.savez(path, input_ids=ids, attention_mask=mask), both int64",
        )
    config: Any = model.config
    size = config.get_text_config().vocab_size
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
        raise InputError(
            f"tokens from {int(ids.min())} to {int(ids.max())}, but the model knows {size}",
            where=where,
            fix="use the tokenizer of this model",
        )
    for name, value in arrays.items():
        if value.shape[:1] != ids.shape[:1]:
            raise InputError(
                f"{name} has {value.shape[0] if value.dim() else 'no'} rows, input_ids {len(ids)}",
                where=where,
                fix="pass as many of each",
            )
    whole = {"attention_mask": torch.ones_like(ids), **arrays}
    return [
        {name: value[start : start + rows] for name, value in whole.items()}
        for start in range(0, len(ids), rows)
    ]
