"""Trains a masked language model: logged, evaluated, saved, and resumed where it stopped."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lutcc.errors import LutccError
from lutcc.train import checkpoint
from lutcc.train.losses import LossLog
from lutcc.train.masked_lm import MaskedLM
from lutcc.train.masking import Batch, MaskedBatches
from lutcc.train.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Progress:
    """What a run tells after a step.

    Parameters
    ----------
    model
        Its name.
    step, steps
        Steps done, and to do in all.
    loss
        Training loss, a mean over some 20 steps.
    log_perplexity
        At the last evaluation, NaN before the first.
    tokens_per_second
        Of this process so far.
    """

    model: str
    step: int
    steps: int
    loss: float
    log_perplexity: float
    tokens_per_second: float


@dataclass(frozen=True, slots=True)
class Trained:
    """The outcome of a run.

    Parameters
    ----------
    log_perplexity
        Mean negative log likelihood of the held-out masked tokens at the end.
    steps
        Steps done.
    seconds
        Training time, those of earlier processes included.
    """

    log_perplexity: float
    steps: int
    seconds: float


class Trainer:
    """One model's run.

    Parameters
    ----------
    model
        Is trained in place and ends up on ``device``.
    batches
        Training data.
    validation
        Masked held-out batches, the same for all models.
    recipe
        See :class:`Recipe`.
    folder
        Gets ``losses.jsonl`` and ``NAME.safetensors``; an unfinished run in it goes on.
    name
        Of the model, in the log.
    device
        ``cpu`` or ``cuda``; there, products run in bfloat16.
    settings
        JSON values that the run depends on besides the recipe (sizes, text, seed).
    report
        Called after every step.
    """

    def __init__(
        self,
        model: MaskedLM,
        batches: MaskedBatches,
        validation: Sequence[Batch],
        recipe: Recipe,
        folder: str | Path,
        *,
        name: str,
        device: str | torch.device = "cpu",
        settings: dict[str, Any] | None = None,
        report: Callable[[Progress], None] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self.batches, self.validation, self.recipe = batches, validation, recipe
        self.name, self.folder, self._report = name, Path(folder), report
        self.log = LossLog(self.folder / "losses.jsonl")
        self.path = self.folder / f"{name}.safetensors"
        # What does not change the result is not compared with a checkpoint's.
        free = ("log_every", "save_every")
        kept = {k: getattr(recipe, k) for k in Recipe.__slots__ if k not in free}
        self.settings = {**kept, **(settings or {})}
        self._optimizer = recipe.optimizer(self.model.named_parameters())

    def run(self) -> Trained:
        """Train to the last step, or go on to it.

        Raises
        ------
        LutccError
            If the loss is no longer finite, or the folder holds a run with other settings.
        KeyboardInterrupt
            After Ctrl-C (or a termination signal), once the step is done and saved.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        step, before, value = 0, 0.0, math.nan
        if self.path.exists():
            step = checkpoint.load(self.path, self.model, self._optimizer, settings=self.settings)
        self.log.forget(self.name, step)
        for record in self.log.read():
            if record["model"] == self.name:
                before = max(before, record.get("seconds", 0.0))
                value = record.get("log_perplexity", value)
        start, mean, first = time.monotonic(), math.nan, step
        with _interrupts() as interrupted:
            while step < self.recipe.steps:
                loss, rate = self._step(step)
                step += 1
                last = step == self.recipe.steps
                mean = loss if math.isnan(mean) else 0.95 * mean + 0.05 * loss
                seconds = time.monotonic() - start
                if step % self.recipe.log_every == 0 or last or step == 1:
                    self._write(step, loss=loss, rate=rate, seconds=round(before + seconds, 2))
                if step % self.recipe.evaluate_every == 0 or last:
                    value = self.evaluate()
                    self._write(step, log_perplexity=value)
                stop = interrupted.is_set() and not last
                if step % self.recipe.save_every == 0 or last or stop:
                    self._save(step)
                if self._report is not None:
                    done = (step - first) * self.batches.batch_size * self.model.sizes.length
                    self._report(
                        Progress(
                            self.name,
                            step,
                            self.recipe.steps,
                            mean,
                            value,
                            done / max(seconds, 1e-9),
                        )
                    )
                if stop:
                    raise KeyboardInterrupt
        return Trained(value, step, before + time.monotonic() - start if first < step else before)

    def evaluate(self) -> float:
        """Return the log perplexity on the held-out batches."""
        return evaluate(self.model, self.validation, self.device)

    def seconds_per_step(self, steps: int = 3) -> float:
        """Measure a step on a copy of the model, which is thrown away."""
        twin = copy.copy(self)
        twin.model = copy.deepcopy(self.model)
        twin._optimizer = self.recipe.optimizer(twin.model.named_parameters())
        times = []
        for step in range(steps + 1):
            start = time.monotonic()
            twin._step(step)
            times.append(time.monotonic() - start)
        return sorted(times[1:])[steps // 2]

    def _step(self, step: int) -> tuple[float, float]:
        rate = self.recipe.set_rate(self._optimizer, step)
        batch = self.batches.at(step).to(self.device)
        self.model.train()
        self._optimizer.zero_grad(set_to_none=True)
        with _precision(self.device):
            loss = self.model.loss(batch.ids, batch.places, batch.labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self._optimizer.step()
        value = loss.item()
        if not math.isfinite(value):
            raise LutccError(
                f"the loss is {value} at step {step + 1}",
                where=f"training of {self.name}",
                fix="lower the learning rate or lengthen the warm-up; "
                "the last checkpoint is from before",
            )
        return value, rate

    def _write(self, step: int, **values: float) -> None:
        self.log.write(model=self.name, step=step, **values)

    def _save(self, step: int) -> None:
        checkpoint.save(self.path, self.model, self._optimizer, step=step, settings=self.settings)


def evaluate(model: MaskedLM, batches: Sequence[Batch], device: str | torch.device) -> float:
    """Return a model's mean negative log likelihood of all masked tokens of some batches."""
    device = torch.device(device)
    model.eval()
    total, tokens = 0.0, 0
    with torch.inference_mode(), _precision(device):
        for batch in batches:
            moved = batch.to(device)
            total += model.loss(moved.ids, moved.places, moved.labels).item() * len(batch.labels)
            tokens += len(batch.labels)
    return total / tokens


def steps_within(budget: float, seconds_per_step: Sequence[float], recipe: Recipe) -> int:
    """Return the equal number of steps that lets all models finish within a time.

    Parameters
    ----------
    budget
        Seconds for all runs together; a tenth is left for evaluations and checkpoints.
    seconds_per_step
        Of each model.
    recipe
        Its ``steps`` are never exceeded.

    Examples
    --------
    >>> steps_within(100, [0.1, 0.2], Recipe())
    300
    """
    return max(1, min(recipe.steps, int(0.9 * budget / sum(seconds_per_step) + 1e-9)))


def _precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


@contextmanager
def _interrupts() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that a step is finished; a second one ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # signals reach the main thread only
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def ask(number: int, frame: object) -> None:
        asked.set()
        for one, handler in before.items():
            signal.signal(one, handler)

    for number in signals:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
