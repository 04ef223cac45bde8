"""The options of each layer, measured: time, size, error, and what each does to the output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lutcc import recipes
from lutcc.convert_model import Batch, _inputs_of, _plain_transformers
from lutcc.convert_model import convert as convert_model
from lutcc.errors import ConvertError, LutccError
from lutcc.planning.cache import Cache
from lutcc.planning.calibration import Calibration
from lutcc.planning.candidates import label
from lutcc.planning.drop import CHANGE_WEIGHT, Judge
from lutcc.planning.layers import Layer
from lutcc.planning.speed import Speed, compiled, time_in_turns
from lutcc.runtime import Artifact

EXACT = recipes.Exact()
_MODEL = "model"  # beside the keys of configs


@dataclasses.dataclass(frozen=True, slots=True)
class Option:
    """What a layer may become.

    Parameters
    ----------
    config
        Its config in the recipe.
    seconds, nbytes
        Of the compiled layer, for one batch (all calls) and as stored.
    error
        Relative error of the layer's output, on rows that it was not fitted on.
    drop, change
        What it does to the model's output when it is swapped alone, see
        :class:`lutcc.planning.drop.Drop`.
    problem
        Why it cannot be taken, or "".
    """

    config: recipes.Config
    seconds: float = 0.0
    nbytes: int = 0
    error: float = 0.0
    drop: float = 0.0
    change: float = 0.0
    problem: str = ""

    @property
    def label(self) -> str:
        """Short name of the config."""
        return label(self.config)

    @property
    def damage(self) -> float:
        """What counts against the budget."""
        return max(0.0, self.drop) + CHANGE_WEIGHT * self.change

    def cost(self, objective: str) -> float:
        """Seconds or bytes."""
        return self.seconds if objective == "time" else float(self.nbytes)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain dictionary, ready for JSON."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return facts | {"config": recipes.config_to_dict(self.config), "label": self.label}


class Measurer:
    """Measures options, each once; what the cache holds is not measured again.

    Parameters
    ----------
    model
        The exact model.
    calibration, judge, cache
        Of the plan.
    target
        What kernels are compiled for.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        calibration: Calibration,
        judge: Judge,
        cache: Cache,
        target: str,
    ) -> None:
        self._model, self._calibration, self._judge = model, calibration, judge
        self._cache, self._target = cache, target
        self._whole: Artifact | None = None

    def options(
        self, layer: Layer, configs: list[recipes.Config], progress: Callable[[str], None]
    ) -> list[Option]:
        """Return the exact layer, then an option for each config.

        ``progress`` is told the label of what is fitted, and "timing" at the end.
        """
        if layer.inputs is None:
            return [Option(EXACT)]
        swapped: dict[str, torch.nn.Module] = {}
        effects = {}
        for config in configs:
            effects[config] = self._effect(layer, config, swapped, progress)
        wanted = [config for config in configs if not effects[config].problem]
        progress("timing")
        speeds = self._speeds(layer, wanted, swapped)
        found = [self._with_speed(Option(EXACT), layer, speeds[_key(EXACT)])]
        for config in configs:
            option = effects[config]
            speed = speeds.get(_key(config))
            found.append(option if speed is None else self._with_speed(option, layer, speed))
        return found

    @staticmethod
    def _with_speed(option: Option, layer: Layer, speed: Any) -> Option:
        if isinstance(speed, str):
            return dataclasses.replace(option, problem=speed)
        return dataclasses.replace(
            option, seconds=speed["seconds"] * layer.calls, nbytes=speed["nbytes"]
        )

    def whole(self) -> Speed | str:
        """Return what the exact model takes, compiled; why it cannot be compiled as text."""
        kept = self._cache.get("model")
        if kept is None:
            try:
                artifact = self._reference()
                timed = time_in_turns({_MODEL: (artifact, self._calibration.example)})
                kept = dataclasses.asdict(timed[_MODEL])
            except LutccError as error:
                kept = error.what
            self._cache.put(kept, "model")
        return kept if isinstance(kept, str) else Speed(**kept)

    def check(self, model: torch.nn.Module) -> tuple[Speed, float]:
        """Return what a converted model takes, and how fast the machine is meanwhile.

        The latter is the exact model's time over that of :meth:`whole`: 1, if it cannot be
        compiled.

        Raises
        ------
        LutccError
            If the model cannot be compiled.
        """
        artifact = compiled(model, self._calibration.example, self._target)
        found, pace = self._timed({"": (artifact, self._calibration.example)})
        return found[""], pace

    def _reference(self) -> Artifact:
        if self._whole is None:
            self._whole = compiled(self._model, self._calibration.example, self._target)
        return self._whole

    def _timed(self, given: Mapping[str, tuple[Artifact, Batch]]) -> tuple[dict[str, Speed], float]:
        """Time artifacts in turns with the exact model, which tells slow moments from fast ones.

        Returns
        -------
        Speeds, and the exact model's time over that of :meth:`whole`; 1, if it cannot be compiled.
        """
        whole = self.whole()
        if isinstance(whole, str):
            return time_in_turns(given), 1.0
        found = time_in_turns({**given, _MODEL: (self._reference(), self._calibration.example)})
        return found, found.pop(_MODEL).seconds / whole.seconds

    def _effect(
        self,
        layer: Layer,
        config: recipes.Config,
        swapped: dict[str, torch.nn.Module],
        progress: Callable[[str], None],
    ) -> Option:
        """Swap one layer alone; its error and what happens to the model's output."""
        key = ("effect", layer.name, _key(config))
        kept: dict[str, Any] | None = self._cache.get(*key)
        if kept is None:
            progress(label(config))
            try:
                model, module = self._swap(layer, config, swapped)
            except LutccError as error:
                kept = {"problem": error.what}
            else:
                drop = self._judge.drop(model, "choose")
                kept = {"drop": drop.drop, "change": drop.change}
                kept["error"] = self._error(layer, module)
                if not drop.change < float("inf"):
                    kept = {"problem": "the model's output is no longer finite"}
            self._cache.put(kept, *key)
        return Option(config, **kept)

    def _swap(
        self, layer: Layer, config: recipes.Config, swapped: dict[str, torch.nn.Module]
    ) -> tuple[torch.nn.Module, torch.nn.Module]:
        model = convert_model(self._model, {layer.name: config}, self._calibration.given)
        module = model.get_submodule(layer.name)
        if type(module) is type(layer.module):
            raise ConvertError(f"it leaves a {type(module).__name__} as it is", where=layer.name)
        swapped[_key(config)] = module
        return model, module

    def _error(self, layer: Layer, module: torch.nn.Module) -> float:
        """Return the relative error of the layer's output on the part to choose by."""
        error, norm = 0.0, 0.0
        with torch.no_grad(), _plain_transformers():
            for x in _inputs_of(self._model, layer.module, self._calibration.choose.batches):
                weight = next(layer.module.parameters())
                given = x.to(weight.device, weight.dtype)
                exact = layer.module(given).double()
                error += float((module(given).double() - exact).square().sum())
                norm += float(exact.square().sum())
        return (error / norm) ** 0.5 if norm else float(error > 0)

    def _speeds(
        self, layer: Layer, configs: list[recipes.Config], swapped: dict[str, torch.nn.Module]
    ) -> dict[str, Any]:
        """Return the speed of the exact layer and of each config; why there is none as text.

        Layers of one shape are timed once. Seconds are those at the pace of :meth:`whole`.
        """
        assert layer.inputs is not None
        kept: dict[str, Any] = self._cache.get("speed", layer.key) or {}
        missing = [config for config in configs if _key(config) not in kept]
        if _key(EXACT) in kept and not missing:
            return kept
        batch: Batch = ((layer.inputs,), {})
        artifacts: dict[str, Artifact] = {}
        problems: dict[str, str] = {}
        for config in (EXACT, *missing):
            try:
                if config != EXACT and _key(config) not in swapped:
                    self._swap(layer, config, swapped)
                module = swapped.get(_key(config), layer.module)
                artifacts[_key(config)] = compiled(module, batch, self._target)
            except LutccError as error:
                if config == EXACT:
                    raise
                problems[_key(config)] = error.what
        speeds, pace = self._timed({name: (a, batch) for name, a in artifacts.items()})
        found = {
            name: {"seconds": speed.seconds / pace, "nbytes": speed.nbytes}
            for name, speed in speeds.items()
        }
        kept |= {**found, **problems}
        self._cache.put(kept, "speed", layer.key)
        return kept


def _key(config: recipes.Config) -> str:
    return json.dumps(recipes.config_to_dict(config), sort_keys=True)
