"""Convolutions that compute from a part of their input channels while they are trained."""

from __future__ import annotations

from typing import Any, Self

import torch

from lutcc.errors import InputError
from lutcc.nn.sampled import SampledLayer, with_class
from lutcc.ops.sampled import sampled_conv2d
from lutcc.ops.sampled_channels import channel_scores
from lutcc.sampling_options import SamplingOptions


class SampledConv2d(SampledLayer, torch.nn.Conv2d):
    """A 2-D convolution that is sampled in training and exact in evaluation.

    It is a :class:`torch.nn.Conv2d`, with the same parameters and the same ``state_dict``. A pair
    is an input channel; with groups, each takes as many of its own. In "backward" and
    "weight_gradient" pairs are output channels for the input's gradient, images for the weight's.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As of :class:`torch.nn.Conv2d`.
    device, dtype
        As of :class:`torch.nn.Conv2d`.
    mode, sample_ratio, minimal_k, where, probabilities, scaling
        See :class:`lutcc.sampling_options.SamplingOptions`.
    group_size
        1: a pair is a whole channel.
    seed
        Of the random modes, the same at every call; None draws from torch's generator.

    Raises
    ------
    InputError
        If an option is wrong.

    Notes
    -----
    Source: Adelman et al., section 7; the probabilities are derived at
    :func:`lutcc.ops.channel_scores`.

    Examples
    --------
    >>> layer = SampledConv2d(16, 8, 3, padding=1, mode="crs", sample_ratio=0.25)
    >>> layer(torch.randn(2, 16, 5, 5)).shape
    torch.Size([2, 8, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
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
        options = _checked(
            mode=mode,
            sample_ratio=sample_ratio,
            minimal_k=minimal_k,
            where=where,
            probabilities=probabilities,
            scaling=scaling,
            group_size=group_size,
        )
        geometry = (kernel_size, stride, padding, dilation, groups, bias, padding_mode)
        super().__init__(in_channels, out_channels, *geometry, device=device, dtype=dtype)
        self._sample_by(options, seed)

    @classmethod
    def from_conv(cls, layer: torch.nn.Conv2d, *, seed: int | None = None, **options: Any) -> Self:
        """Return a sampled layer with the very parameters of ``layer``, its mode and its hooks.

        An optimizer that has the parameters goes on working.

        Raises
        ------
        InputError
            If an option is wrong, or the layer is of another class.

        Examples
        --------
        >>> dense = torch.nn.Conv2d(8, 3, 3)
        >>> SampledConv2d.from_conv(dense, sample_ratio=0.5).weight is dense.weight
        True
        """
        made = with_class(layer, torch.nn.Conv2d, cls)
        made._sample_by(_checked(**options), seed)
        return made

    def to_conv(self) -> torch.nn.Conv2d:
        """Return the dense layer, with the very parameters of this one.

        Examples
        --------
        >>> SampledConv2d(4, 3, 3).to_conv()
        Conv2d(4, 3, kernel_size=(3, 3), stride=(1, 1))
        """
        return with_class(self, torch.nn.Conv2d, torch.nn.Conv2d)

    def to_exact(self) -> torch.nn.Conv2d:
        """Return :meth:`to_conv`."""
        return self.to_conv()

    @property
    def pairs(self) -> int:
        """Input channels of a group."""
        return self.in_channels // self.groups

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return ([N,] out_channels, OH, OW) for ``input`` ([N,] in_channels, H, W)."""
        if not self.training:
            return super().forward(input)
        self._note_call(input)
        padding = self.padding
        if self.padding_mode != "zeros":
            input, padding = self._pad(input), 0
        geometry = (self.stride, padding, self.dilation, self.groups)
        return sampled_conv2d(
            input, self.weight, self.bias, *geometry, options=self._options, seed=self.seed
        )

    def _pad(self, x: torch.Tensor) -> torch.Tensor:
        sides = self._reversed_padding_repeated_twice
        return torch.nn.functional.pad(x, sides, mode=self.padding_mode)

    def macs(self, rows: int, images: int | None = None) -> tuple[int, int]:
        """Return the multiply-adds of a training step, and those of the dense layer.

        Forward product and both gradients; scores and selection are not counted, and of
        "bernoulli" the expected number is.

        Parameters
        ----------
        rows
            Output positions of all images together.
        images
            How many images, for "backward" and "weight_gradient", which sample whole ones; None
            takes the ratio for what is left of them.

        Examples
        --------
        >>> SampledConv2d(16, 8, 3, sample_ratio=0.25).macs(100)
        (86400, 345600)
        """
        options = self._options
        kernel = self.kernel_size[0] * self.kernel_size[1]
        dense = rows * self.out_channels * self.pairs * kernel
        if options.where in ("forward_backward", "forward"):
            forward = rows * self.out_channels * options.count(self.pairs) * kernel
            return forward + 2 * (dense if options.where == "forward" else forward), 3 * dense
        inputs = dense
        if options.where == "backward":
            outputs = self.out_channels // self.groups
            inputs = dense // outputs * options.count(outputs)
        share = options.sample_ratio if not images else options.count(images) / images
        return dense + inputs + round(dense * share), 3 * dense

    def _scores_of(self, weight: torch.Tensor) -> torch.Tensor:
        height, width = (
            d * (k - 1) + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True)
        )
        nothing = weight.new_empty((0, self.in_channels, height, width))
        return channel_scores(
            nothing, weight, dilation=self.dilation, groups=self.groups, weights_only=True
        )

    def _observed_scores(self, x: torch.Tensor) -> torch.Tensor:
        x = (x if x.dim() == 4 else x[None]).to(self.weight.dtype)
        padding: Any = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str):
            sides = self._reversed_padding_repeated_twice
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x, padding = torch.nn.functional.pad(x, sides, mode=mode), 0
        return channel_scores(x, self.weight, self.stride, padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        """Return the sizes and options shown by ``print``."""
        return f"{super().extra_repr()}, {self._describe()}"


def _checked(**options: Any) -> SamplingOptions:
    made = SamplingOptions(**options)
    if made.group_size != 1:
        raise InputError(
            f"group_size={made.group_size} is for linear layers: a convolution's pair is a channel "
            "or an image",
            where="SampledConv2d",
            fix="use group_size=1 for convolutions",
        )
    return made
