"""Codebooks and indices of a whole model, trained together to do what the exact model does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lutcc.errors import ConvertError
from lutcc.nn.codebook import CodebookLayer
from lutcc.nn.codebook_embedding import CodebookEmbedding
from lutcc.train.latent_weights import LatentWeights, multiplied_with
from lutcc.train.trained_parameters import gradients_reach

Objective = Callable[[Any, Any, Any], Tensor]
"""Takes the output, the exact model's, and the batch; returns what is to be small."""

#: Layers whose outputs are further than this from the exact model's have other neurons there.
_COUNTERPART = 1.0


def distil_codebooks(
    model: torch.nn.Module,
    exact: torch.nn.Module,
    batches: Sequence[Any],
    *,
    steps: int = 300,
    learning_rate: float = 4e-3,
    objective: Objective | None = None,
    seed: int = 0,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train the codebook layers of ``model`` in place, all together, by gradients.

    ``lutcc.convert`` compresses layer by layer; here errors of one layer are made up for by the
    others. Behind each index stands a weight in full precision, which moves by straight-through
    gradients and takes its nearest codeword. Codebooks, scales, biases and the affine parameters of
    norms are trained as well; the form, and so the footprint, stays. The loss is the mean, over the
    codebook layers, of the relative squared error of their outputs, plus ``objective``. Layers
    whose neurons have been brought into another order are left out of that mean.

    Parameters
    ----------
    model
        What ``lutcc.convert`` made of ``exact``; in eval mode, and stays so.
    exact
        The model before.
    batches
        Inputs as ``lutcc.convert`` takes them: tensors, tuples or dictionaries.
    steps
        Batches to train on, drawn anew each time all have been.
    learning_rate
        Of Adam, relative to the root mean square of a layer's weights; falls to 0 as a cosine.
    objective
        Added to the loss.
    seed
        Of the order of the batches.
    progress
        Called as ``progress(step, steps, loss)`` after each step.

    Returns
    -------
    list of float
        The loss of each step.

    Raises
    ------
    ConvertError
        If the model has no codebook layers with weights to train, there are no batches, or the loss
        is not finite.

    Notes
    -----
    Beyond JLCM, which stops at single layers. An interruption leaves what was trained so far.

    Examples
    --------
    >>> import lutcc
    >>> exact, x = torch.nn.Sequential(torch.nn.Linear(64, 64)), torch.randn(256, 64)
    >>> small = lutcc.convert(exact, {"0": lutcc.recipes.Codebook(alpha=5)}, x)
    >>> losses = distil_codebooks(small, exact, [x], steps=3)
    >>> len(losses), small[0].training
    (3, False)
    """
    layers = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, CodebookLayer) and not isinstance(layer, CodebookEmbedding)
    }
    layers = {name: layer for name, layer in layers.items() if layer.holder is layer}
    if not layers or not batches or steps < 1:
        raise ConvertError(
            f"{len(layers)} layers to train, {len(batches)} batches, {steps} steps",
            where="distil_codebooks",
            fix="pass a model with CodebookLinear or CodebookConv2d layers, and batches",
        )
    twins = {name: exact.get_submodule(name) for name in layers}
    latents = {name: LatentWeights(layer) for name, layer in layers.items()}
    trained = [p for latent in latents.values() for p in latent.parameters() if p.requires_grad]
    scales = {id(layer.scales) for layer in layers.values()}
    rest = [p for p in model.parameters() if p.dim() == 1 and id(p) not in scales]
    groups = [
        {"params": trained, "lr": learning_rate},
        {"params": rest, "lr": 0.1 * learning_rate},
    ]
    frozen = [p for p in model.parameters() if not any(p is other for other in rest)]
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
    fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    losses: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(gradients_reach(frozen, False))
        stack.enter_context(gradients_reach([*trained, *rest], True))
        for name, layer in layers.items():
            stack.callback(latents[name].finish)
            stack.enter_context(multiplied_with(layer, latents[name]))
        found = stack.enter_context(_recorded(layers))
        wanted = stack.enter_context(_recorded(twins))
        matched: list[str] | None = None
        for step, batch in enumerate(_shuffled(batches, steps, seed)):
            with torch.no_grad():
                target = _call(exact, batch)
            result = _call(model, batch)
            errors = {name: _error(found[name], wanted[name]) for name in found if name in wanted}
            if matched is None:
                matched = [
                    name for name, error in errors.items() if float(error.detach()) < _COUNTERPART
                ]
            terms = [errors[name] for name in matched if name in errors]
            loss = torch.stack(terms).mean() if terms else torch.zeros(())
            if objective is not None:
                loss = loss + objective(result, target, batch)
            elif not terms:
                loss = _error(_first(result), _first(target))
            value = float(loss.detach())
            if not math.isfinite(value):  # the last good state stays
                raise ConvertError(
                    f"the loss is {value} at step {step}",
                    where="distil_codebooks",
                    fix="check the batches for NaN, or lower learning_rate",
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            fall.step()
            losses.append(value)
            if progress is not None:
                progress(step + 1, steps, losses[-1])
    return losses


def _rate(step: int, steps: int) -> float:
    """Return the factor on the learning rate: up in 20 steps, then down as a cosine."""
    return min(1.0, (step + 1) / 20) * 0.5 * (1 + np.cos(np.pi * step / steps))


@contextmanager
def _recorded(modules: Mapping[str, torch.nn.Module]) -> Iterator[dict[str, Tensor]]:
    """Keep the last output of each module."""
    outputs: dict[str, Tensor] = {}

    def keeper(name: str) -> Callable[..., None]:
        def keep(module: torch.nn.Module, args: Any, output: Tensor) -> None:
            outputs[name] = output

        return keep

    handles = [m.register_forward_hook(keeper(name)) for name, m in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _shuffled(batches: Sequence[Any], steps: int, seed: int) -> Iterator[Any]:
    """Yield ``steps`` batches: all of them in a new order, again and again."""
    random = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(steps):
        if not order:
            order = random.permutation(len(batches)).tolist()
        yield batches[order.pop()]


def _call(model: torch.nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def _first(output: Any) -> Tensor:
    """Return the first tensor of what a model returned."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output
    return _first(next(iter(values)))


def _error(found: Tensor, wanted: Tensor) -> Tensor:
    """Return the squared error over the spread of what was wanted."""
    wanted = wanted.detach()
    return F.mse_loss(found, wanted) / wanted.var(correction=0).clamp_min(1e-12)
