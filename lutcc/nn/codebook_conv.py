"""A convolution whose weights are indices into codebooks."""

from __future__ import annotations

from typing import Any, Self

import torch

from lutcc.codebook_weights import CodebookWeights
from lutcc.errors import InputError
from lutcc.lookup_options import check_name
from lutcc.nn.calibration import output_size
from lutcc.nn.codebook import CodebookLayer, check_floats, form_of
from lutcc.nn.conv import checked_pair

Pair = tuple[int, int]

_WHERE = "CodebookConv2d"
_MODES = ("zeros", "reflect", "replicate", "circular")


class CodebookConv2d(CodebookLayer):
    """A 2-D convolution for ``x`` ([N,] in_channels, H, W) of any float dtype.

    Its weights, as a matrix (out_channels, in_channels // groups * kh * kw), are written with
    codebooks. In eval mode patches become rows (im2col) that are multiplied by the matrix as it is
    stored; convolutions of several groups, and training, look the weights up first and leave the
    rest to torch.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As of :class:`torch.nn.Conv2d`.
    bits, num_codebooks, num_scales, segment_size, reordered, num_outliers, compute, device, dtype
        As of :class:`lutcc.nn.CodebookLinear`; ``compute`` concerns one group only.

    Raises
    ------
    InputError
        If an option, or the dtype or shape of the input does not fit.

    Notes
    -----
    Source: JLCM, equations 1, 2 and 4.

    Examples
    --------
    >>> layer = CodebookConv2d(3, 8, 3, padding=1, bits=3, num_scales=8)
    >>> layer(torch.randn(2, 3, 10, 10)).shape
    torch.Size([2, 8, 10, 10])
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
        padding_mode: str = "zeros",
        *,
        bits: int,
        num_codebooks: int = 1,
        num_scales: int = 1,
        segment_size: int = 0,
        reordered: bool = False,
        num_outliers: int = 0,
        compute: str = "int8",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        kernel = checked_pair("kernel_size", kernel_size, 1, _WHERE)
        if groups < 1 or in_channels % groups or out_channels % groups:
            raise InputError(
                f"groups={groups} does not divide {in_channels} and {out_channels} channels",
                where=_WHERE,
                fix="mend groups",
            )
        super().__init__(
            out_channels,
            in_channels // groups * kernel[0] * kernel[1],
            bias=bias,
            bits=bits,
            num_codebooks=num_codebooks,
            num_scales=num_scales,
            segment_size=segment_size,
            reordered=reordered,
            num_outliers=num_outliers,
            compute=compute,
            device=device,
            dtype=dtype,
        )
        check_name(_WHERE, "padding_mode", padding_mode, _MODES)
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = kernel
        self.stride = checked_pair("stride", stride, 1, _WHERE)
        self.dilation = checked_pair("dilation", dilation, 1, _WHERE)
        self.padding_mode = padding_mode
        self.padding: Pair | str = (
            padding if isinstance(padding, str) else checked_pair("padding", padding, 0, _WHERE)
        )
        self._sides = padded_sides(self.padding, kernel, self.dilation)

    @classmethod
    def from_weights(
        cls,
        weights: CodebookWeights,
        bias: Any = None,
        *,
        in_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        compute: str = "int8",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Return a layer in eval mode that holds a compressed matrix.

        The matrix is (out_channels, in_channels // groups * kh * kw).

        Raises
        ------
        InputError
            If the matrix has other columns.

        Examples
        --------
        >>> weights = CodebookWeights.of(np.zeros((3, 4)), [[1, 2, 3, 4]], bits=2)
        >>> CodebookConv2d.from_weights(weights, in_channels=1, kernel_size=2).weight.shape
        torch.Size([3, 1, 2, 2])
        """
        layer = cls(
            in_channels,
            weights.shape[0],
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias is not None,
            padding_mode,
            **form_of(weights),
            compute=compute,
            device=device,
            dtype=dtype,
        )
        if layer.columns != weights.columns:
            raise InputError(
                f"the matrix has {weights.columns} columns, but kernels of {in_channels} channels, "
                f"{groups} groups and size {layer.kernel_size} have {layer.columns}",
                where=_WHERE,
                fix="fit it on weight.flatten(1) of the same convolution",
            )
        return layer.load_weights(weights, bias)

    @classmethod
    def from_conv(
        cls,
        conv: torch.nn.Conv2d,
        inputs: Any = None,
        *,
        alpha: float,
        mode: str = "scales",
        compute: str = "int8",
        max_rows: int | None = 4096,
        **options: Any,
    ) -> Self:
        """Compress the weights of ``conv``.

        Parameters
        ----------
        conv
            The exact layer; it is not changed.
        inputs
            ([N,] in_channels, H, W) tensor or array of what it receives, to learn from; None, or
            groups: without.
        alpha, mode, options
            Of :class:`lutcc.fit.WeightCodebooks`.
        compute
            As for the class.
        max_rows
            Learn from at most this many patches, drawn with the seed ``random_state``; None keeps
            all.

        Raises
        ------
        InputError
            If shapes disagree, an option is wrong, or the layer cannot reach ``alpha``.

        Examples
        --------
        >>> layer = CodebookConv2d.from_conv(torch.nn.Conv2d(16, 16, 3), alpha=5)
        >>> layer.bits, layer.footprint().alpha >= 5
        (3, True)
        """
        from lutcc.nn.codebook_fitting import fit_conv

        weights = fit_conv(conv, inputs, max_rows, alpha=alpha, mode=mode, **options)
        return cls.from_weights(weights, conv.bias, compute=compute, **conv_options(conv))

    @property
    def weight(self) -> torch.Tensor:
        """(out_channels, in_channels // groups, kh, kw) float32, looked up at each access."""
        return self.dequantize().reshape(
            self.out_channels, self.in_channels // self.groups, *self.kernel_size
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ([N,] out_channels, OH, OW) in the dtype of ``x`` ([N,] in_channels, H, W)."""
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        check_images(x, self.in_channels, _WHERE)
        x, padding = pad_input(x, self._sides, self.padding_mode)
        geometry = {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": padding,
            "dilation": self.dilation,
        }
        oh, ow = output_size(x.shape[2], x.shape[3], geometry)
        if oh < 1 or ow < 1:
            raise InputError(
                f"an image of {tuple(x.shape[2:])} is smaller than the kernel {self.kernel_size}",
                where=_WHERE,
                fix="pass larger images",
            )
        if self.training or self.groups > 1:
            bias = None if self.bias is None else self.bias.to(x.dtype)
            weight = self.weight.to(x.dtype)
            return torch.nn.functional.conv2d(
                x, weight, bias, self.stride, padding, self.dilation, self.groups
            )
        rows = torch.ops.lutcc.im2col(x.float(), *(list(pair) for pair in geometry.values()))
        y = torch.ops.lutcc.rows_to_nchw(self.multiply(rows), oh, ow)
        return y if y.dtype is x.dtype else y.to(x.dtype)

    def extra_repr(self) -> str:
        """Return the sizes and form shown by ``print``."""
        return f"{geometry_text(self, self._sides)}, {self.describe_codebooks()}"


def conv_options(conv: torch.nn.Conv2d) -> dict[str, Any]:
    """Return what a codebook layer takes over from ``conv``, but its weights and bias."""
    names = ("in_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    options = {name: getattr(conv, name) for name in names}
    options["padding_mode"] = conv.padding_mode
    return {**options, "device": conv.weight.device, "dtype": conv.weight.dtype}


def check_images(x: torch.Tensor, channels: int, where: str) -> None:
    """Raise InputError unless ``x`` is a batch of images of so many channels."""
    if x.dim() != 4:
        raise InputError(
            f"the input has shape {tuple(x.shape)}", where=where, fix=f"pass (N, {channels}, H, W)"
        )
    check_floats(x, channels, 1, where)


def geometry_text(layer: Any, sides: tuple[int, ...]) -> str:
    """Return the sizes of a convolution as ``print`` shows them."""
    text = f"{layer.in_channels}, {layer.out_channels}, kernel_size={layer.kernel_size}"
    text += f", stride={layer.stride}"
    if any(sides):
        text += f", padding={layer.padding!r}"
    if layer.dilation != (1, 1):
        text += f", dilation={layer.dilation}"
    if layer.groups != 1:
        text += f", groups={layer.groups}"
    if layer.padding_mode != "zeros":
        text += f", padding_mode={layer.padding_mode!r}"
    return f"{text}, bias={layer.bias is not None}"


def padded_sides(padding: Pair | str, kernel: Pair, dilation: Pair) -> tuple[int, int, int, int]:
    """Return (left, right, top, bottom), the order of ``torch.nn.functional.pad``.

    Raises
    ------
    InputError
        If ``padding`` is a name other than "same" and "valid".

    Examples
    --------
    >>> padded_sides("same", (2, 3), (1, 1))
    (1, 1, 0, 1)
    """
    if isinstance(padding, str):
        check_name(_WHERE, "padding", padding, ("same", "valid"))
        total = [
            d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)
        ]
        top, left = total[0] // 2, total[1] // 2
        return left, total[1] - left, top, total[0] - top
    return padding[1], padding[1], padding[0], padding[0]


def pad_input(
    x: torch.Tensor, sides: tuple[int, int, int, int], mode: str
) -> tuple[torch.Tensor, Pair]:
    """Return images, and how many zeros a convolution still has to put around them."""
    left, right, top, bottom = sides
    if mode == "zeros" and left == right and top == bottom:
        return x, (top, left)
    if not any(sides):
        return x, (0, 0)
    return torch.nn.functional.pad(x, sides, "constant" if mode == "zeros" else mode), (0, 0)
