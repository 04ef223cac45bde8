"""Layers of look-ups by trees on a GPU, trained by kernels and by torch's operators; and dense."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lutcc.bench.gpu_timing import markdown, measure, spread, verdict
from lutcc.bench.timing import Timing

#: Features, outputs, codebooks, entries of each.
LAYERS = ((512, 512, 64, 16), (384, 1536, 48, 16), (512, 512, 64, 128))
ROWS = 32768


@dataclass(frozen=True, slots=True)
class TreeRow:
    """One layer: times by name, and the most bytes that each takes beside its inputs."""

    features: int
    outputs: int
    codebooks: int
    entries: int
    times: Mapping[str, Timing]
    memory: Mapping[str, int]


def tree_calls(
    layer: tuple[int, int, int, int], rows: int, device: torch.device | str, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Return what is timed: a layer as it serves, and steps of training it; dense in ``dtype``.

    Tables and thresholds are random: codes are spread over all entries.

    Examples
    --------
    >>> list(tree_calls((8, 4, 2, 4), 3, "cpu", torch.float32))[:3]
    ['dense forward', 'dense both', 'look-up forward']
    """
    from lutcc.nn import MaddnessLinear, latent_kernels
    from lutcc.nn.latent_lookup import LatentLookup

    features, outputs, codebooks, entries = layer
    made = MaddnessLinear(features, outputs, codebooks, nprototypes=entries)
    made.splitdims.copy_(torch.randint(0, features, made.splitdims.shape))
    made.splitvals.copy_(torch.randn(made.splitvals.shape))
    made.lut.copy_(torch.randint(0, 256, made.lut.shape))
    made.scale.copy_(torch.rand(outputs) / 100)
    made = made.to(device)
    latent = LatentLookup(made).to(device)
    x = torch.randn(rows, features, device=device, requires_grad=True)
    grad = torch.randn(rows, outputs, device=device)
    weight = torch.randn(outputs, features, device=device, dtype=dtype, requires_grad=True)
    narrow, narrow_grad = x.detach().to(dtype).requires_grad_(), grad.to(dtype)
    trained = (latent.compared, latent.log_temperature, latent.tables, latent.shift)

    def dense() -> torch.Tensor:
        return torch.nn.functional.linear(narrow, weight)

    def without(function: Callable[[], torch.Tensor]) -> Callable[[], object]:
        def run() -> object:
            with torch.no_grad():
                return function()

        return run

    def kernels(rows: torch.Tensor) -> torch.Tensor:
        return latent_kernels.look_up(latent, rows)

    def step(way: Callable[[torch.Tensor], torch.Tensor], kind: torch.dtype) -> object:
        latent.gradient_dtype = kind
        return torch.autograd.grad(way(x), (x, *trained), grad)

    return {
        "dense forward": without(dense),
        "dense both": lambda: torch.autograd.grad(dense(), (narrow, weight), narrow_grad),
        "look-up forward": without(lambda: made.look_up(x)),
        "kernels both": lambda: step(kernels, torch.float32),
        "kernels, gradients in bfloat16 both": lambda: step(kernels, torch.bfloat16),
        "torch's operators both": lambda: step(latent.by_torch, torch.float32),
    }


def peak_memory(calls: Mapping[str, Callable[[], object]]) -> dict[str, int]:
    """Return the most bytes that each call takes on the current GPU beside what is there."""
    found = {}
    for name, call in calls.items():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        found[name] = torch.cuda.max_memory_allocated() - before
    return found


def tree_table(rows: Sequence[TreeRow]) -> str:
    """Return the table of the layers beside dense ones."""
    lines = [
        [
            f"{row.features} to {row.outputs}",
            f"C={row.codebooks}, K={row.entries}",
            name.rpartition(" ")[0],
            "forward" if name.endswith("forward") else "forward + backward",
            spread(time),
            verdict(row.times[f"dense {name.rpartition(' ')[2]}"], time),
            f"{row.memory[name] / 2**20:.0f}",
        ]
        for row in rows
        for name, time in row.times.items()
    ]
    header = ["layer", "tables", "way", "pass", "us", "against dense", "MiB"]
    return markdown(header, lines)


def run(rounds: int, out: Callable[[str], Any]) -> None:
    """Measure on the current GPU and write the table."""
    rows = []
    for layer in LAYERS:
        calls = tree_calls(layer, ROWS, "cuda", torch.bfloat16)
        times = measure(calls, rounds=rounds)
        rows.append(TreeRow(*layer, times, peak_memory(calls)))
    out(f"Look-ups by trees, {ROWS} rows, dense in bfloat16:\n\n{tree_table(rows)}\n")
