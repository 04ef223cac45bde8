"""What workers exchange of a bucket of gradients: the columns that were sampled, and a check.

A bucket is the flat tensor in which DistributedDataParallel gathers gradients. Packed, it holds of
each sampled weight's gradient the sampled columns only, all other gradients whole, and at the end
a few numbers that tell after summing whether all workers sampled the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Numbers of the check: "wants another plan", "gradients elsewhere", the bits of a checksum.
_FLAGS, _BITS = 2, 32
#: Up to here sums of ones are exact.
_EXACT = {torch.bfloat16: 2**8, torch.float16: 2**11, torch.float32: 2**24, torch.float64: 2**53}
_PRIMES = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)


@dataclass(frozen=True)
class Part:
    """A gradient's place in a bucket.

    Parameters
    ----------
    view
        The gradient, in the parameter's shape, in the bucket's memory.
    columns
        (k,) int64, distinct: the positions of dimension 1 that are sent. None: all.
    """

    view: Tensor
    columns: Tensor | None

    @property
    def count(self) -> int:
        """How many numbers are sent."""
        if self.columns is None:
            return self.view.numel()
        return self.view.numel() // self.view.shape[1] * len(self.columns)


def check_length(dtype: torch.dtype, world: int) -> int:
    """Return how many numbers the check of a packed bucket has.

    Examples
    --------
    >>> check_length(torch.float32, 1000), check_length(torch.bfloat16, 300)
    (34, 68)
    """
    return (_FLAGS + _BITS) * -(-world // _EXACT[dtype])


def gradient_view(buffer: Tensor, offset: int, parameter: Tensor) -> Tensor:
    """Return a parameter's gradient in a bucket's memory, where its first element is at ``offset``.

    A bucket has each gradient in its parameter's memory order, so that channels-last weights have
    channels-last gradients; a parameter with gaps has its gradient without.
    """
    like = torch.empty_like(parameter, device="meta")  # keeps strides that have no gaps
    return buffer.as_strided(parameter.shape, like.stride(), buffer.storage_offset() + offset)


def checksum(columns: Sequence[Tensor]) -> Tensor:
    """Return a 0-dim int64 that differs, but for one case in 2**32, where any position differs.

    Examples
    --------
    >>> a, b = torch.tensor([1, 2]), torch.tensor([2, 1])
    >>> bool(checksum([a]) == checksum([a])), bool(checksum([a]) == checksum([b]))
    (True, False)
    """
    one, two, three = (prime - (1 << 64) if prime >> 63 else prime for prime in _PRIMES)
    found = torch.zeros((), dtype=torch.int64, device=columns[0].device if columns else None)
    for index, chosen in enumerate(columns):
        place = torch.arange(1, len(chosen) + 1, device=chosen.device) * two
        word = (chosen + 1) * one ^ place + index * three
        word = (word ^ word >> 29) * three
        found = (found ^ (word ^ word >> 32).sum()) * one + len(chosen)
    return found ^ found >> 32


def pack(parts: Sequence[Part], length: int, world: int) -> tuple[Tensor, Tensor]:
    """Return what is sent of a bucket, divided by the number of workers; the bucket is left zero.

    Parameters
    ----------
    parts
        All gradients of the bucket, in its order; at least one.
    length
        Numbers to leave at the end, for :func:`write_check`.
    world
        The number of workers.

    Returns
    -------
    tuple[Tensor, Tensor]
        (sum of the parts' counts + length,) in the bucket's dtype; 0-dim bool, whether there are
        gradients outside of the columns.
    """
    first = parts[0].view
    flat = first.new_zeros(sum(part.count for part in parts) + length)
    elsewhere = torch.zeros((), dtype=torch.bool, device=first.device)
    start = 0
    for part in parts:
        to = flat[start : start + part.count]
        start += part.count
        if part.columns is None:
            to.copy_(_in_memory_order(part.view))
            continue
        to.copy_(part.view.index_select(1, part.columns).reshape(-1))
        part.view.index_fill_(1, part.columns, 0)
        elsewhere |= part.view.any()
    flat[:start].div_(world)
    return flat, elsewhere


def write_check(
    check: Tensor,
    rank: int,
    columns: Sequence[Tensor],
    *,
    elsewhere: Tensor | bool = False,
    other_plan: bool = False,
) -> None:
    """Write one worker's check.

    Parameters
    ----------
    check
        (check_length,) zeros, the end of what is sent.
    rank
        Which worker this is.
    columns
        What must be the same on all workers, each int64.
    elsewhere
        Whether there are gradients outside of the columns.
    other_plan
        Whether this worker would send other numbers of columns.
    """
    # Sums of ones are exact up to a limit: beyond, so many workers have numbers of their own.
    block = _FLAGS + _BITS
    mine = check[rank // _EXACT[check.dtype] * block :][:block]
    mine[0] = float(other_plan)
    mine[1] = elsewhere
    places = torch.arange(_BITS, device=check.device)
    mine[_FLAGS:] = (checksum(columns).to(check.device) >> places & 1).to(check.dtype)


def unpack(flat: Tensor, parts: Sequence[Part]) -> None:
    """Write the summed numbers into the bucket that :func:`pack` left zero."""
    start = 0
    for part in parts:
        came = flat[start : start + part.count]
        start += part.count
        if part.columns is None:
            _in_memory_order(part.view).copy_(came)
        else:
            shape = [len(part.columns) if d == 1 else n for d, n in enumerate(part.view.shape)]
            part.view.index_copy_(1, part.columns, came.view(shape))
            if came.is_cuda:  # this runs on a stream of its own
                part.columns.record_stream(torch.cuda.current_stream())


def _in_memory_order(view: Tensor) -> Tensor:
    """Return a gradient as the run of memory that it is."""
    return view.as_strided((view.numel(),), (1,))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the check of a summed bucket tells; all workers see the same.

    Parameters
    ----------
    other_plans
        How many workers would send other numbers of columns.
    elsewhere
        How many workers have gradients outside of the columns they sent.
    same
        Whether all workers sampled the same columns.
    """

    other_plans: int
    elsewhere: int
    same: bool


def judge(check: Tensor, world: int) -> Verdict:
    """Read the summed check of a bucket, on the CPU.

    Examples
    --------
    >>> checks = torch.zeros(3, check_length(torch.float32, 3))
    >>> for rank, column in enumerate((5, 5, 7)):
    ...     write_check(checks[rank], rank, [torch.tensor([column])])
    >>> judge(checks[:2].sum(0), 2)
    Verdict(other_plans=0, elsewhere=0, same=True)
    >>> judge(checks.sum(0), 3).same
    False
    """
    exact = _EXACT[check.dtype]
    blocks = check.double().view(-1, _FLAGS + _BITS)
    sizes = torch.tensor([[min(exact, world - start)] for start in range(0, world, exact)])
    bits = blocks[:, _FLAGS:]
    ones, zeros = (bits == sizes).all(0), (bits == 0).all(0)  # a bit is set everywhere, or nowhere
    flags = torch.nan_to_num(blocks[:, :_FLAGS].sum(0), nan=world)
    return Verdict(int(flags[0]), int(flags[1]), bool((ones | zeros).all()))
