"""Data-parallel training of sampled layers, as one of several processes on this machine.

Run as ``python -m tests.nn.sampled_workers RANK WORLD RENDEZVOUS OUTPUT``; writes the parameters
and the losses after some steps.
"""

from __future__ import annotations

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import lutcc

STEPS = 5
RECIPE = {
    "0": lutcc.recipes.Sampled(mode="crs"),
    "2": lutcc.recipes.Sampled(mode="topk_weights", sample_ratio=0.25),
    "4": lutcc.recipes.Sampled(mode="bernoulli", where="backward"),
}


def model() -> torch.nn.Module:
    """Return the same sampled model everywhere."""
    torch.manual_seed(0)
    nn = torch.nn
    net = nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )
    return lutcc.convert(net, RECIPE)


def main(rank: int, world: int, rendezvous: str, output: str) -> None:
    """Train for some steps on this worker's share."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{rendezvous}",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=120),
    )
    parallel = DistributedDataParallel(model())
    optimizer = torch.optim.SGD(parallel.parameters(), 0.1)
    torch.manual_seed(100 + rank)  # each draws its own samples
    losses: list[float] = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = parallel(torch.randn(8, 12)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    torch.save({"state": parallel.module.state_dict(), "losses": losses}, f"{output}.{rank}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
