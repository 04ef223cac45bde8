"""Measures the options of each layer: time, size, error, and what each does to the output."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from lutcc import recipes
from lutcc.convert_model import Batch
from lutcc.convert_model import convert as convert_model
from lutcc.errors import ConvertError, LutccError
from lutcc.planning.cache import Cache
from lutcc.planning.calibration import Calibration
from lutcc.planning.candidates import label
from lutcc.planning.drop import Judge
from lutcc.planning.layers import Layer
from lutcc.planning.options import EXACT, Option
from lutcc.planning.skipping import Skipping, in_order
from lutcc.planning.speed import Speed, compiled, time_in_turns
from lutcc.runtime import Artifact

_MODEL = "model"  # beside the keys of configs
_STAND_IN_ROWS = 512  # rows that look-ups are fitted on where only their time is of interest


class Measurer:
    """Measures options, each once; what the cache holds is not measured again.

    Parameters
    ----------
    model
        The exact model.
    calibration, judge, cache
        Of the plan.
    target, threads
        What kernels are compiled for, and how many threads a call has (None: all).
    """

    def __init__(
        self,
        model: torch.nn.Module,
        calibration: Calibration,
        judge: Judge,
        cache: Cache,
        target: str,
        threads: int | None = None,
    ) -> None:
        self._model, self._calibration, self._judge = model, calibration, judge
        self._cache, self._target, self._threads = cache, target, threads
        self._whole: Artifact | None = None

    @property
    def example(self) -> Any:
        """The batch that is timed, as models are traced with it."""
        args, kwargs = self._calibration.example
        return kwargs or args

    def options(
        self,
        layer: Layer,
        configs: list[recipes.Config],
        skipping: Skipping,
        progress: Callable[[str], None],
    ) -> list[Option]:
        """Return the exact layer, then an option for each config.

        ``progress`` is told "timing", then the label of what is fitted.
        """
        if layer.inputs is None:
            return [Option(EXACT)]
        speeds = self._speeds(layer, configs, progress)
        exact = self._with_speed(Option(EXACT), layer, speeds[_key(EXACT)])
        found: dict[recipes.Config, Option] = {}
        for config in in_order(configs):
            option = self._with_speed(Option(config), layer, speeds[_key(config)])
            why = "" if option.problem else skipping.reason(
                option, exact, list(found.values()), layer.key
            )  # fmt: skip
            if why:
                option = dataclasses.replace(option, skipped=why)
            elif not option.problem:
                effect = self._effect(layer, config, progress)
                option = dataclasses.replace(option, **effect)
            skipping.note(option, layer.key)
            found[config] = option
        return [exact, *(found[config] for config in configs)]

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

    def everywhere(self, config: recipes.Config, names: Sequence[str]) -> float | None:
        """Return what the whole model takes with a config in each of the layers; None if unknown.

        Look-ups are fitted on few rows: that changes the numbers in their tables only. Seconds are
        those at the pace of :meth:`whole`.
        """
        key = ("everywhere", _key(config), *names)
        speed = self._timed_whole(key, lambda: self.stand_in(dict.fromkeys(names, config)))
        return None if speed is None else speed.seconds

    def in_place(self, recipe: Mapping[str, recipes.Config]) -> float | None:
        """Return what the whole model takes with several layers swapped, as :meth:`everywhere`."""
        keys = {name: _key(config) for name, config in recipe.items()}
        speed = self._timed_whole(("in place", json.dumps(keys)), lambda: self.stand_in(recipe))
        return None if speed is None else speed.seconds

    def stand_in(self, recipe: Mapping[str, recipes.Config]) -> torch.nn.Module:
        """Return a model of the same speed and size as with a recipe, fitted in haste."""
        quick = {name: _stand_in(config) for name, config in recipe.items()}
        return convert_model(self._model, quick, self._calibration.given)

    def converted(
        self, recipe: Mapping[str, recipes.Config], model: torch.nn.Module
    ) -> Speed | None:
        """Return what a model takes that was converted with a recipe; None if unknown.

        Seconds are those at the pace of :meth:`whole`.
        """
        keys = {name: _key(config) for name, config in recipe.items()}
        return self._timed_whole(("converted", json.dumps(keys)), lambda: model)

    def _timed_whole(
        self, key: tuple[str, ...], make: Callable[[], torch.nn.Module]
    ) -> Speed | None:
        kept: dict[str, Any] | None = self._cache.get(*key)
        if kept is not None and "seconds" in kept and "nbytes" not in kept:
            kept = None  # bytes were not kept in former times
        if kept is None and isinstance(self.whole(), Speed):
            try:
                speed, pace = self.check(make())
                kept = {"seconds": speed.seconds / pace, "nbytes": speed.nbytes}
            except LutccError as error:
                kept = {"problem": error.what}
            gc.collect()
            self._cache.put(kept, *key)
        return None if kept is None or "seconds" not in kept else Speed(**kept)

    def check(self, model: torch.nn.Module) -> tuple[Speed, float]:
        """Return what a converted model takes, and how fast the machine is meanwhile.

        The latter is the exact model's time over that of :meth:`whole`: 1, if it cannot be
        compiled.

        Raises
        ------
        LutccError
            If the model cannot be compiled.
        """
        artifact = self._compiled(model, self._calibration.example)
        found, pace = self._timed({"": (artifact, self._calibration.example)})
        return found[""], pace

    def _compiled(self, module: torch.nn.Module, batch: Batch) -> Artifact:
        artifact = compiled(module, batch, self._target)
        if self._threads is not None:
            artifact.num_threads = self._threads
        return artifact

    def _reference(self) -> Artifact:
        if self._whole is None:
            self._whole = self._compiled(self._model, self._calibration.example)
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
        self, layer: Layer, config: recipes.Config, progress: Callable[[str], None]
    ) -> dict[str, Any]:
        """Swap one layer alone; its error and what happens to the model's output."""
        key = ("effect", layer.name, _key(config))
        kept: dict[str, Any] | None = self._cache.get(*key)
        if kept is None:
            progress(label(config))
            kept = self._swapped([layer], {layer.name: config})
            gc.collect()  # graphs know the module that they are of: copies go only so
            if "errors" in kept:
                [kept["error"]] = kept.pop("errors")
            self._cache.put(kept, *key)
        return kept

    def effect_together(
        self, layers: Sequence[Layer], configs: Sequence[recipes.Config]
    ) -> dict[str, Any]:
        """Swap several layers; the error of each and what happens to the model's output."""
        recipe = {layer.name: config for layer, config in zip(layers, configs, strict=True)}
        key = ("effects", json.dumps({name: _key(config) for name, config in recipe.items()}))
        kept: dict[str, Any] | None = self._cache.get(*key)
        if kept is None:
            kept = self._swapped(layers, recipe)
            gc.collect()
            self._cache.put(kept, *key)
        return kept

    def _swapped(
        self, layers: Sequence[Layer], recipe: Mapping[str, recipes.Config]
    ) -> dict[str, Any]:
        """Return what a recipe for some layers does, ready for JSON."""
        try:
            model = convert_model(self._model, recipe, self._calibration.given)
        except LutccError as error:
            return {"problem": error.what}
        with contextlib.ExitStack() as stack:
            errors = [
                stack.enter_context(_OutputError(layer.module, model.get_submodule(layer.name)))
                for layer in layers
            ]
            drop = self._judge.drop(model, "choose")
        if not drop.change < float("inf"):
            return {"problem": "the model's output is no longer finite"}
        return {
            "drop": drop.drop,
            "change": drop.change,
            "damage": self._judge.damage(drop),
            "errors": [error.value for error in errors],
        }

    def _speeds(
        self, layer: Layer, configs: list[recipes.Config], progress: Callable[[str], None]
    ) -> dict[str, Any]:
        """Return the speed of the exact layer and of each config; why there is none as text.

        Layers of one shape are timed once. Seconds are those at the pace of :meth:`whole`.
        """
        assert layer.inputs is not None
        kept: dict[str, Any] = self._cache.get("speed", layer.key) or {}
        missing = [config for config in configs if _key(config) not in kept]
        if _key(EXACT) in kept and not missing:
            return kept
        progress("timing")
        batch: Batch = ((layer.inputs,), {})
        artifacts = {_key(EXACT): self._compiled(layer.module, batch)}
        problems: dict[str, str] = {}
        for config in missing:
            try:
                artifacts[_key(config)] = self._compiled(_fitted_stand_in(layer, config), batch)
            except LutccError as error:
                problems[_key(config)] = error.what
        speeds, pace = self._timed({name: (a, batch) for name, a in artifacts.items()})
        found = {
            name: {"seconds": speed.seconds / pace, "nbytes": speed.nbytes}
            for name, speed in speeds.items()
        }
        kept |= {**found, **problems}
        self._cache.put(kept, "speed", layer.key)
        return kept


