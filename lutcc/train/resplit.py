"""Trees that come to compare other columns while they are trained: coordinate descent in the loss.

With g the gradient of the loss at a layer's outputs and h its curvature, the loss is about
``g.d + h |d|^2 / 2`` for a change d of them. For one codebook, the others held, it is least where
the rows that its tree puts together get the mean of ``R = T - g / h``, T being what they get now:
R is what a tree is to explain (:func:`lutcc.nn.tree_splits.better_tree`). What that finds is only
proposed: it is kept if the loss itself, on other rows, falls, and further than by new table rows
for the tree as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor

from lutcc.nn.latent_lookup import LatentLookup, first_temperature
from lutcc.nn.tree_splits import BinnedRows, Tree, better_tree, bucket_means, certain_share

Loss: TypeAlias = Callable[[Any, Any], Tensor]
"""Takes inputs and targets; returns the mean loss of the network as it is."""
Batch: TypeAlias = tuple[Any, Any, int]
"""Inputs, targets, and how many rows these are."""

#: Rows of the data that are looked at, and of a layer's rows that trees are fitted to.
DATA_ROWS, FITTED_ROWS = 1024, 2048
#: Columns of targets: of more, so many random projections.
TARGETS = 32


class _Seen(NamedTuple):
    """Rows (N, D) that reached a layer, and the gradients (N, M) of their loss at its outputs."""

    rows: Tensor
    gradients: Tensor


class _Aim(NamedTuple):
    """What a codebook's tree is to explain, the other codebooks held.

    Parameters
    ----------
    rows, tree
        (N, D), and the tree as it is.
    now, step
        (N, M): what the codebook adds to each row's outputs, and how that should change.
    """

    rows: Tensor
    tree: Tree
    now: Tensor
    step: Tensor

    @classmethod
    def of(cls, latent: LatentLookup, codebook: int, seen: _Seen, curvature: float) -> Self:
        tree = latent.tree(codebook)
        now = latent.tables.detach()[codebook][tree.leaves(seen.rows)]
        return cls(seen.rows, tree, now, seen.gradients / -curvature)

    def table(self, tree: Tree) -> Tensor:
        """Return table rows (K, M) for a tree, without what is chance in their steps."""
        leaves, entries = tree.leaves(self.rows), len(tree.thresholds)
        steps = bucket_means(self.step, leaves, entries)
        steps *= certain_share(self.step, leaves, entries)
        # what is there is no sample: only buckets without rows take the mean of all
        return bucket_means(self.now, leaves, entries, prior=1e-3) + steps


class Resplit:
    """Choose columns anew, of all trees of a network.

    Parameters
    ----------
    latents
        The look-ups, by name, which the network looks up by (``looked_up_by``).
    optimizer
        Their Adam: what it knows of a tree is forgotten with it.
    loss
        The loss of a batch.
    """

    def __init__(
        self, latents: dict[str, LatentLookup], optimizer: torch.optim.Optimizer, loss: Loss
    ) -> None:
        self.latents = [v for v in latents.values() if v.layer[0].encoder == "tree"]
        self.optimizer, self.loss = optimizer, loss

    def __call__(
        self, fitted: Sequence[Batch], checked: Sequence[Batch], generator: torch.Generator
    ) -> int:
        """Return how many trees came to compare other columns.

        Parameters
        ----------
        fitted, checked
            Batches that trees are fitted to, and others by which they are kept.
        generator
            Of the order of codebooks, of rows and of projections; on the CPU.
        """
        kept, least = 0, self._mean_loss(checked)
        for latent in self.latents:
            seen = self._seen(latent, fitted, generator)
            curvature = self._curvature(latent, fitted[0]) if len(seen.rows) > 1 else None
            if curvature is None:
                continue
            binned = BinnedRows.of(seen.rows)
            for codebook in torch.randperm(len(latent.tables), generator=generator).tolist():
                aim = _Aim.of(latent, codebook, seen, curvature)
                new = better_tree(binned, _projected(aim.now + aim.step, generator), aim.tree)
                if torch.equal(new.columns, aim.tree.columns):
                    continue
                loss = self._tried(latent, codebook, new, aim, checked, least)
                if loss is not None:
                    kept, least = kept + 1, loss
                    self._forget(latent, codebook)
                    seen = self._seen(latent, fitted, generator)
                    binned = BinnedRows.of(seen.rows)
        return kept

    def _tried(
        self,
        latent: LatentLookup,
        codebook: int,
        new: Tree,
        aim: _Aim,
        checked: Sequence[Batch],
        least: float,
    ) -> float | None:
        """Put a tree in its place if the loss then falls most; return the loss, or None."""
        warmth = latent.log_temperature.detach()[codebook].clone()
        before = (aim.tree, latent.tables.detach()[codebook].clone(), warmth)
        again = (aim.tree, aim.table(aim.tree), warmth)
        first = first_temperature(aim.rows[:, new.columns][None])[0]
        found = (new, aim.table(new), first)
        latent.replace_tree(codebook, *found)
        loss = self._mean_loss(checked)
        if loss < least:
            latent.replace_tree(codebook, *again)
            if loss < self._mean_loss(checked):
                latent.replace_tree(codebook, *found)
                return loss
        latent.replace_tree(codebook, *before)
        return None

    def _forget(self, latent: LatentLookup, codebook: int) -> None:
        """Let Adam begin anew with a codebook."""
        for parameter in (latent.tables, latent.compared, latent.log_temperature):
            state = self.optimizer.state.get(parameter, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in state:
                    state[name][codebook] = 0

    def _mean_loss(self, batches: Sequence[Batch]) -> float:
        with torch.no_grad():
            losses = [self.loss(inputs, targets) * rows for inputs, targets, rows in batches]
        return float(torch.stack(losses).sum()) / sum(rows for *_, rows in batches)

    def _seen(
        self, latent: LatentLookup, batches: Sequence[Batch], generator: torch.Generator
    ) -> _Seen:
        """Return what reaches a layer in all batches, and how its outputs should change."""
        parts, most = list[_Seen](), -(-FITTED_ROWS // len(batches))
        for batch in batches:
            part = self._gradients(latent, batch)
            if len(part.rows) > most:
                picked = torch.randperm(len(part.rows), generator=generator)[:most]
                picked = picked.to(part.rows.device)
                part = _Seen(part.rows[picked], part.gradients[picked])
            parts.append(part)
        return _Seen(torch.cat([p.rows for p in parts]), torch.cat([p.gradients for p in parts]))

    def _gradients(self, latent: LatentLookup, batch: Batch, step: float = 0.0) -> _Seen:
        """Return a layer's rows and gradients; those behind a ``step`` down the gradient, if any.

        The gradients are of each row's own loss: of the mean loss, times the rows of the batch.
        """
        moves = self._gradients(latent, batch).gradients * -step if step else None
        layer, calls, done = latent.layer[0], list[tuple[Tensor, Tensor]](), 0
        rectified = layer.activation == "relu"

        def look_up(rows: Tensor) -> Tensor:
            nonlocal done
            outputs = latent.look_up(rows).detach()
            if moves is not None:
                outputs = outputs + moves[done : done + len(rows)]
                outputs = torch.relu(outputs) if rectified else outputs
                done += len(rows)
            calls.append((rows.detach(), outputs.requires_grad_()))
            return outputs

        inputs, targets, count = batch
        before = vars(layer)["look_up"]
        vars(layer)["look_up"] = look_up
        try:
            with torch.enable_grad():
                loss = self.loss(inputs, targets) * count
        finally:
            vars(layer)["look_up"] = before
        if not calls:  # the network does not run the layer
            return _Seen(latent.tables.new_zeros(0, layer.in_features), latent.shift.new_zeros(0))
        rows, outputs = torch.cat([x for x, _ in calls]), [y for _, y in calls]
        gradients = torch.cat(torch.autograd.grad(loss, outputs, materialize_grads=True))
        if rectified:
            gradients = torch.where(torch.cat(outputs).detach() > 0, gradients, 0)
        return _Seen(rows, gradients)

    def _curvature(self, latent: LatentLookup, batch: Batch) -> float | None:
        """Return the loss's curvature along its gradient, over a step as large as table entries.

        None if there is no gradient; where the loss is not convex, the step itself is taken for
        Newton's.
        """
        here = self._gradients(latent, batch).gradients
        size = float(here.square().mean().sqrt())
        tables = latent.tables.detach()
        deviation = float((tables - tables.mean(1, keepdim=True)).square().mean().sqrt())
        if not size > 0 or not deviation > 0 or not math.isfinite(size):
            return None
        step = deviation / size
        there = self._gradients(latent, batch, step).gradients
        fallen = float(((here - there) * here).sum() / here.square().sum())
        return (fallen if fallen > 0 else 1.0) / step


def _projected(targets: Tensor, generator: torch.Generator) -> Tensor:
    """Return (N, T <= TARGETS) targets whose squared distances are about those of (N, M)."""
    centered, columns = targets - targets.mean(0), targets.shape[1]
    if columns <= TARGETS:
        return centered
    directions = torch.randn(columns, TARGETS, generator=generator) / math.sqrt(TARGETS)
    return centered @ directions.to(centered)
