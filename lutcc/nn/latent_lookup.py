"""Look-ups that are trained: soft decisions behind hard codes, float tables behind 8-bit ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from lutcc.errors import InputError
from lutcc.fit.tables import averaging_bias
from lutcc.nn import latent_kernels
from lutcc.nn.latent_gradients import Compared, LookedUp, TreeCode
from lutcc.nn.lookup import MaddnessLookup
from lutcc.nn.tree_splits import Tree

#: A temperature's start, in standard deviations of what a codebook compares.
FIRST_TEMPERATURE = 0.25
_LEVELS = 255
#: Thresholds that nothing exceeds become this, which has a gradient of 0 and not of NaN.
_MOST = 3e37
#: The bits of a float64 that a float32 lacks, and their value half-way; the least normal float32.
_BELOW, _MIDDLE, _NORMAL = 2**29 - 1, 2**28, 2.0**-126


class LatentLookup(nn.Module):
    """What gradients train of a look-up layer.

    The forward value is, bit for bit, that of the layer with the tables and thresholds of the
    moment: codes are hard, tables quantised as they are stored. The gradient is straight-through:
    that of the soft code, the product along a path of sigmoid((x - threshold) / temperature) (or a
    softmax of the distances to centroids), and of tables that were not rounded.

    Parameters
    ----------
    layer
        A fitted layer. Before :meth:`finish` only :meth:`replace_tree` changes it.

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
        self.gradient_dtype = torch.float32

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
        if rows.is_cuda and self.layer[0].encoder == "tree":
            return latent_kernels.look_up(self, rows)
        return self.by_torch(rows)

    def by_torch(self, rows: Tensor) -> Tensor:
        """Return the same by torch's own operators, on any device."""
        layer = self.layer[0]
        code, codes = self._tree(rows) if layer.encoder == "tree" else self._nearest(rows)
        relu = layer.activation == "relu"
        with torch.no_grad():
            lut, scale, _, offset = self.quantised()
            first = torch.arange(layer.ncodebooks, device=codes.device) * layer.nprototypes
            chosen = codes + first
            if lut is None:
                differences = self.tables - self.tables.mean(1, keepdim=True)
                y = embedding_bag(chosen, self.tables.flatten(0, 1), mode="sum") + self.shift
                exact = torch.relu(y) if relu else y
            else:
                exact = self._exact(codes, chosen, lut, scale, offset)
                # averaged sums: a step of the tables is that of sums over their number
                step = scale / (layer.upcast_every if layer.accumulate == "mean" else 1)
                differences = lut.sub_(lut.mean(1, keepdim=True)).mul_(step)
            read = differences.flatten(0, 1)
        given = (code, self.tables, self.shift, chosen, read, exact, relu, self.gradient_dtype)
        return LookedUp.apply(*given)

    def _exact(
        self, codes: Tensor, chosen: Tensor, lut: Tensor, scale: Tensor, offset: Tensor
    ) -> Tensor:
        """Return what kernels compute: integer sums, one rounding."""
        layer = self.layer[0]
        if layer.accumulate == "mean":
            whole = lut.to(torch.uint8)
            every = layer.upcast_every
            sums = torch.ops.lutcc.lut_accumulate(codes.to(torch.uint8), whole, "mean", every)
        else:  # below 2**24: exact in any order
            sums = embedding_bag(chosen, lut.flatten(0, 1), mode="sum")
        y = multiply_add(sums, scale, offset)
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
        lut = (tables - lowest).div_(divisor).round_().clamp_(0, _LEVELS)
        offset = lowest[:, 0].double().sum(0) + self.shift.detach().double()
        if layer.accumulate == "mean":
            offset = offset - scale.double() * self._averaging_bias(lut.to(torch.uint8))
            return lut, scale * layer.upcast_every, lowest, offset.float()
        return lut, scale, lowest, offset.float()

    def _averaging_bias(self, lut: Tensor) -> Tensor:
        bias = averaging_bias(lut.cpu().numpy(), self.layer[0].upcast_every)
        return torch.from_numpy(np.asarray(bias)).to(lut.device, torch.float64)

    def _tree(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return a handle of soft codes (N, C, K), and hard ones (N, C), of the trees."""
        values = Compared.apply(rows, self.layer[0].splitdims.long())
        self._begin(values.transpose(1, 2))
        with torch.no_grad():
            first = torch.arange(self.compared.shape[0], device=rows.device)
            first = first * self.compared.shape[1]
            node, thresholds = (
                torch.ones_like(values[:, 0], dtype=torch.long),
                self.compared.view(-1),
            )
            for level in range(values.shape[1]):
                node = 2 * node + (values[:, level] > thresholds[node + first])
            codes = node - self.compared.shape[1]
        return TreeCode.apply(values, self.compared, self.log_temperature), codes

    def _nearest(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return soft codes (N, C, K), and hard ones (N, C), of the nearest centroids."""
        layer = self.layer[0]
        columns = layer.columns.long()
        squares = self._half_norms()
        parts = [rows[:, columns[a:b]] @ self.compared[:, a:b].T for a, b in pairwise(layer.starts)]
        scores = torch.stack(parts, 1) - squares
        self._begin(scores)
        with torch.no_grad():
            given = (self.compared, squares, layer.columns, list(layer.starts))
            codes = torch.ops.lutcc.nearest_encode(rows, *given).long()
        return torch.softmax(scores / self.log_temperature.exp(), -1), codes

    def _half_norms(self) -> Tensor:
        squares = self.compared.double().square() / 2
        parts = [squares[:, a:b].sum(1) for a, b in pairwise(self.layer[0].starts)]
        return torch.stack(parts).to(self.compared.dtype)

    def _begin(self, values: Tensor) -> None:
        """Set the temperatures by the first batch."""
        if bool(self.begun):
            return
        with torch.no_grad():
            self.log_temperature.copy_(first_temperature(values.detach().transpose(0, 1)))
            self.begun.fill_(True)

    def tree(self, codebook: int) -> Tree:
        """Return a copy of a codebook's tree."""
        columns = self.layer[0].splitdims[codebook].long()
        return Tree(columns, self.compared.detach()[codebook].clone())

    def replace_tree(
        self, codebook: int, tree: Tree, tables: Tensor, log_temperature: Tensor
    ) -> None:
        """Put a tree, its table rows (K, M) and the log of its temperature in a codebook."""
        with torch.no_grad():
            self.layer[0].splitdims[codebook] = tree.columns.int()
            self.compared[codebook] = tree.thresholds
            self.tables[codebook] = tables
            self.log_temperature[codebook] = log_temperature

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


def first_temperature(values: Tensor) -> Tensor:
    """Return (C, 1): the logs of temperatures to begin with, for what codebooks compare (C, ...).

    Examples
    --------
    >>> first_temperature(torch.tensor([[0.0, 8.0]])).exp()
    tensor([[1.]])
    """
    spread = values.flatten(1).std(1, correction=0, keepdim=True)
    floor = spread.max().clamp_min(1e-6) * 1e-3
    return (FIRST_TEMPERATURE * spread.clamp_min(floor)).log()


def multiply_add(sums: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return ``sums * scale + offset`` in float32, rounded once, as kernels do.

    In float64 the product is exact; what is then rounded twice differs only where the first
    rounding ends between two float32, or below the normal ones, which is computed again.

    Examples
    --------
    >>> multiply_add(torch.tensor([[3]]), torch.tensor([0.5]), torch.tensor([1.0])).tolist()
    [[2.5]]
    """
    total = sums.double().mul_(scale.double()).add_(offset.double())
    result = total.float()
    doubtful = (total.view(torch.int64) & _BELOW) == _MIDDLE
    doubtful |= (total.abs() < _NORMAL) & (total != 0)
    if bool(doubtful.any()):
        places = doubtful.nonzero(as_tuple=True)
        few = (sums[places].int()[None], scale[places[1]], offset[places[1]])
        exact = torch.ops.lutcc.lut_dequantize(*(part.cpu() for part in few), "none")
        result[places] = exact[0].to(result.device)
    return result


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


def has_lookups(model: nn.Module) -> bool:
    """Tell whether :func:`latent_lookups` finds something."""
    return any(isinstance(m, MaddnessLookup) for m in model.modules())


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
