"""An embedding whose rows are indices into codebooks."""

from __future__ import annotations

from typing import Any, Self

import torch

from lutcc.codebook_weights import CodebookWeights
from lutcc.errors import InputError
from lutcc.nn.codebook import CodebookLayer, form_of


class CodebookEmbedding(CodebookLayer):
    """Rows of a matrix that is written with codebooks, by number.

    Parameters
    ----------
    num_embeddings, embedding_dim, padding_idx, device, dtype
        As of :class:`torch.nn.Embedding`; ``dtype`` is that of the result, and follows the casts of
        the model. The row ``padding_idx`` gives no gradient.
    zero_padding
        Whether that row is zero, whatever the codebooks are.
    bits, num_codebooks, num_scales, segment_size, reordered
        As of :class:`lutcc.nn.CodebookLinear`.
    compute
        Of a linear layer that shares the matrix; look-ups need none.

    Raises
    ------
    InputError
        If an option does not fit, or the weights have outliers.

    Notes
    -----
    Source: JLCM, equations 1, 2 and 4.

    Examples
    --------
    >>> weights = CodebookWeights.of([[0, 3], [1, 1]], [[-1, 0, 1, 2]], bits=2)
    >>> CodebookEmbedding.from_weights(weights)(torch.tensor([0, 0, 1])).tolist()
    [[-1.0, 2.0], [-1.0, 2.0], [0.0, 0.0]]
    """

    dtype_as: torch.Tensor

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        zero_padding: bool = False,
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
        if num_outliers:
            raise InputError(
                f"an embedding holds no outliers, but there are {num_outliers}",
                where="CodebookEmbedding",
                fix="fit it with outliers=0",
            )
        super().__init__(
            num_embeddings,
            embedding_dim,
            bias=False,
            bits=bits,
            num_codebooks=num_codebooks,
            num_scales=num_scales,
            segment_size=segment_size,
            reordered=reordered,
            compute=compute,
            device=device,
        )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        if padding_idx is not None and padding_idx < 0:
            padding_idx += num_embeddings
        if padding_idx is not None and not 0 <= padding_idx < num_embeddings:
            raise InputError(
                f"padding_idx={padding_idx} is none of the {num_embeddings} rows",
                where="CodebookEmbedding",
                fix="number a row, or leave it out",
            )
        self.padding_idx, self.zero_padding = padding_idx, zero_padding
        made = torch.empty(0, dtype=dtype or torch.get_default_dtype(), device=device)
        self.register_buffer("dtype_as", made, persistent=False)

    @classmethod
    def from_weights(
        cls,
        weights: CodebookWeights,
        padding_idx: int | None = None,
        *,
        zero_padding: bool = False,
        compute: str = "int8",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Return a layer in eval mode that holds a compressed matrix (rows, columns).

        Examples
        --------
        >>> weights = CodebookWeights.of(np.zeros((3, 4)), [[1, 2, 3, 4]], bits=2)
        >>> CodebookEmbedding.from_weights(weights, padding_idx=-1).padding_idx
        2
        """
        rows, columns = weights.shape
        layer = cls(
            rows,
            columns,
            padding_idx,
            zero_padding=zero_padding,
            **form_of(weights),
            compute=compute,
            device=device,
            dtype=dtype,
        )
        return layer.load_weights(weights)

    @classmethod
    def from_embedding(
        cls, embedding: torch.nn.Embedding, *, alpha: float, compute: str = "int8", **options: Any
    ) -> Self:
        """Compress the weights of ``embedding``, without data.

        Parameters
        ----------
        embedding
            The exact layer; it is not changed.
        alpha, options
            Of :class:`lutcc.fit.WeightCodebooks`.
        compute
            As for the class.

        Raises
        ------
        InputError
            If an option is wrong, the layer renormalises its rows (``max_norm``), or it cannot
            reach ``alpha``.

        Examples
        --------
        >>> layer = CodebookEmbedding.from_embedding(torch.nn.Embedding(50, 32), alpha=4)
        >>> layer(torch.tensor([[3, 4]])).shape
        torch.Size([1, 2, 32])
        """
        from lutcc.nn.codebook_fitting import fit_embedding

        weights = fit_embedding(embedding, alpha=alpha, **options)
        return cls.from_weights(weights, compute=compute, **embedding_options(embedding))

    @property
    def weight(self) -> torch.Tensor:
        """(num_embeddings, embedding_dim) float32, looked up anew at each access."""
        return self.dequantize()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (..., embedding_dim) for row numbers ``input`` (...) int32 or int64."""
        if input.dtype not in (torch.int32, torch.int64):
            raise InputError(
                f"the input has dtype {input.dtype}, but rows are numbered",
                where="CodebookEmbedding",
                fix="pass int64",
            )
        held = self.holder
        rows = input if held.position is None else held.position[input]
        codebooks, scales = self.tables()
        y = torch.ops.lutcc.codebook_dequantize(
            rows, held.indices, codebooks, scales, self.bits, self.columns, self.segment_size
        )
        if self.padding_idx is not None and (self.zero_padding or self.training):
            padding = (input == self.padding_idx).unsqueeze(-1)
            y = torch.where(padding, torch.zeros_like(y) if self.zero_padding else y.detach(), y)
        return y.to(self.dtype_as.dtype) if self.dtype_as.dtype is not y.dtype else y

    def extra_repr(self) -> str:
        """Return the sizes and form shown by ``print``."""
        text = f"{self.num_embeddings}, {self.embedding_dim}"
        if self.padding_idx is not None:
            text += f", padding_idx={self.padding_idx}"
        if self.zero_padding:
            text += ", zero_padding=True"
        return f"{text}, {self.describe_codebooks()}"


def embedding_options(embedding: torch.nn.Embedding) -> dict[str, Any]:
    """Return what a codebook layer takes over from ``embedding``, but its weights.

    Raises
    ------
    InputError
        If it renormalises its rows.
    """
    if embedding.max_norm is not None:
        raise InputError(
            f"max_norm={embedding.max_norm}: such an embedding changes its weights when it is used",
            where="CodebookEmbedding",
            fix="leave it exact",
        )
    padding, weight = embedding.padding_idx, embedding.weight.detach()
    return {
        "padding_idx": padding,
        "zero_padding": padding is not None and not bool(weight[padding].any()),
        "device": weight.device,
        "dtype": weight.dtype,
    }
