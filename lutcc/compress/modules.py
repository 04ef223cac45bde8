"""Compressed models in torch: layers that hold codebooks take the places of exact ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch

from lutcc.codebook_weights import CodebookWeights
from lutcc.compress.stored import load_compressed
from lutcc.errors import ConvertError, suggest
from lutcc.nn.codebook import CodebookLayer
from lutcc.nn.codebook_conv import CodebookConv2d, conv_options
from lutcc.nn.codebook_embedding import CodebookEmbedding, embedding_options
from lutcc.nn.codebook_linear import CodebookLinear

_KINDS = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Embedding)


def load_into(
    model: torch.nn.Module, path: str | Path, *, compute: str = "int8"
) -> torch.nn.Module:
    """Put a compressed model into ``model``, in place, and return it in eval mode.

    Parameters
    ----------
    model
        The exact model's module, with any weights; on the "meta" device it takes no memory before.
    path
        What `lutcc compress` wrote.
    compute
        Arithmetic of the layers: "int8", "bfloat16" or "float32".

    Returns
    -------
    ``model``, or the layer that takes its place if it is a single layer.

    Raises
    ------
    ConvertError
        If names, shapes or kinds of layers do not fit.
    InputError
        If the file cannot be read.

    Examples
    --------
    >>> with torch.device("meta"):  # doctest: +SKIP
    ...     model = Llama(config)
    >>> load_into(model, "llama-7b-5.33")  # doctest: +SKIP
    """
    stored = load_compressed(path)
    modules = dict(model.named_modules(remove_duplicate=False))
    holders: dict[int, list[torch.nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, _KINDS):
            holders.setdefault(id(module.weight), []).append(module)
    made: dict[int, CodebookLayer] = {}  # by what it stands for
    layers: dict[int, CodebookLayer] = {}  # by the module whose place it takes
    for name, weights in stored.items():
        if not isinstance(weights, CodebookWeights):
            continue
        module = _module(modules, name, str(path))
        for layer in holders[id(module.weight)]:
            if id(layer) in layers:
                continue
            new = _layer(cast(Any, layer), weights, compute, name)
            if id(weights) in made:
                new.tie(made[id(weights)])
            layers[id(layer)] = new
            made.setdefault(id(weights), new)
    model = _install(model, layers)
    exact = {name: t for name, t in stored.items() if isinstance(t, torch.Tensor)}
    _load_exact(model, exact, str(path))
    return model.eval()


def _module(modules: dict[str, torch.nn.Module], name: str, where: str) -> Any:
    path = name.removesuffix("weight").removesuffix(".")
    module = modules.get(path)
    if module is None:
        raise ConvertError(
            f"the model has no layer {path!r}", where=where, fix=suggest(path, modules)
        )
    if not isinstance(module, _KINDS):
        raise ConvertError(
            f"{path!r} is a {type(module).__name__}, of which no codebook layer exists",
            where=where,
            fix=f"compress with --exact {name}",
        )
    return module


def _layer(layer: Any, weights: CodebookWeights, compute: str, name: str) -> CodebookLayer:
    weight = layer.weight
    if (weight.shape[0], weight[0].numel()) != weights.shape:
        raise ConvertError(
            f"{name!r} is {weights.shape[0]} x {weights.shape[1]}, the model's is "
            f"{weight.shape[0]} x {weight[0].numel()}",
            where="load_into",
            fix="build the model with the config of the checkpoint",
        )
    place = {"device": "cpu" if weight.is_meta else weight.device, "dtype": weight.dtype}
    if isinstance(layer, torch.nn.Embedding):
        if weight.is_meta:
            options: dict[str, Any] = {"padding_idx": layer.padding_idx}
        else:
            options = embedding_options(layer)
        return CodebookEmbedding.from_weights(weights, compute=compute, **{**options, **place})
    bias = layer.bias
    if bias is not None and bias.is_meta:
        bias = torch.zeros(bias.shape, dtype=bias.dtype)  # its values are loaded later
    if isinstance(layer, torch.nn.Conv2d):
        options = {**conv_options(layer), **place}
        return CodebookConv2d.from_weights(weights, bias, compute=compute, **options)
    return CodebookLinear.from_weights(weights, bias, compute=compute, **place)


def _install(model: torch.nn.Module, layers: dict[int, CodebookLayer]) -> torch.nn.Module:
    if id(model) in layers:
        return layers[id(model)]
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if id(child) in layers:
                setattr(parent, name, layers[id(child)])
    return model


def _load_exact(model: torch.nn.Module, exact: dict[str, torch.Tensor], where: str) -> None:
    held = {
        f"{name}.{part}".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, CodebookLayer)
        for part in module.state_dict()
        if part != "bias"
    }
    state = model.state_dict(keep_vars=True)
    on_meta = any(state[name].is_meta for name in exact if name in state)
    if on_meta:  # the model's dtype counts, as it does where values are copied
        exact = {n: t.to(state[n].dtype) if n in state else t for n, t in exact.items()}
    try:
        missing, unexpected = model.load_state_dict(exact, strict=False, assign=on_meta)
    except RuntimeError as error:
        raise ConvertError(str(error), where=where, fix="use the checkpoint's config") from error
    tied = {id(state[name]) for name in exact if name in state}
    missing = [n for n in missing if n not in held and id(state[n]) not in tied]
    if missing or unexpected:
        what = f"the model has no {unexpected[0]!r}" if unexpected else f"{missing[0]!r} is missing"
        raise ConvertError(
            f"{what} ({len(unexpected)} tensors too many, {len(missing)} too few)",
            where=where,
            fix="build the model that the checkpoint was made from",
        )
