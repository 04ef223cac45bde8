"""One layer becomes look-ups, and the report of it; reports of all layers."""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import torch

from lutcc import recipes
from lutcc.codebook_weights import REFERENCE_BITS, Footprint
from lutcc.errors import ConvertError
from lutcc.fit import Maddness
from lutcc.nn.calibration import conv_rows, linear_rows
from lutcc.nn.conv import MaddnessConv2d, conv_geometry, conv_weights
from lutcc.nn.distillation import seeded
from lutcc.nn.feed_forward import FeedForward
from lutcc.nn.linear import MaddnessLinear, linear_weights
from lutcc.nn.lookup import MaddnessLookup
from lutcc.nn.lookup_ffn import LookupFFN
from lutcc.nn.sampled import SampledLinear
from lutcc.nn.sampled_conv import SampledConv2d


@dataclasses.dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one layer.

    Parameters
    ----------
    name, method
        The layer, and the recipe's method.
    in_features, out_features, ncodebooks, nprototypes
        D, M, C and K of its product (patches are rows for a convolution); C = K = 0 for an exact
        layer. For a LookupFFN, C and K are its tables and their rows; for codebooks, the regions of
        the matrix that have a codebook or scale of their own, and a codebook's values.
    relative_error
        Frobenius norm of (look-up - exact) over that of exact, on the calibration rows it was
        fitted on (for a LookupFFN: on held-out ones); both get the output of the converted layers
        before it. 0 for an exact layer, None for one that starts afresh. For codebooks, exact is
        the untouched model's layer on its own inputs; without data, errors are the weights'.
    rows
        Calibration rows fitted on.
    table_bytes, weight_bytes
        Size of the tables, and of the exact layer's parameters.
    seconds
        Time to fit.
    note
        What the recipe's author should know, or "".
    sampled_pairs, pairs
        Of a sampled layer: k, and of how many: input features or channels (of a group), groups of
        features, or, where only gradients are sampled, output features or channels. 0 where the
        weights' gradient alone is sampled, over as many rows as there will be.
    macs_saved
        Of a sampled layer: the part of a training step's multiply-adds that it saves.
    footprint
        Of a layer written with codebooks: the bits of its weights, as stored.
    """

    name: str
    method: str
    in_features: int
    out_features: int
    ncodebooks: int
    nprototypes: int
    relative_error: float | None
    rows: int
    table_bytes: int
    weight_bytes: int
    seconds: float
    note: str = ""
    sampled_pairs: int = 0
    pairs: int = 0
    macs_saved: float = 0.0
    footprint: Footprint | None = None

    def with_note(self, note: str) -> Self:
        """Return the report with another note."""
        return dataclasses.replace(self, note=note)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary, ready for JSON."""
        facts = dataclasses.asdict(self)
        if self.footprint is None:
            del facts["footprint"]
            return facts
        more = {"bits_per_weight": self.footprint.bits_per_weight, "alpha": self.footprint.alpha}
        return facts | more


