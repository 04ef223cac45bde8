"""How much memory tables take, and whether there is enough of it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import psutil
import torch

from lutcc.errors import InputError

CGROUP = Path("/sys/fs/cgroup")


@dataclasses.dataclass(frozen=True, slots=True)
class LookupMemory:
    """What a :class:`lutcc.nn.LookupFFN` takes, in bytes.

    Parameters
    ----------
    tables, projection
        What inference holds, in the types that it reads.
    training
        Parameters, gradients and Adam's two moments, in the parameters' type.
    read_per_row
        Table rows read for one row of input.
    """

    tables: int
    projection: int
    training: int
    read_per_row: int


def available_memory(device: torch.device) -> int:
    """Return how many bytes can still be allocated on ``device``.

    On the CPU that is what the system has, or what the process's control group leaves, if less.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):  # no control groups, or "max"
        return available
    return min(available, max(limit - used, 0))


def require_memory(shape: tuple[int, int, int], device: Any, code_length: int) -> None:
    """Raise :class:`InputError` if float32 tables (h, K, d_out) do not fit in memory."""
    where = torch.device(device) if device is not None else torch.get_default_device()
    if where.type not in ("cpu", "cuda"):
        return
    needed, available = 4 * math.prod(shape), available_memory(where)
    if needed <= available:
        return
    tables, rows, columns = shape
    shorter = code_length - math.ceil(math.log2(needed / max(available, 1)))
    fix = f"use fewer tables, or code_length <= {shorter}" if shorter >= 1 else "use fewer tables"
    raise InputError(
        f"{tables} tables of {rows} x {columns} float32 numbers take {_size(needed)}, but "
        f"{where} has {_size(available)} left",
        where="LookupFFN",
        fix=f"{fix} (training takes four times the tables)",
    )


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
