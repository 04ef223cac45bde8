"""Distil a feed-forward block into a LookupFFN: ridge regression, then Adam on everything."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from lutcc.errors import InputError
from lutcc.nn.calibration import as_float_tensor

if TYPE_CHECKING:
    from lutcc.nn.lookup_ffn import LookupFFN

Function: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
Progress: TypeAlias = Callable[[int, int, float], None]

ROWS_AT_ONCE = 4096
REGRESSION_ITERATIONS = 30
PATIENCE = 3
CHECKS = 20
"""How often Adam's progress is looked at on the held-out rows."""
SHIFT = 0.2
"""Length of the shift of made-up rows, as a share of the distance between two real ones."""
HASH_RATE = 0.2
"""Adam's rate for the projection, as a share of that for the tables: slower hashes end nearer."""


@dataclasses.dataclass(frozen=True, slots=True)
class Distillation:
    """How near a LookupFFN comes to the block that it was distilled from.

    Errors are Frobenius norms of (look-up - exact) over that of exact, on held-out rows.

    Parameters
    ----------
    rows, held_out
        Calibration rows learnt from, and those only looked at.
    mean_error
        Error of the best constant, the mean of the exact outputs: what knowing nothing gives.
    initial_error
        Error with the random hash and the tables of the regression.
    relative_error
        Error in the end, with tables of the type that inference reads.
    steps
        Steps of Adam.
    seconds
        Time taken.
    """

    rows: int
    held_out: int
    mean_error: float
    initial_error: float
    relative_error: float
    steps: int
    seconds: float