@dataclasses.dataclass(frozen=True, slots=True)
class ConversionReport:
    """The layers that the recipe names, in the order in which the model runs them.

    Parameters
    ----------
    layers
        A report of each.
    exact_weights
        Where layers are written with codebooks: all other parameters of the model.
    """

    layers: tuple[LayerReport, ...]
    exact_weights: int = 0

    @property
    def footprint(self) -> Footprint | None:
        """Bits of all that is written with codebooks; None if nothing is."""
        found = [layer.footprint for layer in self.layers if layer.footprint is not None]
        return sum(found[1:], found[0]) if found else None

    @property
    def bits_per_weight(self) -> float:
        """Bits of a parameter of the model, at 16 for those that are not compressed."""
        found = self.footprint or Footprint(0, 0, 0, 0)
        weights = found.weights + self.exact_weights
        bits = found.bits + REFERENCE_BITS * self.exact_weights
        return bits / weights if weights else float(REFERENCE_BITS)

    @property
    def alpha(self) -> float:
        """Compression of the whole model against 16 bits a parameter."""
        return REFERENCE_BITS / self.bits_per_weight

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dictionaries, ready for JSON."""
        facts: dict[str, Any] = {"layers": [layer.to_dict() for layer in self.layers]}
        if self.footprint is None:
            return facts
        facts |= {"exact_weights": self.exact_weights, "alpha": self.alpha}
        return facts | {"bits_per_weight": self.bits_per_weight}

    def __str__(self) -> str:
        """Return a table with one line per layer."""
        compressed = self.footprint
        width = max([24, *(len(r.name) for r in self.layers)]) if compressed else 24
        head = f"{'layer':{width}} {'method':10} {'D':>5} {'M':>5} {'C':>4} {'K':>4}"
        head += f" {'error':>8} {'table bytes':>12}"
        head += f" {'bits':>6} {'alpha':>6}" if compressed else ""
        lines = [f"{head}  note"]
        for r in self.layers:
            line = f"{r.name:{width}} {r.method:10} {r.in_features:5} {r.out_features:5}"
            error = "-" if r.relative_error is None else f"{r.relative_error:.4f}"
            line += f" {r.ncodebooks:4} {r.nprototypes:4} {error:>8} {r.table_bytes:12,}"
            if r.footprint is not None:
                line += f" {r.footprint.bits_per_weight:6.3f} {r.footprint.alpha:6.2f}"
            elif compressed:
                line += " " * 14
            lines.append(f"{line}  {r.note}".rstrip())
        if compressed:
            lines.append(
                f"alpha {self.alpha:.2f} in all: {self.bits_per_weight:.3f} bits a weight, of "
                f"{compressed.weights:,} compressed and {self.exact_weights:,} others (at "
                f"{REFERENCE_BITS} bits)"
            )
        return "\n".join(lines)


def convert_layer(
    name: str,
    layer: torch.nn.Module,
    config: recipes.Maddness | recipes.LookupFFN | recipes.Sampled,
    inputs: list[torch.Tensor] | None,
    block: FeedForward | None = None,
    exact_inputs: list[torch.Tensor] | None = None,
) -> tuple[torch.nn.Module, LayerReport]:
    """Fit and build the replacement of one layer, or of the feed-forward block that it holds.

    ``exact_inputs``: what reaches the layer in the exact network, call for call, if that is what
    look-ups are to be fitted to.
    """
    if isinstance(config, recipes.Sampled):
        return _sample_layer(name, layer, config)
    if isinstance(config, recipes.LookupFFN):
        assert block is not None  # the plan gives LookupFFN blocks only
        return _convert_block(name, block, config, inputs)
    assert inputs is not None
    return _convert_product(name, layer, config, inputs, exact_inputs)


def _convert_block(
    name: str, block: FeedForward, config: recipes.LookupFFN, inputs: list[torch.Tensor] | None
) -> tuple[LookupFFN, LayerReport]:
    """Distil a feed-forward block, or start a new one where there is no data."""
    started = time.perf_counter()
    device = next(block.owner.parameters()).device
    seed = block_seed(name, config)
    if inputs is None:
        with seeded(seed, device):
            layer = LookupFFN(block.d_in, block.d_out, **config.layer_options(), device=device)
        count, error, note = 0, None, "starts afresh: train it"
    else:
        options = config.layer_options() | config.distillation_options()
        rows = [x.reshape(-1, x.shape[-1]) for x in inputs if x.numel()]
        if not rows:
            raise ConvertError(
                "no rows reach the block",
                where="convert",
                fix="pass calibration inputs that reach it",
            )
        layer = LookupFFN.from_ffn(
            block.function, torch.cat(rows), seed=seed, device=device, **options
        )
        found = layer.distillation
        assert found is not None
        count, error = found.rows + found.held_out, found.relative_error
        note = f"the mean output alone has {found.mean_error:.4f}"
    report = LayerReport(
        name=name,
        method=config.method,
        in_features=block.d_in,
        out_features=block.d_out,
        ncodebooks=config.num_tables,
        nprototypes=2**config.code_length,
        relative_error=error,
        rows=count,
        table_bytes=layer.table_bytes,
        weight_bytes=block.weight_bytes,
        seconds=time.perf_counter() - started,
        note=note,
    )
    return layer.eval(), report


def _sample_layer(
    name: str, layer: torch.nn.Module, config: recipes.Sampled
) -> tuple[torch.nn.Module, LayerReport]:
    """Return the layer with the same parameters, whose training is sampled."""
    started = time.perf_counter()
    made: SampledLinear | SampledConv2d
    if isinstance(layer, torch.nn.Linear):
        made = SampledLinear.from_linear(layer, **config.to_dict())
    else:
        assert isinstance(layer, torch.nn.Conv2d)
        made = SampledConv2d.from_conv(layer, **config.to_dict())
    total = made.pairs
    if config.where in ("backward", "weight_gradient"):
        # the input's gradient is sampled over these
        total = 0
        if config.where == "backward":
            groups = layer.groups if isinstance(layer, torch.nn.Conv2d) else config.group_size
            total = -(-layer.weight.shape[0] // groups)
    k = config.count(total)
    sampled, exact = made.macs(2**20)  # so many rows that rounding k does not count
    saved = 1 - sampled / exact if exact else 0.0
    of = f"{k} of {total}" if total else f"{config.sample_ratio:g} of the rows"
    seconds = time.perf_counter() - started
    weight = layer.weight
    report = LayerReport(
        name=name,
        method=config.method,
        in_features=weight[0].numel(),
        out_features=weight.shape[0],
        ncodebooks=0,
        nprototypes=0,
        relative_error=None,
        rows=0,
        table_bytes=0,
        weight_bytes=weight_bytes(layer),
        seconds=seconds,
        note=f"{config.mode}, {config.where}: {of}, {saved:.0%} of the multiply-adds saved",
        sampled_pairs=k,
        pairs=total,
        macs_saved=saved,
    )
    return made, report


def block_seed(name: str, config: recipes.LookupFFN) -> int:
    """Return a block's own seed: blocks of one model must not share their random hash."""
    return (config.random_state + zlib.crc32(name.encode())) % 2**32


