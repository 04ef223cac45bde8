"""One worker of the tests of data-parallel training; writes what it saw as JSON.

Run by tests.train.test_communication: python -m tests.train.distributed_worker RANK WORLD FOLDER
SCENARIOS.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lutcc.errors import CommunicationError, InputError
from lutcc.nn import SampledConv2d, SampledLinear
from lutcc.ops import set_sampled_backend
from lutcc.train.communication import SampledCommunication, register_sampled_hook

TIMEOUT = 60
PATIENCE = 2  # seconds, of the group in which a worker falls silent
STEPS = 50


class Columns(nn.Linear):
    """Multiplies only the input features whose weights are largest, as ``topk_weights`` does."""

    k = 8
    flip = False  # sample wrongly, as a worker with another processor might

    def sampled_inputs(self) -> Tensor | None:
        if not self.training or self.k >= self.in_features:
            return None
        scores = self.weight.detach().norm(dim=0)
        return scores.topk(self.k, largest=not self.flip).indices.sort().values

    def forward(self, input: Tensor) -> Tensor:
        columns = self.sampled_inputs()
        if columns is None:
            return super().forward(input)
        return nn.functional.linear(input[..., columns], self.weight[:, columns], self.bias)


class Channels(nn.Conv2d):
    """The same for a convolution's input channels."""

    def sampled_inputs(self) -> Tensor:
        scores = self.weight.detach().transpose(0, 1).flatten(1).norm(dim=1)
        return scores.topk(3).indices.sort().values

    def forward(self, input: Tensor) -> Tensor:
        columns = self.sampled_inputs()
        return nn.functional.conv2d(input[:, columns], self.weight[:, columns], self.bias)


class Network(nn.Module):
    """A convolution, a layer used twice, a layer that some steps leave out, and a dense one."""

    def __init__(self, dtype: torch.dtype = torch.float32, skip: bool = False) -> None:
        super().__init__()
        self.conv = Channels(6, 8, 2)
        self.conv.weight.data = self.conv.weight.data.to(memory_format=torch.channels_last)
        self.first = Columns(8 * 9, 24)
        self.twice = Columns(24, 24)
        self.extra = Columns(24, 24)
        self.head = nn.Linear(24, 5)
        self.skip = skip
        self.calls = 0
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x)).flatten(1)
        x = torch.relu(self.twice(torch.relu(self.first(x))))
        x = torch.relu(self.twice(x))
        self.calls += 1
        if not (self.skip and self.calls % 2):
            x = x + self.extra(x)
        return self.head(x)


class Layers(nn.Module):
    """Layers as users have them, one of them run under autocast."""

    def __init__(self) -> None:
        super().__init__()
        options = {"mode": "topk_weights", "sample_ratio": 0.34}
        self.conv = SampledConv2d(6, 8, 2, **options)
        self.first = SampledLinear(8 * 9, 24, group_size=8, **options)
        self.second = SampledLinear(24, 24, **options)
        self.head = SampledLinear(24, 5, mode="topk", sample_ratio=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(torch.relu(self.conv(x)).flatten(1)))
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.relu(self.second(x))
        return self.head(x.float())


def batches(group: Any, dtype: torch.dtype = torch.float32) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return what draws this worker's next images and labels."""
    generator = torch.Generator().manual_seed(100 + dist.get_rank(group))

    def draw() -> tuple[Tensor, Tensor]:
        x = torch.randn(8, 6, 4, 4, generator=generator).to(dtype)
        return x, torch.randint(5, (8,), generator=generator)

    return draw


def build(group: Any, hook: bool = True, **options: Any) -> tuple[Any, SampledCommunication | None]:
    network = {key: options.pop(key) for key in ("dtype", "skip") if key in options}
    kind = options.pop("kind", Network)
    torch.manual_seed(7)
    # Small buckets, so that there are several.
    model = DistributedDataParallel(
        kind(**network), process_group=group, bucket_cap_mb=0.004, **options
    )
    return model, register_sampled_hook(model) if hook else None


