"""Fine-tuning of whole networks of look-ups: hash functions, tables and the layers between."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lutcc.errors import ConvertError, InputError, suggest
from lutcc.nn.latent_lookup import LatentLookup, has_lookups, latent_lookups, looked_up_by
from lutcc.nn.lookup_ffn import LookupFFN
from lutcc.train import checkpoint as checkpoints
from lutcc.train.finetune_data import (
    Listed,
    Rows,
    call,
    first_tensor,
    nothing_to_learn,
    on_tensors,
    rows_or_batches,
)
from lutcc.train.resplit import DATA_ROWS, Batch, Resplit
from lutcc.train.trained_parameters import (
    EXACT_RATE,
    HASH_RATE,
    exact_parameters,
    gathered_shares,
    gradients_reach,
    training,
)

Objective: TypeAlias = Callable[[Any, Any], Tensor]
"""Takes the model's output and the targets; returns what is to be small."""
Output: TypeAlias = Callable[[Any, Any], Tensor | Sequence[Tensor]]
"""Takes what the model returned, and its inputs; returns what is compared."""
Progress: TypeAlias = Callable[[int, int, float], None]
"""Takes the epoch that is done, how many there are, and its mean loss."""

GRADIENTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Steps in which the rates rise.
_RISE = 20
#: Share of the epochs after which columns stay: what was chosen last is trained, too.
RESPLIT_UNTIL = 0.6


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


@dataclass(frozen=True)
class _WholeSettings(_Settings):
    """What the training of a whole network depends on."""

    frozen: tuple[str, ...]
    gradients: str
    resplit: int | None = None

    def check(self) -> None:
        super().check()
        if self.gradients not in GRADIENTS:
            raise InputError(
                f"gradients={self.gradients!r}",
                where="finetune",
                fix=suggest(str(self.gradients), GRADIENTS),
            )
        if self.resplit is not None and not self.resplit >= 1:
            raise InputError(
                f"resplit={self.resplit}",
                where="finetune",
                fix="pass the epochs between two choices of columns, or None: never",
            )


