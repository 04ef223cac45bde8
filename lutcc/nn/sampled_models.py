"""The sampled layers of a model, and the model without them."""

from __future__ import annotations

import copy

import torch

from lutcc.nn.sampled import SampledLayer


def sampled_layers(model: torch.nn.Module) -> dict[str, SampledLayer]:
    """Return the sampled layers of a model by name, each once.

    Names lack what torch.compile and DistributedDataParallel put before them.

    Examples
    --------
    >>> from lutcc.nn import SampledLinear
    >>> model = torch.nn.Sequential(SampledLinear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> list(sampled_layers(model))
    ['0']
    """
    found: dict[str, SampledLayer] = {}
    for name, module in model.named_modules():
        if isinstance(module, SampledLayer):
            found[_plain_name(model, name)] = module
    return found


def _plain_name(model: torch.nn.Module, name: str) -> str:
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    if isinstance(model, torch.nn.parallel.DistributedDataParallel) and parts[:1] == ["module"]:
        parts = parts[1:]
    return ".".join(parts)


def exact_layers(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model with dense layers in place of sampled ones, and the very same parameters.

    ``model`` itself stays as it is. Evaluation mode is exact without this; it serves those who want
    torch's own classes, say for another tool.

    Examples
    --------
    >>> from lutcc.nn import SampledLinear
    >>> exact_layers(torch.nn.Sequential(SampledLinear(4, 2)))
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    tensors = [*model.parameters(), *model.buffers()]
    result: torch.nn.Module = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    if isinstance(result, SampledLayer):
        return result.to_exact()
    made: dict[int, torch.nn.Module] = {}
    for parent in list(result.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, SampledLayer):
                made.setdefault(id(child), child.to_exact())
                setattr(parent, name, made[id(child)])
    return result
