"""Fine-tuning of whole networks of look-ups: hash functions, tables and the layers between."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lutcc.errors import ConvertError, InputError
from lutcc.nn.latent_lookup import LatentLookup, latent_lookups, looked_up_by
from lutcc.train import checkpoint as checkpoints

Objective: TypeAlias = Callable[[Any, Any], Tensor]
"""Takes the model's output and the targets; returns what is to be small."""
Progress: TypeAlias = Callable[[int, int, float], None]
"""Takes the epoch that is done, how many there are, and its mean loss."""

#: Learning rates of hash functions, and of exact layers' parameters, relative to those of tables:
#: all relative to the size of what is trained.
HASH_RATE, EXACT_RATE = 0.5, 0.2
#: Steps in which the rates rise.
_RISE = 20


@dataclass(frozen=True)
class _Settings:
    """What a run depends on; a checkpoint belongs to these."""

    epochs: int
    batch_size: int
    learning_rate: float
    noise: float
    seed: int
    rows: int
    teacher: bool

    def check(self) -> None:
        """Refuse what makes no sense."""
        wrong = [name for name in ("epochs", "batch_size", "rows") if not getattr(self, name) >= 1]
        if wrong or not self.learning_rate > 0 or not self.noise >= 0:
            raise InputError(
                f"epochs={self.epochs}, batch_size={self.batch_size}, rows={self.rows}, "
                f"learning_rate={self.learning_rate}, noise={self.noise}",
                where="finetune",
                fix="pass at least one epoch and one row, a positive learning_rate, noise >= 0",
            )