class _OutputError:
    """The relative error of a layer's output while a model runs in which it was swapped."""

    def __init__(self, exact: torch.nn.Module, swapped: torch.nn.Module) -> None:
        self._exact, self._swapped = exact, swapped
        self._error, self._norm = 0.0, 0.0

    def __enter__(self) -> _OutputError:
        self._handle = self._swapped.register_forward_hook(self._compare, with_kwargs=True)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._handle.remove()

    def _compare(self, module: torch.nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        exact = self._exact(*args, **kwargs).double()
        self._error += float((output.double() - exact).square().sum())
        self._norm += float(exact.square().sum())

    @property
    def value(self) -> float:
        """Of all calls."""
        return (self._error / self._norm) ** 0.5 if self._norm else float(self._error > 0)


def _stand_in(config: recipes.Config) -> recipes.Config:
    """Return a config that gives layers of the same speed and size, and is fitted at once."""
    if isinstance(config, recipes.Maddness):
        return dataclasses.replace(config, prototypes="kmeans", max_rows=_STAND_IN_ROWS)
    if isinstance(config, recipes.Codebook):
        return dataclasses.replace(config, learn="none")
    return config


def _fitted_stand_in(layer: Layer, config: recipes.Config) -> torch.nn.Module:
    """Return a layer of the same speed and size.

    Raises
    ------
    LutccError
        If the layer cannot be converted so.
    """
    assert layer.inputs is not None
    shape = layer.inputs.shape
    if isinstance(layer.module, torch.nn.Linear):
        shape = (_STAND_IN_ROWS, shape[-1])
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    alone = torch.nn.Sequential(copy.deepcopy(layer.module)).float().cpu().eval()
    made = convert_model(alone, {"0": _stand_in(config)}, drawn)[0]  # pyright: ignore[reportIndexIssue]
    if type(made) is type(layer.module):
        raise ConvertError(f"it leaves a {type(made).__name__} as it is", where=layer.name)
    return made


def _key(config: recipes.Config) -> str:
    return json.dumps(recipes.config_to_dict(config), sort_keys=True)
