"""How much memory a model's activations take at once."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lutcc.codebook_weights import REFERENCE_BITS


def activation_bits(model: torch.nn.Module, inputs: Any) -> int:
    """Return the bits of the activations that ``model`` holds at once, at most.

    Every tensor that an operation makes counts from then until nothing refers to it any more,
    inputs included; parameters and buffers do not. Floats count 16 bits whatever their dtype.

    Parameters
    ----------
    model
        Run once, in eval mode, without gradients.
    inputs
        A tensor, a tuple of arguments, or a dictionary of keyword arguments.

    Notes
    -----
    Source: JLCM, section 3.1 and table 1 (M_A).

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32, bias=False), torch.nn.ReLU())
    >>> activation_bits(model, torch.zeros(1, 8))  # the input, and 32 before and after the ReLU
    1152
    """
    # a part of a larger tensor would count as that
    inputs = tree_map(lambda t: t.clone() if isinstance(t, torch.Tensor) else t, inputs)
    args, kwargs = (inputs, {}) if isinstance(inputs, tuple) else ((inputs,), {})
    if isinstance(inputs, dict):
        args, kwargs = (), inputs
    held = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
    training = model.training
    model.eval()
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), _Live(held) as live:
            live.count(tree_leaves((args, kwargs)))
            model(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        model.train(training)
    return live.most


class _Live(TorchDispatchMode):
    """Counts the bits of tensors that are alive."""

    def __init__(self, held: Iterable[torch.UntypedStorage]) -> None:
        super().__init__()
        self._held = {storage._cdata for storage in held}
        self._alive: dict[int, Any] = {}
        self.now = self.most = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # skipping imports all of torch.compile, for seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count(tree_leaves(result))
        return result

    def count(self, values: Iterable[Any]) -> None:
        """Count tensors that are not known yet."""
        for value in values:
            if not isinstance(value, torch.Tensor):
                continue
            storage = value.untyped_storage()
            key = storage._cdata
            if key in self._held or key in self._alive:
                continue
            entry = REFERENCE_BITS if value.is_floating_point() else 8 * value.element_size()
            bits = storage.nbytes() // value.element_size() * entry

            def gone(_: Any, key: int = key, bits: int = bits) -> None:
                self._alive.pop(key, None)
                self.now -= bits

            self._alive[key] = weakref.ref(storage, gone)
            self.now += bits
            self.most = max(self.most, self.now)