def finetune(
    model: nn.Module,
    data: Any,
    *,
    epochs: int = 50,
    teacher: nn.Module | None = None,
    objective: Objective | None = None,
    output: Output | None = None,
    batch_size: int = 128,
    learning_rate: float = 0.02,
    noise: float = 0.0,
    frozen: Sequence[str] = (),
    gradients: str = "float32",
    resplit: int | None = None,
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
        device to train on. Layers of :class:`lutcc.nn.LookupFFN`, with or without others, are
        trained in floats.
    data
        Rows in memory, ``(inputs, targets)`` or inputs alone: a tensor or array, a dictionary of
        them (the model's keywords), or in the pair a tuple (its arguments), all of as many rows.
        Or batches made elsewhere: a list (shuffled each epoch) or anything that has a length and
        can be run through each epoch, as a DataLoader; each batch is inputs, or (inputs, targets).
        Class numbers (whole) are learnt by cross entropy, floats by their squared error; targets
        may be None with a teacher.
    epochs
        Passes over the rows.
    teacher
        The exact network, usually, in eval mode. Its outputs are learnt too: by the divergence of a
        softmax where targets are class numbers, else by the squared error, relative to their
        deviation.
    objective
        ``objective(outputs, targets)`` in place of the losses above (the teacher's is added).
    output
        ``output(result, inputs)``: what is compared of what the model, and the teacher, returned;
        by default the first tensor. Of several tensors, hidden states, say, the first is what
        targets and objectives are about; a teacher's distance is the mean of all.
    batch_size
        Rows of a step, if the data are rows.
    learning_rate
        Of tables, relative to the deviation of their entries; those of thresholds and of exact
        layers follow from it. Rises in 20 steps, and falls to 0 as a cosine.
    noise
        Standard deviation of what is added to inputs in training, where they are floats.
    frozen
        Patterns (``fnmatch``) of the names of exact parameters that stay as they are.
    gradients
        What products of look-ups' gradients are computed in: "float32", or "bfloat16", several
        times as fast where processors multiply it. The forward values do not depend on it.
    resplit
        Epochs after which trees may come to compare other columns, any of the layer's input, where
        that lowers the loss (:class:`lutcc.train.resplit.Resplit`); then again and again, until
        60% of the epochs are done. None: the columns stay those of the conversion.
    seed
        Of the order of rows and of the noise.
    checkpoint
        A file that is written after each epoch and, if it is there, gone on from.
    progress
        Called as ``progress(epoch, epochs, loss)`` after each epoch.

    Raises
    ------
    InputError
        If there are no look-ups, no rows, nothing to learn from, a pattern that fits no parameter,
        or a checkpoint of other settings.
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

    Of an encoder of sentences, embeddings are compared, whatever stands at the padding:

    >>> def embedding(result, inputs):
    ...     mask = inputs["attention_mask"][..., None]
    ...     return (result.last_hidden_state * mask).sum(1) / mask.sum(1)
    >>> small = lutcc.finetune(
    ...     small, batches, teacher=encoder, output=embedding, frozen=["embeddings.*"]
    ... )  # doctest: +SKIP
    """
    source = rows_or_batches(data, max(batch_size, 1))
    if teacher is None and objective is None and isinstance(source, Rows):
        source.need_targets()
    settings = _WholeSettings(
        epochs,
        batch_size,
        learning_rate,
        noise,
        seed,
        source.count,
        teacher is not None,
        tuple(frozen),
        gradients,
        resplit,
    )
    settings.check()
    tuned = copy.deepcopy(model).eval()
    gathered = [m for m in tuned.modules() if isinstance(m, LookupFFN)]
    latents = {} if gathered and not has_lookups(tuned) else latent_lookups(tuned)
    for latent in latents.values():
        latent.gradient_dtype = GRADIENTS[gradients]
    if resplit is not None and not any(v.layer[0].encoder == "tree" for v in latents.values()):
        raise InputError(
            "no look-up has a tree whose columns could be chosen again",
            where="finetune(resplit=...)",
            fix='leave resplit out, or convert with encoder="tree"',
        )
    trained, still = exact_parameters(tuned, settings.frozen)
    run = _Run(tuned, latents, settings, objective, trained, output)
    with gradients_reach(still, False), training(gathered):
        run.train(source, teacher, checkpoint, progress)
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
        output: Output | None = None,
    ) -> None:
        self.model, self.latents, self.settings = model, latents, settings
        self.objective, self.output = objective, output
        every = [p for p in model.parameters() if p.is_floating_point()]
        self.exact = every if exact is None else exact
        self.trained = nn.ModuleDict({f"lookup{i}": v for i, v in enumerate(latents.values())})
        self.trained["model"] = model
        rate = settings.learning_rate
        groups: list[dict[str, Any]] = []
        for latent in latents.values():
            groups += latent.groups(rate, rate * HASH_RATE)
        shares = gathered_shares(model)
        for parameter in self.exact:
            size = float(parameter.detach().square().mean().sqrt())
            share = shares.get(id(parameter), EXACT_RATE)
            groups.append({"params": [parameter], "lr": rate * share * max(size, 1e-3)})
        self.optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), fused=True)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.steps = 0

    def train(
        self,
        source: Rows | Listed,
        teacher: nn.Module | None,
        checkpoint: str | Path | None,
        progress: Progress | None,
    ) -> None:
        """Do all epochs, from where a checkpoint ends."""
        done = 0
        if checkpoint is not None and Path(checkpoint).exists():
            settings = vars(self.settings)
            done = checkpoints.load(checkpoint, self.trained, self.optimizer, settings=settings)
        each = source.steps
        self.steps = self.settings.epochs * each
        with looked_up_by(self.latents), gradients_reach(self.exact, True):
            for epoch in range(done // each, self.settings.epochs):
                if self._resplits(epoch):
                    self._resplit(epoch, source, teacher)
                loss = self._epoch(epoch, source, teacher)
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

    def _resplits(self, epoch: int) -> bool:
        """Tell whether columns are chosen again before an epoch."""
        every = getattr(self.settings, "resplit", None)
        return bool(every and epoch and not epoch % every) and (
            epoch <= RESPLIT_UNTIL * self.settings.epochs
        )

    def _resplit(self, epoch: int, source: Rows | Listed, teacher: nn.Module | None) -> None:
        """Let trees compare other columns, by the first rows of an epoch's order."""
        # orders and noise of no training epoch
        generator = torch.Generator().manual_seed(~(self.settings.seed * 1_000_003 + epoch))
        drawn, seen = list[Batch](), 0
        for batch in self._batches(source, generator):
            drawn.append(batch)
            seen += batch[2]
            if seen >= 2 * DATA_ROWS:
                break
        half = -(-len(drawn) // 2)

        def loss(inputs: Any, target: Any) -> Tensor:
            return self._total_loss(inputs, target, teacher)

        resplit = Resplit(self.latents, self.optimizer, loss)
        resplit(drawn[:half], drawn[half:] or drawn, generator)

    def _epoch(self, epoch: int, source: Rows | Listed, teacher: nn.Module | None) -> float:
        """Do one pass over the data; return its mean loss."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + epoch)
        step, total, seen = epoch * source.steps, 0.0, 0
        for inputs, target, rows in self._batches(source, generator):
            self._rate(step)
            total += self._step(inputs, target, teacher, epoch) * rows
            step, seen = step + 1, seen + rows
        return total / seen

    def _batches(self, source: Rows | Listed, generator: torch.Generator) -> Iterator[Batch]:
        """Yield inputs with noise, targets and rows of each step, on the model's device."""
        device, noise = self._device(), self.settings.noise

        def prepare(part: Tensor) -> Tensor:
            part = part.to(device)
            if not noise or not part.is_floating_point():
                return part
            return part + noise * torch.randn(part.shape, generator=generator).to(part)

        for inputs, targets, rows in source.epoch(generator):
            yield on_tensors(inputs, prepare), None if targets is None else targets.to(device), rows

    def _device(self) -> torch.device:
        return next(chain(self.model.parameters(), self.model.buffers())).device

    def _rate(self, step: int) -> None:
        factor = min(1.0, (step + 1) / _RISE) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def _step(
        self, inputs: Any, target: Tensor | None, teacher: nn.Module | None, epoch: int
    ) -> float:
        loss = self._total_loss(inputs, target, teacher)
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

    def _total_loss(self, inputs: Any, target: Tensor | None, teacher: nn.Module | None) -> Tensor:
        """Return the loss of a batch, and the distance from the teacher's outputs."""
        if target is None and teacher is None and self.objective is None:
            raise nothing_to_learn()
        found = self._compared(self.model, inputs)
        loss = self._loss(found[0], target)
        if teacher is not None:
            with torch.no_grad():
                wanted = self._compared(teacher, inputs)
            terms = [_distance(found[0], wanted[0], target)]
            terms += [_distance(a, b, None) for a, b in zip(found[1:], wanted[1:], strict=True)]
            loss = loss + torch.stack(terms).mean()
        return loss

    def _compared(self, model: nn.Module, inputs: Any) -> list[Tensor]:
        """Return what is compared of a model's result."""
        result = call(model, inputs)
        if self.output is None:
            return [first_tensor(result)]
        chosen = self.output(result, inputs)
        return [chosen] if isinstance(chosen, Tensor) else list(chosen)

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
