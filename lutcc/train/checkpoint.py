"""Checkpoints in safetensors: parameters, Adam's moments, the step, and what they belong to."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lutcc.errors import ArtifactError
from lutcc.train.settings import check_same

_MOMENTS = ("exp_avg", "exp_avg_sq")


def save(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    settings: dict[str, Any],
) -> None:
    """Write a checkpoint; an interrupted write leaves the old one as it was.

    Parameters
    ----------
    path
        The file.
    model, optimizer
        The optimizer is an Adam over the model's parameters.
    step
        Steps done.
    settings
        What the run depends on, JSON values: :func:`load` refuses a checkpoint of other settings.
    """
    from safetensors.torch import save_file

    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {})
        tensors |= {f"{key}.{name}": state[key] for key in _MOMENTS if key in state}
    tensors = {  # copies: the format refuses tensors that share memory, as tied weights do
        name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()
    }
    path = Path(path)
    new = path.with_name(path.name + ".new")
    save_file(tensors, new, metadata={"step": str(step), "settings": json.dumps(settings)})
    os.replace(new, path)


def load(
    path: str | Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    settings: dict[str, Any] | None = None,
) -> int:
    """Read a checkpoint into a model and its optimizer, and return the steps done.

    Raises
    ------
    ArtifactError
        If the file cannot be read, or is of another model.
    InputError
        If it was made with other settings.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        step, made_with = int(metadata["step"]), json.loads(metadata["settings"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ArtifactError(
            f"is no checkpoint: {error}", where=str(path), fix="delete it to begin anew"
        ) from error
    if settings is not None:
        check_same("the checkpoint", made_with, settings, path)
    values = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
    try:
        model.load_state_dict(values)
    except RuntimeError as error:
        raise ArtifactError(
            f"is of another model: {error}", where=str(path), fix="delete it to begin anew"
        ) from error
    if optimizer is not None and step:
        for name, parameter in model.named_parameters():
            state = {k: tensors[f"{k}.{name}"] for k in _MOMENTS if f"{k}.{name}" in tensors}
            if state:
                moved = {key: value.to(parameter.device) for key, value in state.items()}
                done = torch.tensor(
                    float(step), device=parameter.device
                )  # as Adam's fused form has it
                optimizer.state[parameter] = {"step": done, **moved}
    return step
