"""Parameters as a compiled model stores them: rounded copies in eval mode; what no cast changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch


class RoundedParameters(torch.nn.Module):
    """A layer that computes on rounded copies of its parameters in eval mode.

    The copies are buffers outside the ``state_dict``: made by ``eval()``, made again when a
    parameter has changed, dropped by ``train()``. ``torch.export`` therefore sees them as
    constants, and the exported model computes what the layer computes. Only a parameter that is
    edited in place in eval mode and exported (or run by ``torch.compile``) before the next call
    needs another ``eval()`` first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._rounded: tuple[str, ...] = ()
        self._made_from: tuple[Any, ...] | None = None

    def declare_rounded(self, *names: str) -> None:
        """Name the copies; :meth:`round_parameters` returns them in the same order."""
        self._rounded = names
        for name in names:
            self.register_buffer(name, None, persistent=False)

    def round_parameters(self) -> tuple[torch.Tensor, ...]:
        """Return the copies, made from the parameters as they are now."""
        raise NotImplementedError

    def rounded(self) -> tuple[torch.Tensor, ...]:
        """Return the copies, made again if a parameter has changed."""
        if torch.compiler.is_compiling():  # buffers cannot be set while a graph is traced
            held = tuple(self._buffers[name] for name in self._rounded)
            present = tuple(copy for copy in held if copy is not None)
            return present if len(present) == len(held) else self.round_parameters()
        if self._made_from != self._stamp():
            self.refresh_rounded()
        return tuple(getattr(self, name) for name in self._rounded)

    def refresh_rounded(self) -> None:
        """Make the copies from the parameters as they are now."""
        # Tensors made in inference mode could not take part in a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            copies = self.round_parameters()
        for name, copy in zip(self._rounded, copies, strict=True):
            setattr(self, name, copy)
        self._made_from = self._stamp()

    def _drop_rounded(self) -> None:
        for name in self._rounded:
            setattr(self, name, None)
        self._made_from = None

    def _stamp(self) -> tuple[Any, ...]:
        return tuple(
            (p.data_ptr(), 0 if p.is_inference() else p._version, p.dtype)
            for p in self.parameters(recurse=False)
        )

    def train(self, mode: bool = True) -> Self:
        """Set the mode; the copies exist in eval mode only."""
        super().train(mode)
        if self._rounded:
            if mode:
                self._drop_rounded()
            else:
                self.refresh_rounded()
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        # .half() and the like would cast the copies: make them again instead.
        self._drop_rounded()
        super()._apply(fn, recurse)
        if self._rounded and not self.training:
            self.refresh_rounded()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        if self._rounded and not self.training:
            self.refresh_rounded()


def without_casts(
    fn: Callable[[torch.Tensor], torch.Tensor], kept: Sequence[torch.Tensor | None]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what moves tensors as ``fn`` does, but leaves these, and their gradients, their dtype.

    For ``torch.nn.Module._apply``.
    """
    present = [tensor for tensor in kept if tensor is not None]
    present += [tensor.grad for tensor in present if tensor.grad is not None]

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        result = fn(tensor)
        if result.dtype is tensor.dtype or not any(tensor is other for other in present):
            return result
        return tensor.to(result.device)

    return moved