def _convert_product(
    name: str,
    layer: torch.nn.Module,
    config: recipes.Maddness,
    inputs: list[torch.Tensor],
    exact_inputs: list[torch.Tensor] | None,
) -> tuple[MaddnessLookup, LayerReport]:
    started = time.perf_counter()
    rows, weights, bias, build = CONVERTERS[type(layer)](layer, inputs, config)
    options, notes = config.estimator_options(), list[str]()
    if config.ncodebooks > rows.shape[1]:
        options["ncodebooks"] = rows.shape[1]
        notes.append(
            f"ncodebooks lowered from {config.ncodebooks} to the layer's {rows.shape[1]} columns"
        )
    wanted = (
        None if exact_inputs is None else CONVERTERS[type(layer)](layer, exact_inputs, config)[0]
    )
    estimator = Maddness(**options).fit(rows, weights, bias, exact=wanted)
    if config.partition == "auto":
        notes.append(f"partition {estimator.partition_used_}")
    replacement = build(estimator)
    table_rows = replacement.ncodebooks * replacement.nprototypes
    if len(rows) < table_rows:
        notes.append(f"{len(rows)} rows for {table_rows} table rows: calibrate with more data")
    error, norm = 0.0, 0.0
    for first in range(0, len(rows), 4096):
        block = rows[first : first + 4096]
        exact = block @ weights + (0.0 if bias is None else bias)
        error += float(np.square(estimator.predict(block) - exact).sum())
        norm += float(np.square(exact).sum())
    report = LayerReport(
        name=name,
        method=config.method,
        in_features=replacement.in_features,
        out_features=replacement.out_features,
        ncodebooks=replacement.ncodebooks,
        nprototypes=replacement.nprototypes,
        relative_error=float(np.sqrt(error / norm)) if norm else float(error > 0),
        rows=len(rows),
        table_bytes=replacement.table_bytes(),
        weight_bytes=weight_bytes(layer),
        seconds=time.perf_counter() - started,
        note="; ".join(notes),
    )
    parameter = next(layer.parameters())
    return replacement.to(parameter.device), report


def _linear_problem(
    layer: torch.nn.Linear, inputs: list[torch.Tensor], config: recipes.Maddness
) -> tuple[Any, ...]:
    """Return rows, B, bias and the builder of the replacement of a linear layer."""
    parts = [linear_rows(x, layer.in_features, None, None) for x in inputs if x.numel()]
    rows = _thin(parts, config)
    return rows, *linear_weights(layer), MaddnessLinear.from_estimator


def _conv_problem(
    layer: torch.nn.Conv2d, inputs: list[torch.Tensor], config: recipes.Maddness
) -> tuple[Any, ...]:
    """Return rows, B, bias and the builder of the replacement of a convolution."""
    geometry = conv_geometry(layer)
    each = -(
        -config.max_rows // max(1, len(inputs))
    )  # thinned per call first: patches outnumber pixels
    parts = [
        conv_rows(x, layer.in_channels, geometry, max(each, 1), config.random_state + call)
        for call, x in enumerate(inputs)
        if x.numel()
    ]
    rows = _thin(parts, config)

    def build(estimator: Maddness) -> MaddnessConv2d:
        return MaddnessConv2d.from_estimator(estimator, layer.in_channels, **geometry)

    return rows, *conv_weights(layer), build


CONVERTERS: dict[type[torch.nn.Module], Callable[..., tuple[Any, ...]]] = {
    torch.nn.Linear: _linear_problem,
    torch.nn.Conv2d: _conv_problem,
    SampledLinear: _linear_problem,  # as exact as any once it is in evaluation mode
    SampledConv2d: _conv_problem,
}


def _thin(parts: list[np.ndarray], config: recipes.Maddness) -> np.ndarray:
    """Join ``parts`` and keep at most ``max_rows`` rows, drawn without replacement."""
    if not parts:
        raise ConvertError(
            "no rows reach the layer", where="convert", fix="pass calibration inputs that reach it"
        )
    rows = np.concatenate(parts)
    if len(rows) <= config.max_rows:
        return rows
    keep = np.random.default_rng(config.random_state).choice(
        len(rows), config.max_rows, replace=False
    )
    return rows[np.sort(keep)]


def weight_bytes(layer: torch.nn.Module) -> int:
    """Return the size of the layer's parameters."""
    return sum(p.numel() * p.element_size() for p in layer.parameters())


def exact_report(
    name: str, layer: torch.nn.Module, block: FeedForward | None = None
) -> LayerReport:
    """Return the report of a layer or block that stays as it is."""
    if block is not None:
        size, inputs, outputs = block.weight_bytes, block.d_in, block.d_out
    else:
        weight = next(layer.parameters())
        size, inputs, outputs = weight_bytes(layer), weight[0].numel(), weight.shape[0]
    return LayerReport(name, "exact", inputs, outputs, 0, 0, 0.0, 0, 0, size, 0.0)
