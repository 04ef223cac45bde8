"""An exact linear layer in float32, bfloat16 or int8, on kernels of lutcc's own."""

from __future__ import annotations

from typing import Any, Self

import torch

from lutcc.lookup_options import check_count
from lutcc.nn.codebook import check_floats
from lutcc.nn.dense_layer import DenseLayer, finite


class DenseLinear(DenseLayer):
    """``y = x W^T + b`` for ``x`` (..., in_features) of any float dtype, W as it is computed with.

    ``weight`` (out_features, in_features) is a float32 or bfloat16 parameter; for int8 a buffer of
    integers in -127 .. 127, with a parameter ``scales`` (out_features,) float32, what 1 stands for
    in each row. These are what the ``state_dict`` holds, and what an artifact stores. Training
    moves float weights, or, of int8, scales and bias; a cast of the model leaves integers and
    scales as they are.

    Parameters
    ----------
    in_features, out_features, bias, device
        As of :class:`torch.nn.Linear`.
    compute
        "float32"; "bfloat16": x is rounded to it, sums are float32; "int8": each row of x is
        rounded to integers, whose sums are exact.
    dtype
        Of the bias.

    Raises
    ------
    InputError
        If an option, or the dtype or shape of the input does not fit.

    Examples
    --------
    >>> layer = DenseLinear(64, 10, compute="int8")
    >>> layer(torch.randn(3, 64)).shape, sorted(layer.state_dict())
    (torch.Size([3, 10]), ['bias', 'scales', 'weight'])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        compute: str = "int8",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("DenseLinear", "in_features", in_features, 1)
        check_count("DenseLinear", "out_features", out_features, 1)
        self.in_features, self.out_features = in_features, out_features
        fresh = torch.nn.Linear(in_features, out_features, bias, device=device, dtype=dtype)
        self._begin(fresh, compute)

    @classmethod
    def from_linear(cls, linear: torch.nn.Linear, *, compute: str = "int8") -> Self:
        """Return a layer with the weights of ``linear``, which is not changed.

        Raises
        ------
        InputError
            For an unknown ``compute``, or weights that are NaN or infinite.

        Examples
        --------
        >>> linear, x = torch.nn.Linear(8, 3), torch.randn(5, 8)
        >>> exact = DenseLinear.from_linear(linear, compute="float32")
        >>> torch.allclose(exact(x), linear(x), atol=1e-6)
        True
        """
        weight = finite(linear.weight.detach(), cls.__name__)
        layer = cls(
            linear.in_features,
            linear.out_features,
            linear.bias is not None,
            compute=compute,
            device=weight.device,
            dtype=weight.dtype,
        )
        return layer._copy(linear)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) in the dtype of ``x`` (..., in_features)."""
        check_floats(x, self.in_features, -1, "DenseLinear")
        bias = self._bias_for(x)
        return torch.ops.lutcc.dense(x, self.weight, self.scales, bias, self.compute)

    def extra_repr(self) -> str:
        """Return the sizes and arithmetic shown by ``print``."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{text}, bias={self.bias is not None}, compute={self.compute!r}"
