"""Which parameters of a network are trained beside its look-ups, and how fast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn

from lutcc.errors import InputError, suggest
from lutcc.nn.lookup_ffn import LookupFFN

#: Learning rates of hash functions, and of exact layers' parameters, relative to those of tables:
#: all relative to the size of what is trained.
HASH_RATE, EXACT_RATE = 0.5, 0.2


def exact_parameters(
    model: nn.Module, frozen: Sequence[str]
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the exact layers' parameters that are trained, and those that are not."""
    named = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    for pattern in frozen:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise InputError(
                f"no parameter is called {pattern!r}",
                where="finetune(frozen=...)",
                fix=suggest(pattern, named),
            )
    still = {name for name in named if any(fnmatchcase(name, pattern) for pattern in frozen)}
    trained = [p for name, p in named.items() if name not in still]
    return trained, [named[name] for name in still]


def gathered_shares(model: nn.Module) -> dict[int, float]:
    """Return the rates of LookupFFN's parameters, relative to those of tables, by identity."""
    return {
        id(p): HASH_RATE if p is not m.tables and p is not m.bias else 1.0
        for m in model.modules()
        if isinstance(m, LookupFFN)
        for p in m.parameters()
    }


@contextmanager
def training(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Let layers compute in floats, with gradients, for a while."""
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()


@contextmanager
def gradients_reach(parameters: list[nn.Parameter], wanted: bool) -> Iterator[None]:
    """Let gradients reach parameters for a while, or not."""
    before = [(p, p.requires_grad) for p in parameters]
    for p in parameters:
        p.requires_grad_(wanted)
    try:
        yield
    finally:
        for p, was in before:
            p.requires_grad_(was)
            p.grad = None
