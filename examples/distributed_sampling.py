"""Train on several workers that send the gradients of the sampled columns only.

Starts 2 or 4 processes on this machine, which exchange gradients over its loopback interface
(gloo), and trains a perceptron on scikit-learn's handwritten digits three times: dense layers;
layers that take half of their inputs by the weights' norms (top-k-weights), with plain
data-parallel training; and the same with the hook that packs gradients. Prints what each worker
sent, by the hook's count and by the kernel's (Linux), the time, the accuracy, and whether all
workers ended with the same parameters, to the bit.

Run: python examples/distributed_sampling.py                    (two workers)
     python examples/distributed_sampling.py --workers 4 --ratio 0.25
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

METHODS = ("dense", "sampled, sent whole", "sampled, packed")
#: Seconds without an answer after which a worker gives up.
PATIENCE = 120


def kernel_bytes() -> int | None:
    """Return the bytes that this process sent over its open TCP connections; None if not told."""
    total = 0
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        return None
    for descriptor in list(folder.iterdir()):
        try:
            if not os.readlink(descriptor).startswith("socket:"):
                continue
            with closing(socket.socket(fileno=os.dup(int(descriptor.name)))) as copy:
                if copy.family in (socket.AF_INET, socket.AF_INET6):
                    info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 208)
                    if len(info) < 208:  # an older kernel
                        return None
                    total += struct.unpack_from("Q", info, 200)[0]
        except (OSError, AttributeError):  # closed meanwhile, or no TCP
            continue
    return total


def work(rank: int, args: argparse.Namespace) -> None:
    """Train by each method as one of the workers, and write what was seen."""
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.nn.parallel import DistributedDataParallel

    import lutcc
    from lutcc.data import digits
    from lutcc.recipes import Sampled
    from lutcc.train.classifier import ClassifierRecipe, Run, Workers, train_classifier
    from lutcc.train.communication import register_sampled_hook
    from lutcc.train.runlog import RunLog

    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=f"file://{args.folder / 'store'}", rank=rank,
        world_size=args.workers, timeout=timedelta(seconds=PATIENCE),
    )  # fmt: skip
    data, size = digits.load(), args.hidden
    sampled = Sampled(mode="topk_weights", sample_ratio=args.ratio)
    lutcc.ops.set_sampled_backend("index_select")  # building kernels takes longer than training
    found = []
    for method in METHODS:
        models: list[nn.Module] = []

        def build(method: str = method) -> nn.Module:
            layers = [nn.Linear(64, size), nn.ReLU(), nn.Linear(size, size), nn.ReLU()]
            model = nn.Sequential(*layers, nn.Linear(size, data.classes))
            # The 64 pixels stay whole: they are the input, not features that stand for each other.
            return model if method == "dense" else lutcc.convert(model, {"[24]": sampled})

        def wrap(
            module: nn.Module, method: str = method, models: list[nn.Module] = models
        ) -> tuple[nn.Module, Workers]:
            model = DistributedDataParallel(module)
            hook = register_sampled_hook(model) if method == METHODS[2] else None
            models.append(module)
            return model, Workers(rank, args.workers, hook)

        recipe = ClassifierRecipe(epochs=args.epochs)
        run = Run(task="digits, distributed", method=method, seed=args.seed)
        log = RunLog(args.folder / "runs.jsonl")
        before, started = kernel_bytes(), time.perf_counter()
        last = train_classifier(build, data, recipe, run, log=log, workers=wrap)
        after = kernel_bytes()
        values = torch.cat([p.detach().flatten() for p in models[0].parameters()])
        others = [torch.empty_like(values) for _ in range(args.workers)]
        dist.all_gather(others, values)
        equal = all(torch.equal(values.view(torch.int32), o.view(torch.int32)) for o in others)
        wire = None if before is None or after is None else after - before
        found.append(
            {
                "method": method, "accuracy": last.accuracy, "loss": last.loss, "equal": equal,
                "steps": last.step, "seconds": round(time.perf_counter() - started, 2),
                "bytes": last.bytes or 4 * len(values) * last.step,
                "dense_bytes": last.dense_bytes or 4 * len(values) * last.step,
                "kernel_bytes": wire, "macs": last.macs, "exact_macs": last.exact_macs,
            }
        )  # fmt: skip
    (args.folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.barrier()  # who leaves early takes the connection from under the others
    dist.destroy_process_group()


def launch(args: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """Start the workers, wait for them, and return what each wrote."""
    words = [sys.executable, str(Path(__file__).resolve()), "--folder", str(args.folder)]
    for name in ("workers", "ratio", "hidden", "epochs", "seed"):
        words += [f"--{name}", str(getattr(args, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    workers = [
        subprocess.Popen([*words, "--rank", str(rank)], env=environment)
        for rank in range(args.workers)
    ]
    try:
        failed = [rank for rank, worker in enumerate(workers) if worker.wait()]
    finally:
        for worker in workers:
            worker.kill()
    if failed:
        sys.exit(f"worker {failed[0]} failed; its message is above")
    texts = [(args.folder / f"{rank}.json").read_text() for rank in range(args.workers)]
    return [json.loads(text) for text in texts]


def table(results: list[list[dict[str, Any]]], workers: int) -> str:
    """Return the methods as a Markdown table."""
    first = results[0]
    lines = [
        f"{workers} workers, bytes per worker and step, {first[0]['steps']} steps:",
        "",
        "| layers | gradients | of dense | by TCP's counters | accuracy | parameters equal |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for index, row in enumerate(first):
        steps = row["steps"]
        seen = [worker[index]["kernel_bytes"] for worker in results]
        known = [count for count in seen if count is not None]
        wire = f"{sum(known) / len(known) / steps:,.0f}" if known else "not told"
        equal = "to the bit" if all(worker[index]["equal"] for worker in results) else "NO"
        cells = [row["method"], f"{row['bytes'] / steps:,.0f}"]
        cells += [f"{row['bytes'] / first[0]['dense_bytes']:.1%}", wire]
        cells += [f"{row['accuracy']:.4f}", equal]
        lines.append("| " + " | ".join(cells) + " |")
    ring = 2 * (workers - 1) / workers
    times = ", ".join(f"{row['seconds']:.1f} s {row['method']}" for row in first)
    lines += ["", f"TCP counts {ring:g} times as many (to reduce, then to gather), and headers."]
    lines += [f"Time, all workers on this machine's cores: {times}."]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> list[list[dict[str, Any]]]:
    """Run the example; return what each worker saw of each method."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, choices=(2, 4), default=2)
    parser.add_argument("--ratio", type=float, default=0.5, help="of the inputs (0.5)")
    parser.add_argument("--hidden", type=int, default=256, help="units of a layer (256)")
    parser.add_argument("--epochs", type=int, default=20, help="(20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--docs", type=Path, metavar="PAGE", help="write the table into it")
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)  # of a worker
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rank is not None:
        work(args.rank, args)
        return []
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        results = launch(args)
    text = table(results, args.workers)
    print(text)
    if args.docs is not None:
        from lutcc.bench.readme import replace_block

        old = args.docs.read_text(encoding="utf-8")
        args.docs.write_text(replace_block(old, f"workers{args.workers}", text), encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
