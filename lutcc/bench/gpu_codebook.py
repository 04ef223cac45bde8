"""Linear layers written with codebooks on a GPU, against dense ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lutcc.bench.gpu_timing import markdown, measure, spread, verdict
from lutcc.bench.timing import Timing
from lutcc.ir.codebooks import packed_columns

SIZE = 4096
#: Bits of an index, and what is computed in.
WAYS = ((4, "float32"), (3, "float32"), (2, "float32"), (4, "int8"))
#: Rows of x: one token, some, the most that are fused, and many.
ROWS = (1, 16, 256, 4096)


@dataclass(frozen=True, slots=True)
class CodebookRow:
    """A layer of ``size`` features and outputs: "dense", and one by bits and arithmetic."""

    rows: int
    size: int
    times: Mapping[str, Timing]


def codebook_calls(
    rows: int, size: int, device: torch.device | str, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Return what is timed: layers forward, and with the gradients of x and of tables.

    Each row of a matrix has a codebook of its own; dense is cuBLAS in ``dtype``.

    Examples
    --------
    >>> list(codebook_calls(2, 32, "cpu", torch.float32))[:3]
    ['dense forward', 'dense both', '4 bits, float32 forward']
    """
    import lutcc.ops

    x, weight, grad = (torch.randn(n, size, device=device, dtype=dtype) for n in (rows, size, rows))
    x.requires_grad_()
    weight.requires_grad_()

    def passes(
        name: str, function: Callable[[], torch.Tensor], leaves: Sequence[torch.Tensor]
    ) -> dict[str, Callable[[], object]]:
        def forward() -> object:
            with torch.no_grad():
                return function()

        def both() -> object:
            return torch.autograd.grad(function(), leaves, grad)

        return {f"{name} forward": forward, f"{name} both": both}

    calls = passes("dense", lambda: torch.nn.functional.linear(x, weight), (x, weight))
    for bits, compute in WAYS:
        shape = size, packed_columns(size, bits)
        indices = torch.randint(0, 256, shape, device=device, dtype=torch.uint8)
        books = torch.randn(size, 1 << bits, device=device, requires_grad=True)
        ones = torch.ones(1, device=device)

        def layer(
            indices: torch.Tensor = indices,
            books: torch.Tensor = books,
            ones: torch.Tensor = ones,
            bits: int = bits,
            compute: str = compute,
        ) -> torch.Tensor:
            return lutcc.ops.codebook_matmul(x, indices, books, ones, None, None, bits, 0, compute)

        timed = passes(f"{bits} bits, {compute}", layer, (x, books))
        if compute == "int8":  # gradients are those of float32
            timed = {name: call for name, call in timed.items() if name.endswith("forward")}
        calls |= timed
    return calls


def codebook_table(rows: Sequence[CodebookRow]) -> str:
    """Return the table of the layers beside dense ones."""
    lines = [
        [
            str(row.rows),
            f"{row.size}^2",
            name.rpartition(" ")[0],
            "forward" if name.endswith("forward") else "forward + backward",
            spread(row.times[f"dense {name.rpartition(' ')[2]}"]),
            spread(time),
            verdict(row.times[f"dense {name.rpartition(' ')[2]}"], time),
        ]
        for row in rows
        for name, time in row.times.items()
        if not name.startswith("dense")
    ]
    return markdown(["rows", "weights", "layer", "pass", "dense us", "us", "against dense"], lines)


def run(rounds: int, out: Callable[[str], Any]) -> None:
    """Measure on the current GPU and write the table."""
    rows = [
        CodebookRow(
            n, SIZE, measure(codebook_calls(n, SIZE, "cuda", torch.bfloat16), rounds=rounds)
        )
        for n in ROWS
    ]
    out(f"Layers written with codebooks against cuBLAS, bfloat16:\n\n{codebook_table(rows)}\n")
