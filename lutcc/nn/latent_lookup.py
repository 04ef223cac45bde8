"""Look-ups that are trained: soft decisions behind hard codes, float tables behind 8-bit ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lutcc.errors import InputError
from lutcc.fit.tables import averaging_bias
from lutcc.nn.lookup import MaddnessLookup

#: A temperature's start, in standard deviations of what a codebook compares.
FIRST_TEMPERATURE = 0.25
_LEVELS = 255
#: Thresholds that nothing exceeds become this, which has a gradient of 0 and not of NaN.
_MOST = 3e37


class _Value(torch.autograd.Function):
    """The value of one tensor, with the gradient of another: to the bit, as no sum would be."""

    @staticmethod
    def forward(ctx: Any, soft: Tensor, exact: Tensor) -> Tensor:
        """Return ``exact``."""
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """Pass the gradient to ``soft``."""
        return grads[0], None


class LatentLookup(nn.Module):
    """What gradients train of a look-up layer.

    The forward value is, bit for bit, that of the layer with the tables and thresholds of the
    moment: codes are hard, tables quantised as they are stored. The gradient is straight-through:
    that of the soft code, the product along a path of sigmoid((x - threshold) / temperature) (or a
    softmax of the distances to centroids), and of tables that were not rounded.

    Parameters
    ----------
    layer
        A fitted layer. It is not changed before :meth:`finish`.

    Attributes
    ----------
    compared
        (C, K) thresholds in heap order, or (K, D) centroids.
    log_temperature
        (C, 1), from the first batch on.
    tables
        (C, K, M), in units of the outputs.
    shift
        (M,): what is added to the sums.

    Notes
    -----
    ITLUMM asks for "a differentiable hash function" in section 4; straight-through soft trees as in
    halutmatmul, a learned temperature as in LUT-NN.
    """

    def __init__(self, layer: MaddnessLookup) -> None:
        super().__init__()
        self.layer = (layer,)  # no submodule: its buffers are not this module's
        tables = layer.lut.detach().float()
        shift = torch.zeros_like(tables[0, 0])
        if layer.lut_dtype == "uint8":
            every = layer.upcast_every if layer.accumulate == "mean" else 1
            tables = tables * (layer.scale / every)
            shift = layer.offset.detach().clone()
            if layer.accumulate == "mean":
                bias = self._averaging_bias(layer.lut)
                shift = (shift + layer.scale.double() / every * bias).float()
        self.tables, self.shift = nn.Parameter(tables.clone()), nn.Parameter(shift)
        tree = layer.encoder == "tree"
        first = layer.splitvals.clamp(-_MOST, _MOST) if tree else layer.centroids
        self.compared = nn.Parameter(first.detach().clone())
        self.log_temperature = nn.Parameter(tables.new_zeros(layer.ncodebooks, 1))
        self.begun = nn.Buffer(torch.zeros((), dtype=torch.bool))

    def groups(self, rate: float, hash_rate: float) -> list[dict[str, object]]:
        """Return parameters with learning rates relative to their size, for an optimizer."""
        tables = self.tables.detach()
        size = float((tables - tables.mean(1, keepdim=True)).square().mean().sqrt())
        compared = self.compared.detach()
        usual = compared[compared.abs() < _MOST]
        spread = float(usual.std()) if usual.numel() > 1 else 1.0
        return [
            {"params": [self.tables, self.shift], "lr": rate * max(size, 1e-12)},
            {"params": [self.compared], "lr": hash_rate * max(spread, 1e-12)},
            {"params": [self.log_temperature], "lr": hash_rate},
        ]

    def look_up(self, rows: Tensor) -> Tensor:
        """Return (N, M) for ``rows`` (N, D): hard forward, soft backward."""
        layer = self.layer[0]
        hard, soft = self._tree(rows) if layer.encoder == "tree" else self._nearest(rows)
        codes = hard + soft - soft.detach()
        lut, scale, lowest, offset = self.quantised()
        tables = self.tables
        if lut is not None:
            rounded = lut * scale + lowest
            tables = tables + (rounded - tables).detach()
        y = codes.flatten(1) @ tables.flatten(0, 1) + self.shift
        if layer.activation == "relu":
            y = torch.relu(y)
        if lut is None:
            return y
        with torch.no_grad():
            exact = self._exact(hard, lut, scale, offset)
        return _Value.apply(y, exact)

    def _exact(self, hard: Tensor, lut: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        """Return what kernels compute: integer sums, one rounding."""
        layer = self.layer[0]
        if layer.accumulate == "mean":
            codes = hard.argmax(2).to(torch.uint8)
            whole = lut.to(torch.uint8)
            sums = torch.ops.lutcc.lut_accumulate(codes, whole, "mean", layer.upcast_every)
        else:  # below 2**24: exact in any order
            sums = (hard.flatten(1) @ lut.flatten(0, 1)).to(torch.int32)
        if sums.device.type == "cpu":
            return torch.ops.lutcc.lut_dequantize(sums, scale, offset, layer.activation or "none")
        product = sums.double() * scale.double()  # exact, as in a fused multiply-add
        y = (product + offset.double()).float()
        return torch.relu(y) if layer.activation == "relu" else y

    def quantised(self) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
        """Return the tables as they are stored, in float32: entries, scale, zeros, offset.

        Source: :func:`lutcc.fit.tables.quantize_tables`.
        """
        layer, tables = self.layer[0], self.tables.detach()
        if layer.lut_dtype != "uint8":
            return None, tables.new_ones(()), tables.new_zeros(()), self.shift.detach()
        lowest = tables.amin(1, keepdim=True)
        widest = (tables.amax(1) - lowest[:, 0]).amax(0)
        scale = widest / _LEVELS
        divisor = torch.where(scale > 0, scale, torch.ones_like(scale))
        lut = ((tables - lowest) / divisor).round().clamp(0, _LEVELS)
        offset = lowest[:, 0].double().sum(0) + self.shift.detach().double()
        if layer.accumulate == "mean":
            offset = offset - scale.double() * self._averaging_bias(lut.to(torch.uint8))
            return lut, scale * layer.upcast_every, lowest, offset.float()
        return lut, scale, lowest, offset.float()

    def _averaging_bias(self, lut: Tensor) -> Tensor:
        bias = averaging_bias(lut.cpu().numpy(), self.layer[0].upcast_every)
        return torch.from_numpy(np.asarray(bias)).to(lut.device, torch.float64)

    def _tree(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return hard and soft codes (N, C, K) of the trees."""
        dims = self.layer[0].splitdims.long()
        values = rows[:, dims]
        self._begin(values)
        warmth = self.log_temperature.exp()
        hard = soft = rows.new_ones(len(rows), len(dims), 1)
        for level in range(dims.shape[1]):
            nodes = slice(2**level, 2 ** (level + 1))
            above = values[:, :, level : level + 1] - self.compared[:, nodes]
            right = torch.sigmoid(above / warmth)
            taken = (above > 0).to(rows.dtype)
            soft = torch.stack([soft * (1 - right), soft * right], -1).flatten(2)
            hard = torch.stack([hard * (1 - taken), hard * taken], -1).flatten(2)
        return hard, soft

    def _nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return hard and soft codes (N, C, K) of the nearest centroids."""
        layer = self.layer[0]
        columns = layer.columns.long()
        squares = self._half_norms()
        parts = [rows[:, columns[a:b]] @ self.compared[:, a:b].T for a, b in pairwise(layer.starts)]
        scores = torch.stack(parts, 1) - squares
        self._begin(scores)
        with torch.no_grad():
            given = (self.compared, squares, layer.columns, list(layer.starts))
            codes = torch.ops.lutcc.nearest_encode(rows, *given)
            hard = nn.functional.one_hot(codes.long(), layer.nprototypes).to(rows.dtype)
        return hard, torch.softmax(scores / self.log_temperature.exp(), -1)

    def _half_norms(self) -> Tensor:
        squares = self.compared.double().square() / 2
        parts = [squares[:, a:b].sum(1) for a, b in pairwise(self.layer[0].starts)]
        return torch.stack(parts).to(self.compared.dtype)

    def _begin(self, values: Tensor) -> None:
        """Set the temperatures by the first batch."""
        if bool(self.begun):
            return
        with torch.no_grad():
            spread = values.detach().transpose(0, 1).flatten(1).std(1, correction=0, keepdim=True)
            floor = spread.max().clamp_min(1e-6) * 1e-3
            self.log_temperature.copy_((FIRST_TEMPERATURE * spread.clamp_min(floor)).log())
            self.begun.fill_(True)

    def finish(self) -> None:
        """Store what was trained in the layer."""
        layer = self.layer[0]
        lut, scale, _, offset = self.quantised()
        with torch.no_grad():
            if layer.encoder == "tree":
                layer.splitvals.copy_(self.compared)
            else:
                layer.centroids.copy_(self.compared)
                layer.half_norms.copy_(self._half_norms())
            if lut is None:
                tables = self.tables.detach().clone()
                tables[0] += self.shift.detach()
                layer.lut.copy_(tables)
            else:
                layer.lut.copy_(lut.to(torch.uint8))
                layer.scale.copy_(scale)
                layer.offset.copy_(offset)


def latent_lookups(model: nn.Module) -> dict[str, LatentLookup]:
    """Return what is trained of each look-up layer of a model, by name.

    Raises
    ------
    InputError
        If there is none.

    Examples
    --------
    >>> from lutcc.nn import MaddnessLinear
    >>> list(latent_lookups(nn.Sequential(MaddnessLinear(8, 4, 2), nn.ReLU())))
    ['0']
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, MaddnessLookup)}
    if not layers:
        raise InputError(
            "the model has no look-up layers to train",
            where="finetune",
            fix="pass what lutcc.convert made with lutcc.recipes.Maddness(...)",
        )
    return {name: LatentLookup(layer) for name, layer in layers.items()}


@contextmanager
def looked_up_by(latents: dict[str, LatentLookup]) -> Iterator[None]:
    """Let layers look up by their latents for a while."""
    for latent in latents.values():
        vars(latent.layer[0])["look_up"] = latent.look_up
    try:
        yield
    finally:
        for latent in latents.values():
            vars(latent.layer[0]).pop("look_up", None)