def finetune(
    model: nn.Module,
    data: Any,
    *,
    epochs: int = 50,
    teacher: nn.Module | None = None,
    objective: Objective | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.02,
    noise: float = 0.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a copy of ``model`` whose look-ups are trained, all of them together.

    Forward, the model computes what it will compute when compiled, bit for bit: hard codes, 8-bit
    tables. Backward, codes are soft (:class:`lutcc.nn.latent_lookup.LatentLookup`). Thresholds or
    centroids, temperatures, tables, and the parameters of the layers between are trained by Adam;
    batch norms keep their statistics.

    Parameters
    ----------
    model
        What ``lutcc.convert`` made with :class:`lutcc.recipes.Maddness`; it is not changed. On the
        device to train on.
    data
        ``(inputs, targets)``: tensors or arrays of as many rows; targets None with a teacher. Class
        numbers (whole) are learnt by cross entropy, floats by their squared error.
    epochs
        Passes over the rows.
    teacher
        The exact network, usually. Its outputs are learnt too: by the divergence of a softmax where
        targets are class numbers, else by the squared error, relative to their deviation.
    objective
        ``objective(outputs, targets)`` in place of the losses above (the teacher's is added).
    batch_size
        Rows of a step.
    learning_rate
        Of tables, relative to the deviation of their entries; those of thresholds and of exact
        layers follow from it. Rises in 20 steps, and falls to 0 as a cosine.
    noise
        Standard deviation of what is added to inputs in training.
    seed
        Of the order of rows and of the noise.
    checkpoint
        A file that is written after each epoch and, if it is there, gone on from.
    progress
        Called as ``progress(epoch, epochs, loss)`` after each epoch.

    Raises
    ------
    InputError
        If there are no look-ups, no rows, nothing to learn from, or a checkpoint of other settings.
    ConvertError
        If the loss is not finite.

    Notes
    -----
    ITLUMM, section 4, names a differentiable hash function as the way on.

    Examples
    --------
    >>> import lutcc
    >>> net, x = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(64, 8)
    >>> small = lutcc.convert(net, {"*": lutcc.recipes.Maddness(ncodebooks=4)}, x)
    >>> better = lutcc.finetune(small, (x, None), epochs=1, teacher=net)
    >>> better(x).shape
    torch.Size([64, 4])
    """
    inputs, targets = _rows(data, teacher)
    settings = _Settings(
        epochs, batch_size, learning_rate, noise, seed, len(inputs), teacher is not None
    )
    settings.check()
    tuned = copy.deepcopy(model).eval()
    run = _Run(tuned, latent_lookups(tuned), settings, objective)
    run.train(inputs, targets, teacher, checkpoint, progress)
    return tuned


class _Run:
    """The parts of a fine-tuning."""

    def __init__(
        self,
        model: nn.Module,
        latents: dict[str, LatentLookup],
        settings: _Settings,
        objective: Objective | None,
        exact: list[nn.Parameter] | None = None,
    ) -> None:
        self.model, self.latents, self.settings = model, latents, settings
        self.objective = objective
        every = [p for p in model.parameters() if p.is_floating_point()]
        self.exact = every if exact is None else exact
        self.trained = nn.ModuleDict({f"lookup{i}": v for i, v in enumerate(latents.values())})
        self.trained["model"] = model
        rate = settings.learning_rate
        groups: list[dict[str, Any]] = []
        for latent in latents.values():
            groups += latent.groups(rate, rate * HASH_RATE)
        for parameter in self.exact:
            size = float(parameter.detach().square().mean().sqrt())
            groups.append({"params": [parameter], "lr": rate * EXACT_RATE * max(size, 1e-3)})
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.steps = settings.epochs * -(-settings.rows // settings.batch_size)

    def train(
        self,
        inputs: Tensor,
        targets: Tensor | None,
        teacher: nn.Module | None,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        """Do all epochs, from where a checkpoint ends."""
        done = 0
        if checkpoint is not None and Path(checkpoint).exists():
            settings = vars(self.settings)
            done = checkpoints.load(checkpoint, self.trained, self.optimizer, settings=settings)
        each = self.steps // self.settings.epochs
        with looked_up_by(self.latents), _trainable(self.exact):
            for epoch in range(done // each, self.settings.epochs):
                loss = self._epoch(epoch, inputs, targets, teacher)
                if checkpoint is not None:
                    checkpoints.save(
                        checkpoint,
                        self.trained,
                        self.optimizer,
                        step=(epoch + 1) * each,
                        settings=vars(self.settings),
                    )
                if progress is not None:
                    progress(epoch + 1, self.settings.epochs, loss)
        for latent in self.latents.values():
            latent.finish()

    def _epoch(
        self, epoch: int, inputs: Tensor, targets: Tensor | None, teacher: nn.Module | None
    ) -> float:
        """Do one pass over the rows; return its mean loss."""
        size, device = self.settings.batch_size, self._device()
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        order = torch.randperm(len(inputs), generator=generator)
        step, total = epoch * -(-len(inputs) // size), 0.0
        for start in range(0, len(inputs), size):
            picked = order[start : start + size]
            x = inputs[picked].to(device)
            if self.settings.noise:
                drawn = torch.randn(x.shape, generator=generator)
                x = x + self.settings.noise * drawn.to(device, x.dtype)
            target = None if targets is None else targets[picked].to(device)
            self._rate(step)
            total += self._step(x, target, teacher, epoch) * len(picked)
            step += 1
        return total / len(inputs)

    def _device(self) -> torch.device:
        return next(chain(self.model.parameters(), self.model.buffers())).device

    def _rate(self, step: int) -> None:
        factor = min(1.0, (step + 1) / _RISE) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _step(
        self, x: Tensor, target: Tensor | None, teacher: nn.Module | None, epoch: int
    ) -> float:
        output = self.model(x)
        loss = self._loss(output, target)
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(x)
            loss = loss + _distance(output, wanted, target)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ConvertError(
                f"the loss is {value} in epoch {epoch}",
                where="finetune",
                fix="check the data for NaN, or lower learning_rate",
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return value

    def _loss(self, output: Any, target: Tensor | None) -> Tensor:
        if self.objective is not None:
            return self.objective(output, target)
        if target is None:
            return output.new_zeros(())
        if not target.is_floating_point():
            return F.cross_entropy(output, target.long())
        return F.mse_loss(output, target)


def _distance(output: Any, wanted: Any, target: Tensor | None) -> Tensor:
    """Return how far outputs are from the teacher's."""
    if target is not None and not target.is_floating_point():
        log_p = torch.log_softmax(wanted, -1)
        return F.kl_div(
            torch.log_softmax(output, -1), log_p, reduction="batchmean", log_target=True
        )
    deviation = (wanted - wanted.mean(0)).square().mean()
    return (output - wanted).square().mean() / deviation.clamp_min(1e-12)


def _rows(data: Any, teacher: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Return inputs and targets as tensors of as many rows; there must be something to learn."""
    if not isinstance(data, Sequence) or len(data) != 2:
        raise InputError(
            f"data is a {type(data).__name__}",
            where="finetune",
            fix="pass a pair (inputs, targets)",
        )
    try:
        inputs, targets = (None if part is None else torch.as_tensor(part) for part in data)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"inputs or targets are no tensor: {error}",
            where="finetune",
            fix="pass tensors or arrays of as many rows",
        ) from error
    if inputs is None or (targets is not None and len(targets) != len(inputs)):
        count = None if inputs is None else len(inputs)
        raise InputError(
            f"{count} inputs, {None if targets is None else len(targets)} targets",
            where="finetune",
            fix="pass as many targets as inputs, or None",
        )
    if targets is None and teacher is None:
        raise InputError(
            "there is nothing to learn from",
            where="finetune",
            fix="pass (inputs, targets), or a teacher",
        )
    return inputs, targets


@contextmanager
def _trainable(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Let gradients reach parameters for a while."""
    before = [(p, p.requires_grad) for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, wanted in before:
            p.requires_grad_(wanted)
            p.grad = None