def train(
    model: Any, group: Any, steps: int, dtype: torch.dtype = torch.float32, accumulate: int = 1
) -> None:
    draw = batches(group, dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        for part in range(accumulate):
            x, y = draw()
            if part + 1 < accumulate:
                with model.no_sync():
                    nn.functional.cross_entropy(model(x).float(), y).backward()
            else:
                nn.functional.cross_entropy(model(x).float(), y).backward()
        optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def same_everywhere(values: Tensor, group: Any) -> bool:
    """Return whether all workers hold these numbers to the bit."""
    found = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(found, values, group=group)
    return all(torch.equal(values.view(torch.int8), each.view(torch.int8)) for each in found)


def compare(group: Any, steps: int, **options: Any) -> dict[str, Any]:
    """Train with and without the hook."""
    accumulate = options.pop("accumulate", 1)
    dtype = options.get("dtype", torch.float32)
    results, communication, handed = [], None, []
    for hook in (False, True):
        model, communication = build(group, hook, **dict(options))
        original = dist.all_reduce

        def counted(
            tensor: Tensor, *args: Any, original: Any = original, **kwargs: Any
        ) -> dist.Work | None:
            handed.append(tensor.numel() * tensor.element_size())
            return original(tensor, *args, **kwargs)

        dist.all_reduce = counted
        train(model, group, steps, dtype, accumulate)
        dist.all_reduce = original
        results.append(flat(model))
    assert communication is not None
    dense, sampled = (r.float() for r in results)
    return {
        "same": same_everywhere(results[1], group),
        "difference": float((dense - sampled).abs().max()),
        "largest": float(dense.abs().max()),
        "finite": bool(sampled.isfinite().all()),
        "steps": communication.steps,
        "bytes": communication.total.bytes,
        "dense_bytes": communication.total.dense_bytes,
        "last_bytes": communication.last.bytes,
        "handed": sum(handed),
    }


def message(function: Callable[[], Any]) -> str:
    try:
        function()
    except (CommunicationError, InputError) as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def faults(group: Any) -> dict[str, Any]:
    """Return what each fault is told as; training goes on after each."""
    found: dict[str, Any] = {}
    rank = dist.get_rank(group)

    def step(model: Any, draw: Any = None) -> None:
        x, y = (draw or batches(group))()
        nn.functional.cross_entropy(model(x), y).backward()

    def faulty(name: str, spoil: Callable[[Any], Any], mend: Callable[[Any], Any]) -> None:
        model, communication = build(group)
        step(model)
        spoil(model.module)
        found[name] = message(lambda: step(model))
        found[f"{name}_gradient"] = bool(flat_gradient(model).isnan().any())
        mend(model.module)
        model.zero_grad()
        step(model)
        found[f"{name}_mended"] = bool(flat_gradient(model).isfinite().all())
        assert communication is not None

    def flip(module: Any, value: bool) -> None:
        module.twice.flip = value and rank == 1

    def fewer(module: Any, k: int) -> None:
        module.first.k = k if rank == 0 else 8

    def all_other(module: Any, k: int) -> None:
        module.first.k = k + rank if k != 8 else 8

    faulty("selection", lambda m: flip(m, True), lambda m: flip(m, False))
    faulty("ratio", lambda m: fewer(m, 5), lambda m: fewer(m, 8))
    faulty("ratios", lambda m: all_other(m, 3), lambda m: all_other(m, 8))
    faulty("eval", lambda m: m.first.train(rank != 1), lambda m: m.train())

    def use_elsewhere(module: Any) -> None:
        module.head.register_forward_pre_hook(lambda _, x: (x[0] + module.extra.weight.sum(),))

    faulty("elsewhere", use_elsewhere, lambda m: m.head._forward_pre_hooks.clear())

    # All workers change at once: no fault.
    model, communication = build(group)
    step(model)
    for change in (lambda: setattr(model.module.first, "k", 4), model.eval):
        change()
        model.zero_grad()
        step(model)
    assert communication is not None
    found["changed_together"] = communication.last.dense_bytes
    found["not_wrapped"] = message(lambda: register_sampled_hook(nn.Linear(2, 2)))  # type: ignore[arg-type]
    found["registered_twice"] = message(lambda: register_sampled_hook(model))
    return found


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None])


