"""What a compressed model takes: bits and errors by layer, shares of memory, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lutcc.codebook_weights import REFERENCE_BITS, CodebookWeights, Footprint
from lutcc.compress.checkpoint import Checkpoint
from lutcc.compress.stored import Compressed, TensorRecord, load_compressed, read_records
from lutcc.errors import InputError

_NONE = Footprint(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Layer:
    """A tensor of a compressed model.

    Attributes
    ----------
    record
        What is stored.
    before
        Its bits in the reference: at 16 a weight.
    share_before, share
        The part of the model's memory that it takes, activations included, before and after.
    weight_error
        Relative error of the weights, where the exact ones are known.
    """

    record: TensorRecord
    before: int
    share_before: float
    share: float
    weight_error: float | None = None

    @property
    def bits(self) -> int:
        """Its bits as stored; 0 where it shares those of another tensor."""
        return 0 if self.record.same_as else self.record.footprint.bits

    @property
    def is_compressed(self) -> bool:
        """Whether it is written with codebooks."""
        return self.record.method == "codebook"


@dataclass(frozen=True, slots=True)
class FootprintReport:
    """The numbers of a footprint report.

    Attributes
    ----------
    name
        Of the model.
    layers
        All tensors, in the model's order.
    goal
        The alpha that was asked for, or None.
    activations
        Bits of the activations that are held at once, or None where they are not known.
    bytes_before, bytes_after
        Of the files, as far as they are known.
    """

    name: str
    layers: tuple[Layer, ...]
    goal: float | None
    activations: int | None
    bytes_before: int | None
    bytes_after: int

    @property
    def compressed(self) -> tuple[Layer, ...]:
        """Those that are written with codebooks."""
        return tuple(layer for layer in self.layers if layer.is_compressed)

    @property
    def exact(self) -> tuple[Layer, ...]:
        """Those that are not."""
        return tuple(layer for layer in self.layers if not layer.is_compressed)

    @property
    def weights_before(self) -> int:
        """Bits of all weights at 16 each."""
        return sum(layer.before for layer in self.layers)

    @property
    def weights_after(self) -> int:
        """Bits of all tensors as stored."""
        return sum(layer.bits for layer in self.layers)

    @property
    def alpha(self) -> float:
        """Compression of all weights."""
        return self.weights_before / max(self.weights_after, 1)

    @property
    def alpha_with_activations(self) -> float | None:
        """Compression of weights and activations together."""
        if self.activations is None:
            return None
        return (self.weights_before + self.activations) / (self.weights_after + self.activations)

    @property
    def parts(self) -> Footprint:
        """Bits of all that is written with codebooks, part by part."""
        own = [layer.record.footprint for layer in self.compressed if not layer.record.same_as]
        return sum(own, _NONE)


def summarise(
    path: str | Path,
    before: str | Path | None = None,
    *,
    activations: int | None = None,
) -> FootprintReport:
    """Read what a compressed model takes.

    Parameters
    ----------
    path
        What `lutcc compress` wrote.
    before
        The exact checkpoint, to compare the weights with.
    activations
        Bits of the activations; None: those that the file knows of, if any.

    Raises
    ------
    InputError
        If a file cannot be read, or they are not of the same model.
    """
    from lutcc.compress.stored import model_file

    made, file = read_records(path), model_file(path)
    if activations is None and "bits" in made.activations:
        activations = int(made.activations["bits"])
    source = None if before is None else Checkpoint(before)
    errors = {} if source is None else _errors(made, path, source)
    bytes_before = None
    if source is not None:
        files = {info.file for info in source.tensors.values()}
        bytes_before = sum(f.stat().st_size for f in files)
    sizes = {
        r.name: 0 if r.same_as else r.footprint.weights * REFERENCE_BITS
        for r in made.records.values()
    }
    total_before = sum(sizes.values()) + (activations or 0)
    total = made.footprint.bits + (activations or 0)
    layers = []
    for record in made.records.values():
        bits = 0 if record.same_as else record.footprint.bits
        layers.append(
            Layer(
                record,
                sizes[record.name],
                sizes[record.name] / max(total_before, 1),
                bits / max(total, 1),
                errors.get(record.name),
            )
        )
    goal = made.options.get("alpha")
    name = Path(path).name or Path(path).resolve().name
    return FootprintReport(
        name, tuple(layers), goal, activations, bytes_before, file.stat().st_size
    )


def _errors(made: Compressed, path: str | Path, source: Checkpoint) -> dict[str, float]:
    """Return the relative error of each compressed weight."""
    wrong = [
        name
        for name, record in made.records.items()
        if name not in source.tensors or source.tensors[name].shape != record.shape
    ]
    if wrong:
        raise InputError(
            f"{len(wrong)} tensors, {wrong[0]!r} for one, are missing or of another shape",
            where=str(source.path),
            fix="name the checkpoint that was compressed",
        )
    if made.options.get("reorder") == "fold":
        return {}  # channels were permuted: weights cannot be compared one by one
    errors: dict[str, float] = {}
    for name, stored in load_compressed(path).items():
        if isinstance(stored, CodebookWeights):
            exact = source.tensor(name).flatten(1).float().numpy()
            norm = float(np.linalg.norm(exact))
            missed = float(np.linalg.norm(stored.dequantize() - exact))
            errors[name] = missed / norm if norm else float(missed > 0)
    return errors


def shown(layers: Sequence[Layer], most: int) -> tuple[Layer, ...]:
    """Return at most so many layers, the largest ones, in their order."""
    if len(layers) <= most:
        return tuple(layers)
    largest = sorted(layers, key=lambda layer: -layer.before)[:most]
    kept = {layer.record.name for layer in largest}
    return tuple(layer for layer in layers if layer.record.name in kept)
