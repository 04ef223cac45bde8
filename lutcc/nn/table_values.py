"""What LookupFFN's tables start as, and how they are rounded to 8 bits."""

from __future__ import annotations

import functools

import torch

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc

OUTPUT_STD = 0.2
"""Standard deviation of a fresh layer's output for inputs of variance 1.

That of ``Linear(d, 4 d)``, GELU, ``Linear(4 d, d)`` as torch initialises them.
"""


def initial_std(num_tables: int, code_length: int, variant: str, neighbors: int) -> float:
    """Return the standard deviation of table entries that gives outputs one of ``OUTPUT_STD``.

    Examples
    --------
    >>> round(initial_std(128, 8, "gelu", 1), 3)
    0.014
    """
    return OUTPUT_STD / (num_tables * score_second_moment(code_length, variant, neighbors)) ** 0.5


@functools.cache
def score_second_moment(code_length: int, variant: str, neighbors: int) -> float:
    """Return the mean of the sum of a table's squared scores when z is standard normal.

    Estimated on 16384 rows drawn with a fixed seed, so that every layer starts alike.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        z = torch.randn(16384, code_length, generator=generator, device="cpu")
        scores = torch.ops.lutcc.sign_hash(z, code_length, variant, neighbors)[1]
        return float(scores.double().square().sum(-1).mean())


def quantize_tables(tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int8 tables (h, K, d_out) and the float32 scale (d_out,) of each column.

    Symmetric, -127..127: ``tables`` is about ``int8 * scale``, at most half a scale away.
    """
    largest = tables.abs().amax(dim=(0, 1))
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (tables / scale).round_().clamp_(-127, 127).to(torch.int8), scale