def distill(
    layer: LookupFFN,
    function: Function,
    rows: torch.Tensor,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    synthetic: float,
    seed: int,
    progress: Progress | None = None,
) -> Distillation:
    """Fit ``layer`` in place to ``function`` on ``rows`` (N, d_in).

    The hash is scaled so that z has variance 1 on the rows; the tables become the ridge solution
    given that hash (conjugate gradients, stopped by the held-out rows); Adam then trains
    everything on the squared error. The best parameters, judged on the held-out rows, stay.

    A share ``synthetic`` of what Adam sees (and half of what the regression sees, if that is not
    0) are made-up rows ``a + SHIFT (b - c)`` of three real ones, for which the function is asked:
    there are many more table rows than calibration rows.
    """
    started = time.perf_counter()
    targets = _in_blocks(function, rows)
    if not bool(torch.isfinite(targets).all()):
        raise InputError(
            "the block's outputs on the calibration rows are not finite",
            where="LookupFFN.from_ffn",
            fix="pass the inputs that the block receives in the model",
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator).to(rows.device)
    held = max(len(rows) // 10, 1) if len(rows) > 1 else 0
    test = (rows[order[:held]], targets[order[:held]]) if held else (rows, targets)
    x, y = rows[order[held:]], targets[order[held:]]
    norm = float(test[1].norm()) or 1.0

    layer.train()
    mean = y.mean(0)
    with torch.no_grad():
        layer.projection.scale_(1 / max(_in_blocks(layer.projection, x).std().item(), 1e-12))
        if layer.bias is not None:
            layer.bias.copy_(mean)
        more, answers = (x, y) if not synthetic else _with_shifted(function, x, y, generator)
        solve_tables(layer, more, answers, test)
    errors = [_error(layer, *test) / norm]
    best, best_state = errors[0], copy.deepcopy(layer.state_dict())

    optimizer = torch.optim.Adam(_parameter_groups(layer, y, learning_rate))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    scale = float(y.var(0, correction=0).sum()) or 1.0
    made_up = round(batch_size * synthetic)
    for step in range(steps):
        chosen = _drawn(x, batch_size - made_up, generator)
        batch, wanted = x[chosen], y[chosen]
        if made_up:
            shifted = _shifted(x, made_up, generator)
            batch = torch.cat([batch, shifted])
            wanted = torch.cat([wanted, _in_blocks(function, shifted)])
        with torch.enable_grad():
            loss = (layer(batch) - wanted).square().sum(1).mean() / scale
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % max(steps // CHECKS, 1) == 0 or step + 1 == steps:
            error = _error(layer, *test) / norm
            if error < best:
                best, best_state = error, copy.deepcopy(layer.state_dict())
            if progress:
                progress(step + 1, steps, error)
    layer.load_state_dict(best_state)
    layer.eval()
    final = _error(layer, *test) / norm  # with tables and blocks as inference reads them
    return Distillation(
        rows=len(x),
        held_out=held,
        mean_error=float((mean - test[1]).norm()) / norm,
        initial_error=errors[0],
        relative_error=final,
        steps=steps,
        seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def solve_tables(
    layer: LookupFFN,
    x: torch.Tensor,
    y: torch.Tensor,
    test: tuple[torch.Tensor, torch.Tensor],
    ridge: float = 1.0,
) -> None:
    """Set the tables to the ridge solution of ``layer(x) = y`` for the hash as it is.

    With A the sparse matrix of scores (N, h 2^tau), (A^T A + lambda) T = A^T (y - bias) is solved
    by conjugate gradients from T = 0, all columns of y at once. The iterate that is best on
    ``test`` stays: where rows are few, more iterations would only fit their noise. lambda is
    ``ridge`` times the mean squared score, so that a table row seen once moves half the way.
    """
    codes, scores = layer.hash(x)
    held_codes, held_scores = layer.hash(test[0])
    offset = 0 if layer.bias is None else layer.bias
    gather = torch.ops.lutcc.weighted_gather
    damping = ridge * float(scores.square().mean())

    def scatter(values: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
        return torch.ops.lutcc.weighted_gather_backward(values, codes, scores, tables)[1]

    solution = torch.zeros_like(layer.tables)
    best, best_error, worse = solution.clone(), float((test[1] - offset).norm()), 0
    residual = scatter(y - offset, solution)
    direction = residual.clone()
    size = residual.square().sum((0, 1))
    for _ in range(REGRESSION_ITERATIONS):
        image = scatter(gather(codes, scores, direction), direction).add_(direction, alpha=damping)
        curvature = (direction * image).sum((0, 1))
        alpha = torch.where(curvature > 0, size / curvature, torch.zeros_like(size))
        solution.addcmul_(direction, alpha)
        residual.addcmul_(image, -alpha)
        error = float((gather(held_codes, held_scores, solution) + offset - test[1]).norm())
        worse = worse + 1 if error >= best_error else 0
        if error < best_error:
            best_error = error
            best.copy_(solution)
        if worse == PATIENCE:
            break
        previous, size = size, residual.square().sum((0, 1))
        beta = torch.where(previous > 0, size / previous, torch.zeros_like(size))
        direction.mul_(beta).add_(residual)
    layer.tables.copy_(best)


def _parameter_groups(
    layer: LookupFFN, y: torch.Tensor, learning_rate: float
) -> list[dict[str, Any]]:
    """Return Adam's groups, with rates relative to each parameter's size."""
    groups = []
    for parameter in layer.parameters():
        size = y.std() if parameter is layer.bias else _typical_size(parameter.detach())
        rate = learning_rate * (float(size) or 1.0)
        if parameter is not layer.bias and parameter is not layer.tables:
            rate *= HASH_RATE
        groups.append({"params": [parameter], "lr": rate})
    return groups


def _drawn(rows: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randint(len(rows), (count,), generator=generator).to(rows.device)


def _shifted(rows: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Return ``count`` rows, each moved a little along the difference of two others."""
    a, b, c = (rows[_drawn(rows, count, generator)] for _ in range(3))
    return a + SHIFT * (b - c)


def _with_shifted(
    function: Function, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    shifted = _shifted(x, len(x), generator)
    return torch.cat([x, shifted]), torch.cat([y, _in_blocks(function, shifted)])


def _typical_size(values: torch.Tensor) -> torch.Tensor:
    """Return the root mean square of what is not zero: rows that no input has looked up yet are."""
    return (values.square().sum() / (values != 0).sum().clamp(min=1)).sqrt()


def calibration_rows(
    calibration: Any, max_rows: int, seed: int, device: torch.device
) -> torch.Tensor:
    """Return at most ``max_rows`` finite float32 rows (N, d_in) of ``calibration`` (..., d_in).

    Raises
    ------
    InputError
        If there are none, or one is not finite.
    """
    inputs = as_float_tensor(calibration, "LookupFFN.from_ffn")
    if inputs.dim() == 0 or inputs.numel() == 0:
        raise InputError(
            f"the calibration inputs have shape {tuple(inputs.shape)}",
            where="LookupFFN.from_ffn",
            fix="pass (..., d_in), not empty",
        )
    rows = inputs.reshape(-1, inputs.shape[-1])
    if not bool(torch.isfinite(rows).all()):
        raise InputError(
            "the calibration inputs contain NaN or infinity",
            where="LookupFFN.from_ffn",
            fix="pass the inputs that the block receives in the model",
        )
    if len(rows) > max_rows:
        generator = torch.Generator().manual_seed(seed)
        rows = rows[torch.randperm(len(rows), generator=generator)[:max_rows]]
    return rows.to(device)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw torch's random numbers from ``seed`` inside, and leave its state as it was."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def _error(layer: LookupFFN, x: torch.Tensor, y: torch.Tensor) -> float:
    return float((_in_blocks(layer, x) - y).norm())


@torch.no_grad()
def _in_blocks(function: Function, rows: torch.Tensor) -> torch.Tensor:
    """Return ``function`` of all rows, some thousand at a time, in float32."""
    return torch.cat([function(block).float() for block in rows.split(ROWS_AT_ONCE)])
