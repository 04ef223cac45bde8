"""A convolution by look-ups: patches become rows (im2col), rows become products."""

from __future__ import annotations

from typing import Any, Self

import torch

from lutcc.errors import InputError
from lutcc.fit import Maddness
from lutcc.nn.calibration import as_float_tensor, conv_rows, output_size
from lutcc.nn.lookup import MaddnessLookup, lookup_options


class MaddnessConv2d(MaddnessLookup):
    """A 2-D convolution by look-ups, for ``x`` ([N,] in_channels, H, W) float32.

    Every patch is one row of in_channels * kh * kw columns in the order of
    ``torch.nn.functional.unfold``; codebooks are runs of these columns, so
    ``ncodebooks=in_channels`` gives each channel its own.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation
        As in :class:`torch.nn.Conv2d`; padding in zeros, as numbers; one group.
    ncodebooks, nprototypes, encoder, activation, lut_dtype, accumulate, upcast_every
        As in :class:`lutcc.fit.Maddness`.

    Raises
    ------
    InputError
        If an option, the dtype or the shape of the input does not fit.

    Notes
    -----
    Source: MADDNESS applied to im2col, as in ITLUMM section 1.

    Examples
    --------
    >>> conv, x = torch.nn.Conv2d(3, 8, 3, padding=1), torch.randn(16, 3, 10, 10)
    >>> MaddnessConv2d.from_conv(conv, x, ncodebooks=9, random_state=0)(x).shape
    torch.Size([16, 8, 10, 10])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        *,
        ncodebooks: int,
        **options: Any,
    ) -> None:
        self.kernel_size = checked_pair("kernel_size", kernel_size, 1)
        super().__init__(
            in_channels * self.kernel_size[0] * self.kernel_size[1],
            out_channels,
            ncodebooks,
            **options,
        )
        self.in_channels, self.out_channels = in_channels, out_channels
        self.stride = checked_pair("stride", stride, 1)
        self.padding = checked_pair("padding", padding, 0)
        self.dilation = checked_pair("dilation", dilation, 1)

    @property
    def geometry(self) -> dict[str, tuple[int, int]]:
        """kernel_size, stride, padding and dilation by name."""
        return {
            "kernel_size": self.kernel_size,
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
        }

    @classmethod
    def from_conv(
        cls,
        conv: torch.nn.Conv2d,
        calibration_inputs: Any,
        *,
        max_rows: int | None = 65536,
        **maddness: Any,
    ) -> Self:
        """Fit look-ups to ``conv`` on what it receives.

        Parameters
        ----------
        conv
            The exact layer; it is not changed. One group, padding in zeros.
        calibration_inputs
            (N, in_channels, H, W) tensor or array.
        max_rows
            Fit on at most this many patches, drawn with the seed ``random_state``; None keeps all.
        maddness
            Arguments of :class:`lutcc.fit.Maddness`.

        Raises
        ------
        InputError
            If the convolution is of a kind that look-ups do not cover, shapes disagree or an option
            is wrong.

        Examples
        --------
        >>> conv, x = torch.nn.Conv2d(1, 4, 3), torch.randn(16, 1, 8, 8)
        >>> MaddnessConv2d.from_conv(conv, x, ncodebooks=3).lut.shape
        torch.Size([3, 16, 4])
        """
        geometry = conv_geometry(conv)
        inputs = as_float_tensor(calibration_inputs, cls.__name__)
        seed = maddness.get("random_state")
        rows = conv_rows(
            inputs, conv.in_channels, geometry, max_rows, seed if isinstance(seed, int) else None
        )
        estimator = Maddness(**maddness).fit(rows, *conv_weights(conv))
        return cls.from_estimator(estimator, conv.in_channels, **geometry).to(conv.weight.device)

    @classmethod
    def from_estimator(
        cls,
        estimator: Maddness,
        in_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
    ) -> Self:
        """Return a layer with the tables of an ``estimator`` fitted on patches.

        Raises
        ------
        InputError
            If the estimator was fitted on rows of another length than in_channels * kh * kw.

        Examples
        --------
        >>> patches = np.random.normal(size=(200, 9))
        >>> estimator = Maddness(3).fit(patches, np.ones((9, 4)))
        >>> MaddnessConv2d.from_estimator(estimator, 1, 3).out_channels
        4
        """
        options = lookup_options(estimator)
        layer = cls(
            in_channels,
            int(estimator.lut_.shape[2]),
            kernel_size,
            stride,
            padding,
            dilation,
            **options,
        )
        if layer.in_features != estimator.n_features_in_:
            raise InputError(
                f"the estimator was fitted on rows of {estimator.n_features_in_} columns, but "
                f"patches of {in_channels} channels and kernel {layer.kernel_size} have "
                f"{layer.in_features}",
                where=cls.__name__,
                fix="fit it on torch.nn.functional.unfold(...) of the same geometry",
            )
        layer.load_estimator(estimator)
        return layer.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ([N,] out_channels, OH, OW) float32 for ``x`` ([N,] in_channels, H, W) float32."""
        if x.dim() == 3:
            return self.forward(x.unsqueeze(0)).squeeze(0)
        if x.dim() != 4:
            raise InputError(
                f"the input has shape {tuple(x.shape)}",
                where="MaddnessConv2d",
                fix=f"pass (N, {self.in_channels}, H, W)",
            )
        self.check_input(x, self.in_channels, 1)
        oh, ow = output_size(x.shape[2], x.shape[3], self.geometry)
        if oh < 1 or ow < 1:
            raise InputError(
                f"an image of {tuple(x.shape[2:])} is smaller than the kernel {self.kernel_size}",
                where="MaddnessConv2d",
                fix="pass larger images",
            )
        rows = torch.ops.lutcc.im2col(
            x, list(self.kernel_size), list(self.stride), list(self.padding), list(self.dilation)
        )
        return torch.ops.lutcc.rows_to_nchw(self.look_up(rows), oh, ow)

    def extra_repr(self) -> str:
        """Return the options shown by ``print``."""
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        text += f", stride={self.stride}"
        return f"{text}, padding={self.padding}, dilation={self.dilation}, {self.describe_lookup()}"


