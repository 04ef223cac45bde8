"""Training of small image classifiers: the same for exact and sampled layers, logged as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lutcc.data import ImageSplit
from lutcc.errors import InputError
from lutcc.train.communication import SampledCommunication
from lutcc.train.runlog import RunLog, RunRecord


@dataclass(frozen=True, kw_only=True)
class ClassifierRecipe:
    """How a classifier is trained.

    Parameters
    ----------
    epochs
        Passes over the training images.
    batch_size
        Images of a step, of all workers together; a last, smaller batch is left out.
    learning_rate
        Of Adam at its highest: it rises over the first tenth of the steps, then falls to 0 along a
        cosine.
    weight_decay
        Of AdamW.
    """

    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2


@dataclass(frozen=True, kw_only=True)
class Run:
    """Names a run: what is trained, by which method, from which seed."""

    task: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """The run's name in a log."""
        return f"{self.task}/{self.method}/{self.seed}"


@dataclass(frozen=True)
class Workers:
    """Which of how many workers this is, and what counts their traffic."""

    rank: int = 0
    world: int = 1
    communication: SampledCommunication | None = None


@dataclass
class MultiplyAdds:
    """Multiply-adds of a model's linear and convolution layers so far, forward and backward.

    Attributes
    ----------
    macs, exact_macs
        As they were done, and as exact layers would have done them.
    """

    macs: int = 0
    exact_macs: int = 0

    def of(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Count a forward pass through a layer, as a forward hook."""
        if not (layer.training and torch.is_grad_enabled()):
            return
        channels = output.shape[-1] if isinstance(layer, nn.Linear) else output.shape[1]
        rows = output.numel() // channels
        exact = 3 * rows * cast(Tensor, layer.weight).numel()
        sampled = exact
        if hasattr(layer, "macs"):
            sampled, exact = cast(Any, layer).macs(rows)
        self.macs, self.exact_macs = self.macs + sampled, self.exact_macs + exact


@contextmanager
def counted(model: nn.Module) -> Iterator[MultiplyAdds]:
    """Count the multiply-adds of a model's training steps.

    Examples
    --------
    >>> layer = nn.Linear(4, 5)
    >>> with counted(layer) as total:
    ...     y = layer(torch.ones(10, 4))
    >>> total
    MultiplyAdds(macs=600, exact_macs=600)
    """
    total = MultiplyAdds()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    hooks = [layer.register_forward_hook(total.of) for layer in layers]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def batches(count: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield the rows of each batch of an epoch, shuffled; what fills no batch is left out."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, count - batch_size + 1, batch_size):
        yield order[start : start + batch_size]


def train_classifier(
    build: Callable[[], nn.Module],
    data: ImageSplit,
    recipe: ClassifierRecipe,
    run: Run,
    *,
    log: RunLog | None = None,
    workers: Callable[[nn.Module], tuple[nn.Module, Workers]] | None = None,
    settings: dict[str, Any] | None = None,
) -> RunRecord:
    """Train a model from a seed and return the last record of the run.

    A run's initial values, batches and samples follow from its seed: methods that are compared see
    the same batches and start from the same values.

    Parameters
    ----------
    build
        Makes the untrained model; called under the seed.
    data
        Images in the shape that the model takes.
    recipe
        How to train.
    run
        The run's name and seed.
    log
        Where to write; only worker 0 does.
    workers
        Wraps the model for several workers and says which this is; by default there is one.
    settings
        What else the run depends on, for the log.

    Raises
    ------
    InputError
        If there are fewer images than a batch has, or a batch does not divide over the workers.
    """
    torch.manual_seed(run.seed)
    module = build()
    model, place = workers(module) if workers else (module, Workers())
    _check(data, recipe, place)
    order = torch.Generator().manual_seed(run.seed)
    torch.manual_seed(run.seed)  # of the samples, whatever building took
    x, y = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    steps_per_epoch = len(x) // recipe.batch_size
    total = recipe.epochs * steps_per_epoch
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=total, pct_start=0.1
    )
    seconds = 0.0
    with counted(module) as sums:

        def record(epoch: int, **values: Any) -> RunRecord:
            traffic = place.communication.total if place.communication else None
            made = RunRecord(
                run=run.name, method=run.method, seed=run.seed, task=run.task,
                step=epoch * steps_per_epoch, epoch=float(epoch), macs=sums.macs,
                exact_macs=sums.exact_macs, seconds=round(seconds, 4),
                bytes=traffic.bytes if traffic else None,
                dense_bytes=traffic.dense_bytes if traffic else None, **values,
            )  # fmt: skip
            if log is not None and place.rank == 0:
                log.write(made)
            return made

        last = record(0, settings={**asdict(recipe), **(settings or {})})
        for epoch in range(1, recipe.epochs + 1):
            model.train()
            losses = torch.zeros(())
            started = time.perf_counter()
            for rows in batches(len(x), recipe.batch_size, order):
                mine = rows.chunk(place.world)[place.rank]
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x[mine]), y[mine])
                loss.backward()
                optimizer.step()
                schedule.step()
                losses += loss.detach()
            seconds += time.perf_counter() - started
            last = record(
                epoch,
                loss=float(losses) / steps_per_epoch,
                accuracy=accuracy(module, data.test_x, data.test_y),
                split="test",
                final=epoch == recipe.epochs,
            )
    return last


def accuracy(model: nn.Module, images: Any, labels: Any, rows: int = 1000) -> float:
    """Return the part of the images that a model, in eval mode, gets right."""
    was_training = model.training
    model.eval()
    with torch.no_grad():
        found = [model(part).argmax(1) for part in torch.from_numpy(images).split(rows)]
    model.train(was_training)
    return float((torch.cat(found) == torch.from_numpy(labels)).double().mean())


def _check(data: ImageSplit, recipe: ClassifierRecipe, place: Workers) -> None:
    if len(data.train_x) < recipe.batch_size or recipe.epochs < 1:
        raise InputError(
            f"{recipe.epochs} epochs of batches of {recipe.batch_size} from {len(data.train_x)} "
            "images leave nothing to train on",
            where="train_classifier",
            fix="use smaller batches, and at least one epoch",
        )
    if recipe.batch_size % place.world:
        raise InputError(
            f"a batch of {recipe.batch_size} images over {place.world} workers",
            where="train_classifier",
            fix="use a multiple of the number of workers",
        )
