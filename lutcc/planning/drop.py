"""How much a model's output changes: what ``max_drop`` bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from lutcc.convert_model import _evaluated, _plain_transformers
from lutcc.errors import InputError
from lutcc.planning.calibration import Calibration, Part

MEASURES = ("auto", "agreement", "accuracy", "error")
#: The weight of the outputs' relative change beside the drop, so that of two options which flip no
#: row, the gentler counts as such.
CHANGE_WEIGHT = 1e-3
#: Output values that are enough to tell the error of a single layer's swap by.
_VALUES = 2**19


@dataclasses.dataclass(frozen=True, slots=True)
class Drop:
    """What a change of the model does to its outputs.

    Parameters
    ----------
    drop
        What ``max_drop`` bounds, a part of 1; an accuracy may rise: it is negative then.
    change
        Frobenius norm of the outputs' difference over that of the exact outputs.
    cosine
        Between the outputs and the exact ones, all in one.
    """

    drop: float
    change: float
    cosine: float


class Judge:
    """Compares models with the exact one on the parts of the calibration.

    Parameters
    ----------
    model
        The exact model.
    calibration
        Its data.
    measure
        "agreement": the part of rows whose arg max differs. "accuracy": how much smaller the part
        of rows whose arg max is the label. "error": the relative error of all outputs. "auto": the
        first that fits: accuracy with labels, agreement where the output is one 2-D float tensor of
        at least two columns, else error.

    Raises
    ------
    InputError
        If the measure does not fit the model's output, or this has NaN.

    Notes
    -----
    Where a batch has an ``attention_mask``, outputs of tokens that it switches off do not count.
    """

    def __init__(
        self, model: torch.nn.Module, calibration: Calibration, measure: str = "auto"
    ) -> None:
        if measure not in MEASURES:
            raise InputError(
                f"measure={measure!r} is unknown", where="plan", fix=f"use one of {MEASURES}"
            )
        self._parts = {"choose": calibration.choose, "check": calibration.check}
        self._exact = {name: _outputs(model, part) for name, part in self._parts.items()}
        flat = [t for outputs in self._exact.values() for out in outputs for t in out]
        if not flat or not all(bool(torch.isfinite(t).all()) for t in flat):
            raise InputError(
                f"the model's output is NaN or infinite on the calibration data{_spoilt(model)}"
                if flat
                else "the model returns no floating-point tensor",
                where="plan",
                fix="mend the model or its inputs first",
            )
        classes = all(
            len(out) == 1 and out[0].dim() == 2 and out[0].shape[1] > 1
            for outputs in self._exact.values()
            for out in outputs
        )
        labelled = calibration.choose.labels is not None
        if measure == "auto":
            measure = ("accuracy" if labelled else "agreement") if classes else "error"
            if labelled and not classes:
                raise self._unfit("labels are", measure)
        elif measure != "error" and not classes:
            raise self._unfit(f"measure={measure!r} is", measure)
        elif measure == "accuracy" and not labelled:
            raise InputError("there are no labels", where="plan(measure)", fix="pass labels")
        self.measure = measure
        if measure == "error":
            self._shorten("choose")
        if labelled and measure == "accuracy":
            classes_seen = self._exact["choose"][0][0].shape[1]
            for part in self._parts.values():
                assert part.labels is not None
                if part.labels.min() < 0 or part.labels.max() >= classes_seen:
                    raise InputError(
                        f"labels are {part.labels.min()} to {part.labels.max()}, but the model "
                        f"tells {classes_seen} classes apart",
                        where="plan(labels)",
                        fix=f"number the classes from 0 to {classes_seen - 1}",
                    )

    def _shorten(self, name: str) -> None:
        """Keep as many batches of a part as have enough output values."""
        kept, values = 0, 0
        for outputs in self._exact[name]:
            if values >= _VALUES:
                break
            kept, values = kept + 1, values + sum(t.numel() for t in outputs)
        self._parts[name] = Part(self._parts[name].batches[:kept])
        self._exact[name] = self._exact[name][:kept]

    @staticmethod
    def _unfit(what: str, measure: str) -> InputError:
        return InputError(
            f"{what} for models whose output is one 2-D float tensor of at least two columns",
            where="plan",
            fix="leave it out, or use measure='error'",
        )

    def damage(self, drop: Drop) -> float:
        """Return what is added up over layers: never negative.

        Shares of rows add up, at worst. Errors of layers point in directions of their own: their
        squares do.
        """
        if self.measure == "error":
            return drop.change**2
        return max(0.0, drop.drop) + CHANGE_WEIGHT * drop.change

    def limit(self, max_drop: float) -> float:
        """Return what damages may add up to."""
        return max_drop**2 if self.measure == "error" else max_drop

    def expected(self, damage: float) -> float:
        """Return the drop that damages which add up to so much should give."""
        return expected_drop(self.measure, damage)

    def drop(self, model: torch.nn.Module, part: str) -> Drop:
        """Compare on "choose" or "check".

        A model that gives NaN has an infinite drop.
        """
        exact, given = self._exact[part], _outputs(model, self._parts[part])
        squares, norm, other, dot = 0.0, 0.0, 0.0, 0.0
        for e, g in zip(_flat(exact), _flat(given), strict=True):
            a, b = e.double(), g.double()
            squares += float((b - a).square().sum())
            norm += float(a.square().sum())
            other += float(b.square().sum())
            dot += float((a * b).sum())
        if not squares < float("inf"):
            return Drop(float("inf"), float("inf"), 0.0)
        change = (squares / norm) ** 0.5 if norm else float(squares > 0)
        cosine = dot / (norm * other) ** 0.5 if norm and other else float(norm == other)
        if self.measure == "error":
            return Drop(change, change, cosine)
        before = torch.cat([out[0].argmax(1) for out in exact])
        after = torch.cat([out[0].argmax(1) for out in given])
        if self.measure == "agreement":
            return Drop(float((before != after).double().mean()), change, cosine)
        labels = torch.from_numpy(self._parts[part].labels).to(before.device)
        right = [float((found == labels).double().mean()) for found in (before, after)]
        return Drop(right[0] - right[1], change, cosine)


def expected_drop(measure: str, damage: float) -> float:
    """Return the drop that damages which add up to so much should give."""
    return damage**0.5 if measure == "error" else damage


def _spoilt(model: torch.nn.Module) -> str:
    """Return which of a model's weights are no numbers, as the end of a sentence."""
    names = [
        name
        for name, value in model.state_dict().items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and not bool(torch.isfinite(value).all())
    ]
    more = ", ..." if len(names) > 3 else ""
    return f": so is its weight {', '.join(names[:3])}{more}" if names else ""


def _flat(outputs: list[list[torch.Tensor]]) -> list[torch.Tensor]:
    return [tensor for out in outputs for tensor in out]


def _outputs(model: torch.nn.Module, part: Part) -> list[list[torch.Tensor]]:
    """Return the floating-point tensors that the model gives for each batch."""
    with torch.no_grad(), _plain_transformers(), _evaluated(model):
        return [
            [
                _attended(t, kwargs.get("attention_mask"))
                for t in _leaves(model(*args, **kwargs))
                if t.is_floating_point()
            ]
            for args, kwargs in part.batches
        ]


def _attended(output: torch.Tensor, mask: Any) -> torch.Tensor:
    """Return zeros in the place of the results of tokens that a mask (rows, tokens) leaves out."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or output.dim() < 3:
        return output
    if output.shape[:2] != mask.shape:
        return output
    kept = mask.bool().reshape(*mask.shape, *(1,) * (output.dim() - 2))
    return output.masked_fill(~kept.to(output.device), 0.0)


def _leaves(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [leaf for entry in value for leaf in _leaves(entry)]
    return []
