"""A linear layer whose weights are indices into codebooks."""

from __future__ import annotations

from typing import Any, Self

import torch

from lutcc.codebook_weights import CodebookWeights
from lutcc.nn.codebook import CodebookLayer, check_floats, form_of


class CodebookLinear(CodebookLayer):
    """``y = x W^T + b`` for ``x`` (..., in_features) of any float dtype, W written with codebooks.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As of :class:`torch.nn.Linear`; ``dtype`` is the bias's.
    bits
        Bits of an index: 2, 3 or 4.
    num_codebooks, num_scales
        How many regions of the matrix have a codebook, or a scale, of their own.
    segment_size
        Columns of a region where there are more regions than rows, else 0.
    reordered
        Whether rows are stored in another order.
    num_outliers
        Values that are stored beside.
    compute
        Arithmetic in eval mode: "int8" (exact integers: activations in 8 bits per row), "bfloat16"
        or "float32". Training is in float32, or the input's dtype if that is float64.

    Raises
    ------
    InputError
        If an option, or the dtype or shape of the input does not fit.

    Notes
    -----
    Source: JLCM, equations 1, 2 and 4.

    Examples
    --------
    >>> weights = CodebookWeights.of([[0, 3, 1]], [[-1, 0, 1, 2]], bits=2)
    >>> layer = CodebookLinear.from_weights(weights, compute="float32")
    >>> layer(torch.eye(3)).flatten().tolist()
    [-1.0, 2.0, 0.0]
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
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
        super().__init__(
            out_features,
            in_features,
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
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def from_weights(
        cls,
        weights: CodebookWeights,
        bias: Any = None,
        *,
        compute: str = "int8",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Return a layer in eval mode that holds a compressed matrix (out, in).

        Examples
        --------
        >>> weights = CodebookWeights.of(np.zeros((3, 4)), [[1, 2, 3, 4]], bits=2)
        >>> CodebookLinear.from_weights(weights, np.zeros(3)).weight.sum().item()
        12.0
        """
        rows, columns = weights.shape
        layer = cls(
            columns,
            rows,
            bias is not None,
            **form_of(weights),
            compute=compute,
            device=device,
            dtype=dtype,
        )
        return layer.load_weights(weights, bias)

    @classmethod
    def from_linear(
        cls,
        linear: torch.nn.Linear,
        inputs: Any = None,
        *,
        alpha: float,
        compute: str = "int8",
        max_rows: int | None = 4096,
        **options: Any,
    ) -> Self:
        """Compress the weights of ``linear``.

        Parameters
        ----------
        linear
            The exact layer; it is not changed.
        inputs
            (..., in_features) tensor or array of what it receives, to learn from; None: without.
        alpha, options
            Of :class:`lutcc.fit.WeightCodebooks`.
        compute
            As for the class.
        max_rows
            Learn from at most this many rows, drawn with the seed ``random_state``; None keeps all.

        Raises
        ------
        InputError
            If shapes disagree, an option is wrong, or the layer cannot reach ``alpha``.

        Examples
        --------
        >>> layer = CodebookLinear.from_linear(torch.nn.Linear(64, 64), alpha=5)
        >>> layer.bits, layer.footprint().alpha >= 5
        (3, True)
        """
        from lutcc.nn.codebook_fitting import fit_linear

        weights = fit_linear(linear, inputs, max_rows, alpha=alpha, **options)
        return cls.from_weights(
            weights,
            linear.bias,
            compute=compute,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )

    @property
    def weight(self) -> torch.Tensor:
        """(out_features, in_features) float32, looked up anew at each access."""
        return self.dequantize()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) in the dtype of ``x`` (..., in_features)."""
        check_floats(x, self.in_features, -1, "CodebookLinear")
        return self.multiply(x)

    def extra_repr(self) -> str:
        """Return the sizes and form shown by ``print``."""
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{text}, bias={self.bias is not None}, {self.describe_codebooks()}"
