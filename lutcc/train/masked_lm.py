"""A RoBERTa-like masked language model whose feed-forward blocks can be exchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lutcc.errors import InputError

#: Makes the feed-forward block of one layer: tokens (..., width) -> (..., width).
FeedForward = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a :class:`MaskedLM`; the defaults are those of the paper's experiments.

    Parameters
    ----------
    vocabulary
        Number of tokens.
    length
        Tokens of a sequence; every sequence has just this length.
    width
        Embedding dimensions d, a multiple of ``heads``.
    layers
        Transformer layers.
    heads
        Attention heads.
    pre_norm
        Whether each block has a layer norm before it, and the last layer one behind it, rather than
        one behind each residual sum as in RoBERTa. Bears higher learning rates.
    local
        Whether attention prefers near tokens, see :func:`local_bias`. RoBERTa's does not; a run of
        some hundred steps is over before it has found out that neighbours matter.

    Raises
    ------
    InputError
        If a size is below 1 or ``heads`` does not divide ``width``.
    """

    vocabulary: int
    length: int = 512
    width: int = 512
    layers: int = 4
    heads: int = 8
    pre_norm: bool = False
    local: bool = False

    def __post_init__(self) -> None:
        for name in ("vocabulary", "length", "width", "layers", "heads"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"{name}={getattr(self, name)!r} is below 1",
                    where="train.Sizes",
                    fix="give positive sizes",
                )
        if self.width % self.heads:
            raise InputError(
                f"width={self.width} is no multiple of heads={self.heads}",
                where="train.Sizes",
                fix="each head takes an equal part of the width",
            )


class DenseFFN(nn.Module):
    """The block that every transformer has: Linear, GELU, Linear.

    Parameters
    ----------
    width
        Dimensions of a token.
    hidden
        Hidden neurons, 4 times ``width`` as a rule.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's values for tokens x (..., width)."""
        return self.outer(F.gelu(self.inner(x)))


class NoFFN(nn.Module):
    """Adds nothing: the control that tells how much the feed-forward blocks are worth."""

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of the shape of x."""
        return torch.zeros_like(x)


def local_bias(heads: int, length: int) -> Tensor:
    """Return what is added to attention scores, (heads, length, length) float32.

    Even heads look back, odd ones ahead, each pair with a slope of a quarter of the one before (2,
    1/2, 1/8, ...): -slope times the distance, and 8 less for tokens on the other side. After ALiBi
    (Press, Smith, Lewis 2022), whose fixed slopes they are, for both directions.

    Examples
    --------
    >>> local_bias(2, 3)[0]
    tensor([[ -8., -10., -12.],
            [ -2.,  -8., -10.],
            [ -4.,  -2.,  -8.]])
    """
    distance = torch.arange(length)[None, :] - torch.arange(length)[:, None]  # of key from query
    head = torch.arange(heads)[:, None, None]
    slope = 2 * 0.25 ** (head // 2)
    wrong_side = torch.where(head % 2 == 0, distance >= 0, distance <= 0)
    return -slope * distance.abs() - 8.0 * wrong_side


class _Attention(nn.Module):
    bias: Tensor | None

    def __init__(self, width: int, heads: int, bias: Tensor | None) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("bias", bias, persistent=False)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return what each token gathers from all tokens of its sequence, x (N, L, width)."""
        split = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        q, k, v = (
            project(x).view(split).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class _Layer(nn.Module):
    def __init__(self, sizes: Sizes, feed_forward: nn.Module) -> None:
        super().__init__()
        bias = local_bias(sizes.heads, sizes.length) if sizes.local else None
        self.attention = _Attention(sizes.width, sizes.heads, bias)
        self.attention_norm = nn.LayerNorm(sizes.width)
        self.ffn = feed_forward
        self.ffn_norm = nn.LayerNorm(sizes.width)
        self.pre_norm = sizes.pre_norm

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's values."""
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x))
            return x + self.ffn(self.ffn_norm(x))
        x = self.attention_norm(x + self.attention(x))
        return self.ffn_norm(x + self.ffn(x))


class MaskedLM(nn.Module):
    """Transformer encoder with a language-model head whose weight is the embedding.

    Liu et al. 2019 (RoBERTa) without dropout: learned positions, GELU head.

    Parameters
    ----------
    sizes
        See :class:`Sizes`.
    feed_forward
        Called once per layer.

    Examples
    --------
    >>> sizes = Sizes(100, length=8, width=16, layers=1, heads=2)
    >>> model = MaskedLM(sizes, lambda: DenseFFN(16, 64))
    >>> model(torch.zeros(3, 8, dtype=torch.int64)).shape
    torch.Size([3, 8, 100])
    """

    def __init__(self, sizes: Sizes, feed_forward: FeedForward) -> None:
        super().__init__()
        self.sizes = sizes
        self.tokens = nn.Embedding(sizes.vocabulary, sizes.width)
        self.positions = nn.Parameter(torch.empty(sizes.length, sizes.width))
        self.norm = nn.LayerNorm(sizes.width)
        self.last_norm = nn.LayerNorm(sizes.width) if sizes.pre_norm else nn.Identity()
        self.head = nn.Linear(sizes.width, sizes.width)
        self.head_norm = nn.LayerNorm(sizes.width)
        self.head_bias = nn.Parameter(torch.zeros(sizes.vocabulary))
        self.layers = nn.ModuleList(_Layer(sizes, nn.Identity()) for _ in range(sizes.layers))
        # Variance 1 / width, where BERT has 0.02 squared at widths of 768 and more: at small widths
        # 0.02 leaves attention and logits too flat to learn much in some hundred steps.
        std = sizes.width**-0.5
        nn.init.normal_(self.positions, std=std)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=std)
        # Last, so that models with different blocks begin with the same values everywhere else.
        for layer in self.layers:
            layer.ffn = feed_forward()

    def features(self, ids: Tensor) -> Tensor:
        """Return the last layer's values (N, L, width) for token numbers ids (N, L) int64."""
        x = self.norm(self.tokens(ids) + self.positions)
        for layer in self.layers:
            x = layer(x)
        return self.last_norm(x)

    def predict(self, features: Tensor) -> Tensor:
        """Return logits (..., vocabulary) for rows of :meth:`features`."""
        x = self.head_norm(F.gelu(self.head(features)))
        return F.linear(x, self.tokens.weight, self.head_bias)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits (N, L, vocabulary) for token numbers ids (N, L) int64."""
        return self.predict(self.features(ids))

    def loss(self, ids: Tensor, places: Tensor, labels: Tensor) -> Tensor:
        """Return the mean negative log likelihood of masked tokens, natural logarithm.

        Parameters
        ----------
        ids
            (N, L) int64, masked.
        places
            (P,) int64, indices into the N * L tokens: those to predict.
        labels
            (P,) int64, the tokens that stood there.
        """
        rows = self.features(ids).flatten(0, 1).index_select(0, places)
        return F.cross_entropy(self.predict(rows).float(), labels)
