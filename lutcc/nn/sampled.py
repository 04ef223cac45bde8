"""Linear layers that compute from a part of their column-row pairs while they are trained."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Self, TypeVar

import torch
from torch.nn.modules.lazy import LazyModuleMixin

from lutcc.errors import InputError
from lutcc.ops.sampled import sampled_linear
from lutcc.ops.sampled_scores import column_row_scores, pairs_of
from lutcc.ops.sampled_selection import column_row_sample
from lutcc.sampling_options import SamplingOptions
from lutcc.sampling_options_traced import TracedOptions

_STATE = ("_options", "seed", "_observed", "_scores", "_scored_as")
Kind = TypeVar("Kind", bound=torch.nn.Module)
_FORWARD = ("forward_backward", "forward")


class SampledLayer(torch.nn.Module):
    """What the sampled layers share: options, and what tools may ask of a layer."""

    weight: torch.Tensor
    seed: int | None
    _options: TracedOptions
    _observed: bool
    _scores: torch.Tensor | None
    _scored_as: torch.dtype | None

    def _sample_by(self, options: SamplingOptions, seed: int | None) -> None:
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise InputError(
                f"seed={seed!r} is neither None nor an integer",
                where=type(self).__name__,
                fix="use None to draw from torch's generator at every call",
            )
        self._options = TracedOptions.of(options)
        self.seed = seed
        self._observed, self._scores, self._scored_as = False, None, None

    @property
    def options(self) -> SamplingOptions:
        """What is sampled and how."""
        return SamplingOptions(**self._options.to_dict())

    @property
    def sample_ratio(self) -> float:
        """The part of the pairs that is taken; may be set."""
        return self._options.sample_ratio

    @sample_ratio.setter
    def sample_ratio(self, value: float) -> None:
        if value != self._options.sample_ratio:
            options = dataclasses.replace(self.options, sample_ratio=value)
            self._options = TracedOptions.of(options)

    @property
    def pairs(self) -> int:
        """Pairs of the forward product: features, groups of them, or channels of a group."""
        raise NotImplementedError

    def to_exact(self) -> torch.nn.Module:
        """Return the dense layer, with the very parameters of this one."""
        raise NotImplementedError

    @property
    def samples_forward(self) -> bool:
        """Whether the forward product is sampled, at present."""
        return self._options.where in _FORWARD and self._options.count(self.pairs) < self.pairs

    def observe(self, on: bool = True) -> None:
        """Keep the scores of the last training call in :attr:`last_scores`, or no longer.

        Schedules that follow the error use it; it costs the norms of the operands once more.
        """
        self._observed = on
        if not on:
            self._scores = None

    @property
    def last_scores(self) -> torch.Tensor | None:
        """(P,) scores of the forward product of the last call in training, if observed."""
        return self._scores

    def sampled_inputs(self) -> torch.Tensor | None:
        """Return which columns of the weight (its dimension 1) alone get a gradient in this step.

        Workers that hold the same weights agree on it, so they need to send these columns only.

        Returns
        -------
        torch.Tensor or None
            int64, ascending; of the weight as it is now, so ask before the optimizer steps. None
            unless mode is "topk_weights", ``where`` "forward_backward", and not all are taken; and
            None for grouped convolutions, whose groups may take different ones.
        """
        options = self._options
        chosen = options.mode == "topk_weights" and options.where == "forward_backward"
        if not chosen or not self.samples_forward or getattr(self, "groups", 1) != 1:
            return None
        weight = self.weight.detach()
        # the forward pass may have ranked the weight as autocast rounded it
        scores = self._scores_of(weight.to(self._scored_as or weight.dtype))
        indices, scales = column_row_sample(scores, options.count(self.pairs), options.mode)
        indices = indices[scales != 0].long()
        if options.group_size > 1:
            offsets = torch.arange(options.group_size, device=indices.device)
            indices = (indices[:, None] * options.group_size + offsets).flatten()
            indices = indices[indices < weight.shape[1]]
        return indices

    def weight_scores(self) -> torch.Tensor:
        """Return (P,) scores by the weight alone, by which "topk_weights" chooses."""
        return self._scores_of(self.weight.detach())

    def _scores_of(self, weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _note_call(self, x: torch.Tensor) -> None:
        """Remember of a call in training what tools may ask for later."""
        if self._options.mode == "topk_weights":
            kind = x.device.type
            on = not x.is_meta and torch.is_autocast_enabled(kind)
            rounded = on and self.weight.dtype is not torch.float64
            self._scored_as = torch.get_autocast_dtype(kind) if rounded else None
        if self._observed:
            with torch.no_grad():
                self._scores = self._observed_scores(x)

    def _observed_scores(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _describe(self) -> str:
        default = SamplingOptions()
        parts = [f"mode={self._options.mode}", f"sample_ratio={self.sample_ratio:g}"]
        parts += [
            f"{name}={value}"
            for name, value in self._options.to_dict().items()
            if name not in ("mode", "sample_ratio") and value != getattr(default, name)
        ]
        return ", ".join(parts if self.seed is None else [*parts, f"seed={self.seed}"])


class SampledLinear(SampledLayer, torch.nn.Linear):
    """A Linear layer whose products are sampled in training and exact in evaluation.

    It is a :class:`torch.nn.Linear`, with the same parameters and the same ``state_dict``.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As of :class:`torch.nn.Linear`.
    mode, sample_ratio, minimal_k, where, probabilities, scaling, group_size
        See :class:`lutcc.sampling_options.SamplingOptions`.
    seed
        Of the random modes, the same at every call; None draws from torch's generator.

    Raises
    ------
    InputError
        If an option is wrong.

    Notes
    -----
    Source: Adelman et al., Faster neural network training with approximate tensor operations
    (NeurIPS 2021).

    Examples
    --------
    >>> layer = SampledLinear(64, 10, sample_ratio=0.25)
    >>> layer(torch.randn(8, 64)).shape
    torch.Size([8, 10])
    >>> layer
    SampledLinear(in_features=64, out_features=10, bias=True, mode=topk, sample_ratio=0.25)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        mode: str = "topk",
        sample_ratio: float = 0.5,
        minimal_k: int = 1,
        where: str = "forward_backward",
        probabilities: str = "optimal",
        scaling: str = "both",
        group_size: int = 1,
        seed: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        options = SamplingOptions(
            mode=mode,
            sample_ratio=sample_ratio,
            minimal_k=minimal_k,
            where=where,
            probabilities=probabilities,
            scaling=scaling,
            group_size=group_size,
        )
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self._sample_by(options, seed)

    @classmethod
    def from_linear(
        cls, layer: torch.nn.Linear, *, seed: int | None = None, **options: Any
    ) -> Self:
        """Return a sampled layer with the very parameters of ``layer``, its mode and its hooks.

        An optimizer that has the parameters goes on working.

        Parameters
        ----------
        layer
            A Linear layer, or a sampled one whose options are to be changed.
        seed, options
            As for the class.

        Raises
        ------
        InputError
            If an option is wrong, or the layer's class has a life of its own: a lazy or
            parametrised layer, or the output projection of torch's attention.

        Examples
        --------
        >>> dense = torch.nn.Linear(8, 3)
        >>> SampledLinear.from_linear(dense, sample_ratio=0.5).weight is dense.weight
        True
        """
        made = with_class(layer, torch.nn.Linear, cls)
        made._sample_by(SamplingOptions(**options), seed)
        return made

    def to_linear(self) -> torch.nn.Linear:
        """Return the dense layer, with the very parameters of this one.

        Examples
        --------
        >>> layer = SampledLinear(8, 3)
        >>> layer.to_linear().weight is layer.weight
        True
        """
        return with_class(self, torch.nn.Linear, torch.nn.Linear)

    def to_exact(self) -> torch.nn.Linear:
        """Return :meth:`to_linear`."""
        return self.to_linear()

    @property
    def pairs(self) -> int:
        """Pairs of the forward product: features, or groups of them."""
        return pairs_of(self.in_features, self._options.group_size)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) for ``input`` (..., in_features)."""
        if not self.training or not self.weight.numel():
            return torch.nn.functional.linear(input, self.weight, self.bias)
        self._note_call(input)
        return sampled_linear(input, self.weight, self.bias, self._options, self.seed)

    def macs(self, rows: int) -> tuple[int, int]:
        """Return the multiply-adds of a training step on so many rows, and those of a dense layer.

        Forward product and both gradients; scores and selection are not counted, and of
        "bernoulli" the expected number is.

        Examples
        --------
        >>> SampledLinear(64, 10, sample_ratio=0.25).macs(100)
        (48000, 192000)
        """
        features, outputs = self.in_features, self.out_features
        dense = rows * features * outputs
        if self._options.where in _FORWARD:
            forward = rows * self._kept(features) * outputs
            both = self._options.where == "forward_backward"
            return forward + 2 * (forward if both else dense), 3 * dense
        inputs = dense
        if self._options.where == "backward":
            inputs = rows * features * self._kept(outputs)
        return dense + inputs + self._kept(rows) * features * outputs, 3 * dense

    def _kept(self, size: int) -> int:
        """Return how many of so many columns are taken."""
        group_size = self._options.group_size
        return min(size, self._options.count(pairs_of(size, group_size)) * group_size)

    def _scores_of(self, weight: torch.Tensor) -> torch.Tensor:
        nothing = weight.new_empty((0, self.in_features))
        return column_row_scores(nothing, weight.t(), self._options.group_size, weights_only=True)

    def _observed_scores(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.in_features).to(self.weight.dtype)
        return column_row_scores(rows, self.weight.t(), self._options.group_size)

    def extra_repr(self) -> str:
        """Return the sizes and options shown by ``print``."""
        return f"{super().extra_repr()}, {self._describe()}"


def with_class(layer: torch.nn.Module, base: type[torch.nn.Module], kind: type[Kind]) -> Kind:
    """Return a module of class ``kind`` with the parameters, mode and hooks of ``layer``.

    Raises
    ------
    InputError
        Unless ``layer`` is a ``base`` or sampled layer, and nothing else.
    """
    if type(layer) is not base and not (
        isinstance(layer, SampledLayer) and isinstance(layer, base)
    ):
        raise InputError(
            f"the layer is a {type(layer).__name__}, not a torch.nn.{base.__name__}",
            where=kind.__name__,
            fix=_fix(layer),
        )
    made = kind.__new__(kind)
    for name, value in vars(layer).items():
        if name not in _STATE:
            # a module's own containers; what is in them is shared
            vars(made)[name] = copy.copy(value) if isinstance(value, dict | set) else value
    return made


def _fix(layer: torch.nn.Module) -> str:
    """Return how to mend a layer that is of no plain class."""
    if isinstance(layer, LazyModuleMixin):
        return "run the model once on an example, so that the layer knows its sizes"
    if torch.nn.utils.parametrize.is_parametrized(layer):
        return (
            "sample the layer first and parametrise it then; or call "
            "torch.nn.utils.parametrize.remove_parametrizations before"
        )
    if type(layer).__name__ == "NonDynamicallyQuantizableLinear":
        return (
            "leave it exact: torch's attention multiplies by its weight without calling the layer"
        )
    return "leave it exact, or make it a subclass of lutcc.nn.SampledLinear or SampledConv2d"
