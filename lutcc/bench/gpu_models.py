"""Models whose training steps are measured on a GPU, exact and with sampled layers."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from lutcc.convert_model import convert
from lutcc.recipes import Exact, Sampled


class WideBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut, each after normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, outputs, H / stride, W / stride) for (N, inputs, H, W)."""
        mixed = torch.relu(self.norm1(x))
        kept = x if self.shortcut is None else self.shortcut(mixed)
        return kept + self.conv2(torch.relu(self.norm2(self.conv1(mixed))))


class WideResNet(nn.Module):
    """A Wide ResNet for images of 32 by 32; depth 28 and width 10 are the paper's.

    Notes
    -----
    Source: Zagoruyko and Komodakis, Wide residual networks (BMVC 2016), without drop-out.

    Examples
    --------
    >>> WideResNet(10, 1)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, depth: int = 28, width: int = 10, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        channels, blocks = 16, list[WideBlock]()
        for stage in range(3):
            for i in range((depth - 4) // 6):
                outputs = (16 << stage) * width
                blocks.append(WideBlock(channels, outputs, 2 if stage and not i else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.BatchNorm2d(channels), nn.Linear(channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores (N, classes) of images (N, 3, H, W)."""
        x = torch.relu(self.norm(self.blocks(self.stem(images))))
        return self.head(x.mean((2, 3)))


class TransformerBlock(nn.Module):
    """Attention and a feed-forward block, normalised first; every product is a Linear layer."""

    def __init__(self, features: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(features), nn.LayerNorm(features)
        self.mix, self.out = nn.Linear(features, 3 * features), nn.Linear(features, features)
        self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, features) for (N, T, features)."""
        parts = self.mix(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A transformer encoder of already embedded tokens.

    Examples
    --------
    >>> Transformer(2, 16, 4)(torch.zeros(2, 5, 16)).shape
    torch.Size([2, 5, 16])
    """

    def __init__(self, layers: int = 12, features: int = 1024, heads: int = 16) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(TransformerBlock(features, heads) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, T, features) for (N, T, features)."""
        return self.blocks(x)


def sampled_copy(model: nn.Module, ratio: float, group_size: int = 1) -> nn.Module:
    """Return a copy in which the Linear layers and convolutions of its blocks are sampled (top-k).

    First and last layers stay exact, as in the paper. Groups are of Linear layers' features only.

    Examples
    --------
    >>> sampled_copy(Transformer(1, 16, 4), 0.5).blocks[0].up
    SampledLinear(in_features=16, out_features=64, bias=True, mode=topk, sample_ratio=0.5)
    """
    whole = {"*": Exact(), "blocks.*": Sampled(sample_ratio=ratio, group_size=group_size)}
    return convert(model, whole)


class TrainingStep:
    """Forward, backward and a step of SGD on one batch, the same every time.

    Parameters
    ----------
    model
        Whose parameters are trained.
    inputs
        A batch.
    """

    def __init__(self, model: nn.Module, inputs: Tensor) -> None:
        self.model, self.inputs = model.train(), inputs
        self.optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def __call__(self) -> Tensor:
        """Return the loss before the step."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = cast(Tensor, self.model(self.inputs)).float().square().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()
