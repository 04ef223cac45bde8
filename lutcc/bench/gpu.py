"""The GPU kernels against what a user would run instead; prints markdown tables.

``python -m lutcc.bench.gpu`` measures, in turns and in the same run, the Hadamard transform against
a device-to-device copy of the same bytes; LookupFFN, forward and backward, against a dense feed-
forward block (cuBLAS, bfloat16); sampled products against dense ones and against selecting first;
training steps with sampled layers; layers written with codebooks against dense ones; and layers of
look-ups by trees as they serve and as they are trained. Times are printed as they are: a loss is
called a loss.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lutcc.bench import gpu_codebook, gpu_sampled, gpu_trees
from lutcc.bench.gpu_timing import describe, markdown, measure, require_gpu, spread, verdict
from lutcc.bench.timing import Timing
from lutcc.errors import LutccError, UsageError

PARTS = ("lookup", "sampled", "codebook", "trees")

#: Share of a copy's speed that the transform should reach.
WANTED_SHARE = 0.8

TRANSFORMS = (512, 768, 1024, 2048, 4096)

#: (d, h, tau): the tables that the paper puts in the place of a block d -> 4 d -> d.
LAYERS = ((512, 128, 8), (512, 64, 8), (768, 170, 9), (1024, 256, 8))


@dataclass(frozen=True, slots=True)
class TransformRow:
    """One Hadamard transform: rows of ``columns``, and a copy that moves as many bytes."""

    columns: int
    dtype: str
    moved: int  # bytes read and written
    copy: Timing
    transform: Timing

    @property
    def share(self) -> float:
        """The transform's speed in terms of the copy's."""
        return self.copy.median / self.transform.median


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One LookupFFN and the dense block in whose place it is."""

    d: int
    tables: int
    code_length: int
    times: Mapping[str, Timing]


def bench_transform(columns: int, dtype: torch.dtype, batch: int, rounds: int) -> TransformRow:
    """Measure one transform, and a copy that reads and writes as many bytes."""
    import lutcc.ops

    x = torch.randn(batch, columns, device="cuda", dtype=dtype)
    y = lutcc.ops.hadamard(x, columns**-0.5)
    moved = x.nbytes + y.nbytes
    source = torch.empty(moved // 2, dtype=torch.int8, device="cuda")
    target = torch.empty_like(source)
    times = measure(
        {
            "copy": lambda: target.copy_(source),
            "transform": lambda: lutcc.ops.hadamard(x, columns**-0.5),
        },
        rounds=rounds,
    )
    name = str(dtype).removeprefix("torch.")
    return TransformRow(columns, name, moved, times["copy"], times["transform"])


def bench_layer(d: int, tables: int, code_length: int, batch: int, rounds: int) -> LayerRow:
    """Measure a LookupFFN and a dense block, both in bfloat16, forward and with backward."""
    import lutcc.ops
    from lutcc.nn import LookupFFN

    with torch.device("cuda"):
        dense = torch.nn.Sequential(
            torch.nn.Linear(d, 4 * d), torch.nn.GELU(), torch.nn.Linear(4 * d, d)
        )
    layers: dict[str, torch.nn.Module] = {
        "dense": dense.to(torch.bfloat16),
        "lookup": LookupFFN(d, d, tables, code_length, device="cuda").to(torch.bfloat16),
    }
    x = torch.randn(batch, d, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    grad = torch.randn(batch, d, device="cuda", dtype=torch.bfloat16)

    def forward(layer: torch.nn.Module) -> None:
        with torch.no_grad():
            layer(x)

    def both(layer: torch.nn.Module) -> None:
        torch.autograd.grad(layer(x), (x, *layer.parameters()), grad)

    def atomic(layer: torch.nn.Module) -> None:
        lutcc.ops.set_deterministic_gradients(False)
        try:
            both(layer)
        finally:
            lutcc.ops.set_deterministic_gradients(True)

    calls: dict[str, Callable[[], object]] = {}
    for name, layer in layers.items():
        calls[f"{name} forward"] = lambda layer=layer: forward(layer)
        calls[f"{name} both"] = lambda layer=layer: both(layer)
    calls["atomic both"] = lambda: atomic(layers["lookup"])
    return LayerRow(d, tables, code_length, measure(calls, rounds=rounds))


def transform_table(rows: Sequence[TransformRow]) -> str:
    """Return the table of the transforms."""
    lines = []
    for row in rows:
        rate = row.moved / row.transform.median * 1e-9
        missed = "" if row.share >= WANTED_SHARE else f" (loss: below {WANTED_SHARE})"
        lines.append(
            [
                str(row.columns),
                row.dtype,
                spread(row.copy),
                spread(row.transform),
                f"{rate:.0f}",
                f"{row.share:.2f}{missed}",
            ]
        )
    return markdown(
        ["columns", "dtype", "copy us", "hadamard us", "GB/s", "of the copy's speed"], lines
    )


def layer_table(rows: Sequence[LayerRow]) -> str:
    """Return the table of the layers."""
    lines = []
    for row in rows:
        for what in ("forward", "both", "atomic"):
            kind = "both" if what == "atomic" else what
            dense = row.times[f"dense {kind}"]
            lookup = row.times["atomic both" if what == "atomic" else f"lookup {kind}"]
            label = {
                "forward": "forward",
                "both": "forward + backward",
                "atomic": "forward + backward, atomic table gradient",
            }[what]
            lines.append(
                [
                    str(row.d),
                    f"h={row.tables}, tau={row.code_length}",
                    label,
                    spread(dense),
                    spread(lookup),
                    verdict(dense, lookup),
                ]
            )
    return markdown(["d", "tables", "pass", "dense us", "LookupFFN us", "LookupFFN is"], lines)


def run(
    batch: int,
    rounds: int,
    parts: Sequence[str] = PARTS,
    out: Callable[[str], Any] | None = None,
) -> None:
    """Measure and write the tables, to standard output unless ``out`` takes them.

    Raises
    ------
    DependencyError
        Without a GPU.
    """
    require_gpu()
    write = out or sys.stdout.write
    torch.manual_seed(0)
    write(f"{describe()}\n\n")
    write(f"Median of {rounds} calls (20th-80th percentile), L2 empty before each.\n\n")
    if "lookup" in parts:
        dtypes = (torch.bfloat16, torch.float32)
        transforms = [bench_transform(n, t, batch, rounds) for t in dtypes for n in TRANSFORMS]
        text = transform_table(transforms)
        write(f"Hadamard transform of {batch} rows against a copy of the same bytes:\n\n{text}\n")
        layers = [bench_layer(*layer, batch, rounds) for layer in LAYERS]
        text = layer_table(layers)
        write(f"LookupFFN (BH4) of {batch} rows against a dense block, bfloat16:\n\n{text}\n")
    if "sampled" in parts:
        gpu_sampled.run(rounds, write)
    if "codebook" in parts:
        gpu_codebook.run(rounds, write)
    if "trees" in parts:
        gpu_trees.run(rounds, write)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 0, or 1 and a message where it cannot."""
    parser = argparse.ArgumentParser(prog="python -m lutcc.bench.gpu", description=__doc__)
    parser.add_argument("--batch", type=int, default=32768, help="rows (default 32768)")
    parser.add_argument("--rounds", type=int, default=50, help="calls of each (default 50)")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure this part only")
    options = parser.parse_args(arguments)
    try:
        if options.batch < 1 or options.rounds < 1:
            raise UsageError(
                f"--batch {options.batch} and --rounds {options.rounds} must be at least 1",
                fix="leave them out for the defaults",
            )
        run(options.batch, options.rounds, options.part or PARTS)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except LutccError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