def shared_weight(group: Any) -> dict[str, Any]:
    """A weight that a dense layer holds too is sent whole, one of two sampled layers in part."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = Columns(16, 16), Columns(16, 16), Columns(16, 16), None
            self.b.k, self.dense = 5, nn.Linear(16, 16)
            self.b.weight, self.dense.weight = self.a.weight, self.c.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.dense(self.c(self.b(self.a(x))))

    values = []
    for hook in (False, True):
        torch.manual_seed(3)
        model = DistributedDataParallel(Tied(), process_group=group)
        communication = register_sampled_hook(model) if hook else None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        generator = torch.Generator().manual_seed(dist.get_rank(group))
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 16, generator=generator)).square().mean().backward()
            optimizer.step()
        values.append(flat(model))
    assert communication is not None
    return {
        "difference": float((values[0] - values[1]).abs().max()),
        "bytes": communication.last.bytes,
        "same": same_everywhere(values[1], group),
    }


def uneven(group: Any) -> dict[str, Any]:
    """Workers with different numbers of batches, as DDP's ``join`` lets them."""
    model, _ = build(group)
    with model.join():
        train(model, group, 3 + dist.get_rank(group))
    return {"same": same_everywhere(flat(model), group)}


def killed(group: Any) -> dict[str, Any]:
    """Let the last worker die within a step; the others see an error, and when."""
    model, _ = build(group)
    train(model, group, 3)
    started = time.monotonic()
    if dist.get_rank(group) == dist.get_world_size(group) - 1:
        model.module.first.weight.register_hook(
            lambda gradient: os.kill(os.getpid(), signal.SIGKILL)
        )
    text = message(lambda: train(model, group, 5))
    return {"error": text, "seconds": time.monotonic() - started}


def silent(group: Any) -> dict[str, Any]:
    """Let a worker do nothing for longer than the group's timeout."""
    rank = dist.get_rank()
    if rank > 1:
        return {}
    model, _ = build(group)
    train(model, group, 2)
    if rank == 1:
        model.module.first.weight.register_hook(lambda gradient: time.sleep(4 * PATIENCE))
    started = time.monotonic()
    text = message(lambda: train(model, group, 2))
    return {"error": text, "seconds": time.monotonic() - started}


def pairs(seconds: float) -> Any:
    """Return this worker's group of two."""
    rank, patience = dist.get_rank(), timedelta(seconds=seconds)
    starts = range(0, dist.get_world_size(), 2)
    made = [dist.new_group([start, start + 1], timeout=patience) for start in starts]
    return made[rank // 2]


def main(rank: int, world: int, folder: Path, scenarios: list[str]) -> None:
    torch.set_num_threads(1)
    set_sampled_backend("index_select")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=world,
        timeout=timedelta(seconds=TIMEOUT),
    )  # fmt: skip
    everyone, two, impatient = dist.group.WORLD, pairs(TIMEOUT), pairs(PATIENCE)
    bf16 = {"dtype": torch.bfloat16}
    known: dict[str, Callable[[], dict[str, Any]]] = {
        "four": lambda: compare(everyone, STEPS),
        "two": lambda: compare(two, STEPS),
        "accumulated": lambda: compare(two, 5, accumulate=3),
        "views": lambda: compare(two, 5, gradient_as_bucket_view=True),
        "unused": lambda: compare(two, 6, skip=True, find_unused_parameters=True),
        "static": lambda: compare(two, 5, static_graph=True),
        "layers": lambda: compare(two, 5, kind=Layers),
        "bfloat16": lambda: compare(two, 3, **bf16),
        "uneven": lambda: uneven(two),
        "shared": lambda: shared_weight(two),
        "faults": lambda: faults(everyone),
        "silent": lambda: silent(impatient),
        "killed": lambda: killed(everyone),
    }
    found = {}
    for scenario in scenarios:
        started = time.monotonic()
        found[scenario] = known[scenario]() | {"took": time.monotonic() - started}
        (folder / f"{rank}.json").write_text(json.dumps(found))
    os._exit(0)  # the connections of a group that lost a worker need not be closed


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4].split(","))