def conv_geometry(conv: torch.nn.Conv2d) -> dict[str, tuple[int, int]]:
    """Return kernel_size, stride, padding and dilation of ``conv`` as pairs.

    Raises
    ------
    InputError
        For groups, padding other than zeros, and padding="same" that would differ between the two
        sides.
    """
    where = "MaddnessConv2d"
    if conv.groups != 1:
        raise InputError(
            f"groups={conv.groups}",
            where=where,
            fix="keep grouped convolutions exact (recipe 'exact')",
        )
    padding = conv.padding
    kernel, dilation = (
        checked_pair("kernel_size", conv.kernel_size, 1),
        checked_pair("dilation", conv.dilation, 1),
    )
    if padding == "valid":
        padding = (0, 0)
    elif padding == "same":
        total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        if any(t % 2 for t in total):
            raise InputError(
                f"padding='same' with kernel {kernel} and dilation {dilation} pads the two sides "
                "differently",
                where=where,
                fix="pad explicitly before the layer, use an odd kernel, or keep the layer exact",
            )
        padding = (total[0] // 2, total[1] // 2)
    pads = checked_pair("padding", padding, 0)
    if conv.padding_mode != "zeros" and pads != (0, 0):
        raise InputError(
            f"padding_mode={conv.padding_mode!r}",
            where=where,
            fix="pad before the layer (torch.nn.functional.pad), or keep the layer exact",
        )
    return {
        "kernel_size": kernel,
        "stride": checked_pair("stride", conv.stride, 1),
        "padding": pads,
        "dilation": dilation,
    }


def conv_weights(conv: torch.nn.Conv2d) -> tuple[Any, Any]:
    """Return B (in_channels*kh*kw, out_channels) and bias or None of ``conv``, in float64."""
    bias = None if conv.bias is None else conv.bias.detach().cpu().double().numpy()
    return conv.weight.detach().cpu().double().flatten(1).numpy().T, bias


def checked_pair(name: str, value: Any, low: int, where: str = "MaddnessConv2d") -> tuple[int, int]:
    """Return ``value`` as a pair of ints of at least ``low``."""
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= low for v in pair):
        raise InputError(
            f"{name}={value!r} is not one or two integers of at least {low}",
            where=where,
            fix=f"mend {name}",
        )
    return pair
