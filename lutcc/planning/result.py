"""A plan: what each layer becomes, why, and what that is predicted and measured to give."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from lutcc import recipes
from lutcc.planning.candidates import settings
from lutcc.planning.drop import expected_drop
from lutcc.planning.options import EXACT, Option
from lutcc.runtime.files import write_text


@dataclasses.dataclass(frozen=True, slots=True)
class LayerPlan:
    """What one layer becomes.

    Parameters
    ----------
    name, shape
        The layer, and N x D x M of its product (of a convolution: input, kernel, channels).
    chosen
        The option that the recipe takes.
    options
        All, the exact layer first.
    reason
        Why, in a line.
    """

    name: str
    shape: str
    chosen: Option
    options: tuple[Option, ...]
    reason: str

    @property
    def exact(self) -> Option:
        """The layer as it is."""
        return self.options[0]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary, ready for JSON."""
        return {
            "name": self.name,
            "shape": self.shape,
            "choice": self.chosen.label,
            "seconds": self.chosen.seconds,
            "exact_seconds": self.exact.seconds,
            "bytes": self.chosen.nbytes,
            "exact_bytes": self.exact.nbytes,
            "error": self.chosen.error,
            "drop_alone": self.chosen.drop,
            "reason": self.reason,
            "options": [option.to_dict() for option in self.options],
        }


