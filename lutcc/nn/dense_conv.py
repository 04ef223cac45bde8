"""An exact convolution in float32, bfloat16 or int8, on kernels of lutcc's own."""

from __future__ import annotations

from typing import Any, Self

import torch

from lutcc.errors import InputError
from lutcc.nn.codebook_conv import (
    check_images,
    conv_options,
    geometry_text,
    pad_input,
    padded_sides,
)
from lutcc.nn.conv import checked_pair
from lutcc.nn.dense_layer import DenseLayer, finite

Pair = tuple[int, int]


class DenseConv2d(DenseLayer):
    """A 2-D convolution for ``x`` ([N,] in_channels, H, W) of any float dtype.

    ``weight`` is (out_channels, in_channels // groups, kh, kw), as of
    :class:`lutcc.nn.dense_layer.DenseLayer`; of int8, ``scales`` has a number for each output.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As of :class:`torch.nn.Conv2d`.
    compute
        "float32"; "bfloat16": x is rounded to it, sums are float32; "int8": each image of x is
        rounded to integers, whose sums are exact.
    device
        As of :class:`torch.nn.Conv2d`.
    dtype
        Of the bias.

    Raises
    ------
    InputError
        If an option, or the dtype or shape of the input does not fit.

    Examples
    --------
    >>> layer = DenseConv2d(3, 8, 3, padding=1, compute="int8")
    >>> layer(torch.randn(2, 3, 10, 10)).shape, sorted(layer.state_dict())
    (torch.Size([2, 8, 10, 10]), ['bias', 'scales', 'weight'])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: Any = "zeros",
        *,
        compute: str = "int8",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        where = type(self).__name__
        self.kernel_size = checked_pair("kernel_size", kernel_size, 1, where)
        self.stride = checked_pair("stride", stride, 1, where)
        self.dilation = checked_pair("dilation", dilation, 1, where)
        if not isinstance(padding, str):
            padding = checked_pair("padding", padding, 0, where)
        self.padding: Pair | str = padding
        self._sides = padded_sides(padding, self.kernel_size, self.dilation)
        geometry = (self.kernel_size, self.stride, padding, self.dilation, groups)
        try:
            fresh = torch.nn.Conv2d(
                in_channels, out_channels, *geometry, bias, padding_mode, device, dtype
            )
        except ValueError as error:
            raise InputError(str(error), where=where, fix="pass torch.nn.Conv2d's own") from error
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.padding_mode = padding_mode
        self._begin(fresh, compute)

    @classmethod
    def from_conv(cls, conv: torch.nn.Conv2d, *, compute: str = "int8") -> Self:
        """Return a layer with the weights of ``conv``, which is not changed.

        Raises
        ------
        InputError
            For an unknown ``compute``, or weights that are NaN or infinite.

        Examples
        --------
        >>> conv, x = torch.nn.Conv2d(3, 8, 3), torch.randn(2, 3, 6, 6)
        >>> exact = DenseConv2d.from_conv(conv, compute="float32")
        >>> torch.allclose(exact(x), conv(x), atol=1e-5)
        True
        """
        finite(conv.weight.detach(), cls.__name__)
        layer = cls(
            out_channels=conv.out_channels,
            bias=conv.bias is not None,
            compute=compute,
            **conv_options(conv),
        )
        return layer._copy(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ([N,] out_channels, OH, OW) in the dtype of ``x`` ([N,] in_channels, H, W)."""
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        check_images(x, self.in_channels, type(self).__name__)
        x, padding = pad_input(x, self._sides, self.padding_mode)
        return torch.ops.lutcc.conv2d(
            x,
            self.weight,
            self.scales,
            self._bias_for(x),
            list(self.stride),
            list(padding),
            list(self.dilation),
            self.groups,
            self.compute,
        )

    def extra_repr(self) -> str:
        """Return the sizes and arithmetic shown by ``print``."""
        return f"{geometry_text(self, self._sides)}, compute={self.compute!r}"