@dataclasses.dataclass(frozen=True, slots=True)
class ChainPlan:
    """Layers that would all look up, so that integers are passed on from one to the next.

    Parameters
    ----------
    names, choice
        The layers, and what they would become.
    seconds, alone_seconds, exact_seconds
        In the whole model; the same layers timed one by one; the exact layers.
    drop
        What they do to the model's output together; None if that was not measured.
    error
        The largest relative error of one of the layers.
    taken
        Whether the recipe has them so.
    reason
        Why, in a line.
    """

    names: tuple[str, ...]
    choice: str
    seconds: float
    alone_seconds: float
    exact_seconds: float
    drop: float | None
    error: float
    taken: bool
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """One recipe for the whole model.

    Parameters
    ----------
    labels
        What each layer becomes.
    seconds, nbytes
        Predicted: seconds as timed with the whole model, if ``timed_whole``.
    damage
        The drop that its layers should give together, by what each does alone.
    drop
        Measured on the converted model; None if it was not converted.
    scaled_seconds
        What its layers promised, scaled by what was known of whole models before.
    timed_whole
        Whether the converted model was timed.
    """

    labels: tuple[str, ...]
    seconds: float
    nbytes: int
    damage: float
    drop: float | None = None
    scaled_seconds: float = 0.0
    timed_whole: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """A recipe that keeps a model's output, and what it takes.

    Parameters
    ----------
    layers
        Every layer that could be swapped, in the model's order.
    chains
        Chains of layers that were weighed as one, see :mod:`lutcc.planning.chains`.
    kept
        Layers that look up already, by name: their type. They are left as they are.
    objective, max_drop, target, rows
        What was asked for; ``rows`` is the batch that was timed.
    measure
        What ``max_drop`` bounds: "agreement", "accuracy" or "error".
    drop, change, cosine
        Measured on rows that nothing was fitted on or chosen by, with every layer of the recipe
        converted; see :class:`lutcc.planning.drop.Drop`. ``checked_rows`` of them.
    exact_seconds, exact_bytes
        Of the exact model, compiled; sums of the layers where it cannot be compiled.
    predicted_seconds, predicted_bytes
        Of the converted model, compiled and timed whole, if ``timed_whole``; else those of the
        exact model, and what the chosen layers differ by. ``scaled_seconds`` are what layers
        promised before.
    measured_seconds, measured_bytes
        Of the converted model, compiled; None if it cannot be.
    tried
        Recipes that were converted, the last of them the plan's.
    front
        Recipes that are the cheapest for their damage, predicted only.
    notes
        What the user should know.
    model
        The converted model, fitted on half of the calibration.
    """

    layers: tuple[LayerPlan, ...]
    chains: tuple[ChainPlan, ...]
    kept: dict[str, str]
    objective: str
    max_drop: float
    target: str
    rows: int
    measure: str
    drop: float
    change: float
    cosine: float
    checked_rows: int
    exact_seconds: float
    exact_bytes: int
    predicted_seconds: float
    scaled_seconds: float
    timed_whole: bool
    predicted_bytes: int
    measured_seconds: float | None
    measured_bytes: int | None
    tried: tuple[Recipe, ...]
    front: tuple[Recipe, ...]
    notes: tuple[str, ...]
    model: torch.nn.Module = dataclasses.field(repr=False)

    @property
    def recipe(self) -> dict[str, recipes.Config]:
        """The recipe, as :func:`lutcc.convert` takes it: a config for every layer."""
        return {layer.name: layer.chosen.config for layer in self.layers}

    @property
    def rest_seconds(self) -> float:
        """What the exact model takes beside these layers: attention, norms and all else."""
        rest = self.exact_seconds - sum(layer.exact.seconds for layer in self.layers)
        return rest if rest > 1e-9 * self.exact_seconds else 0.0  # layers' times are sums of floats

    def expected(self, damage: float) -> float:
        """Return the drop that damages which add up to so much should give."""
        return expected_drop(self.measure, damage)

    @property
    def miss(self) -> float | None:
        """Relative error of the predicted time against the measured one; None without it."""
        if self.measured_seconds is None:
            return None
        return self.predicted_seconds / self.measured_seconds - 1

    def toml(self) -> str:
        """Return the recipe as TOML, with what is known about it in comments."""
        lines = [
            f"# lutcc plan: {self.measure} drops by {self.drop:.2%} (at most {self.max_drop:.2%})",
            f"# on {self.checked_rows} held-out rows; batch {self.rows}, target {self.target}:",
            f"# {'timed' if self.timed_whole else 'predicted'} "
            f"{microseconds(self.predicted_seconds)} us, exact "
            f"{microseconds(self.exact_seconds)} us",
        ]
        for layer in self.layers:
            lines += ["", f"# {_one_line(layer.reason)}", f"[{json.dumps(layer.name)}]"]
            lines += [
                f"{name} = {_value(value)}" for name, value in settings(layer.chosen.config).items()
            ]
        return "\n".join(lines) + "\n"

    def write(self, path: str | Path) -> Path:
        """Write the recipe as a TOML file, which :func:`lutcc.convert` reads."""
        path = Path(path)
        write_text(path, self.toml())
        return path

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and dictionaries, ready for JSON."""
        skipped = ("layers", "chains", "model", "tried", "front", "notes")
        fields = [f.name for f in dataclasses.fields(self) if f.name not in skipped]
        return {name: getattr(self, name) for name in fields} | {
            "miss": self.miss,
            "rest_seconds": self.rest_seconds,
            "layers": [layer.to_dict() for layer in self.layers],
            "chains": [dataclasses.asdict(chain) for chain in self.chains],
            "tried": [dataclasses.asdict(recipe) for recipe in self.tried],
            "front": [dataclasses.asdict(recipe) for recipe in self.front],
            "notes": list(self.notes),
        }


def microseconds(seconds: float) -> str:
    """Return a time in microseconds, of at least four digits.

    Examples
    --------
    >>> microseconds(0.01234567), microseconds(1.23456e-6)
    ('12,346', '1.235')
    """
    value = seconds * 1e6
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def changed(plan: Plan) -> list[LayerPlan]:
    """Return the layers that do not stay exact."""
    return [layer for layer in plan.layers if layer.chosen.config != EXACT]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _value(value: Any) -> str:
    """Return a number, text or truth value as TOML."""
    return json.dumps(value) if isinstance(value, str | bool) else repr(value)
