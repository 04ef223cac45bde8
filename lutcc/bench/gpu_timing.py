"""Times of calls on a GPU, and how they are printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from lutcc.bench.timing import Timing
from lutcc.errors import DependencyError

#: What is flushed between calls: more than any L2, so that each starts from memory.
FLUSH_BYTES = 256 << 20


def require_gpu() -> torch.device:
    """Return the current GPU.

    Raises
    ------
    DependencyError
        If torch sees none, or Triton is missing.
    """
    if not torch.cuda.is_available():
        raise DependencyError(
            f"torch {torch.__version__} sees no GPU",
            where="lutcc.bench.gpu",
            fix="run it on a machine with a GPU, with a CUDA or ROCm build of torch",
        )
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"Triton cannot be imported: {error}",
            where="lutcc.bench.gpu",
            fix="pip install 'lutcc[gpu]'",
        ) from error
    return torch.device("cuda", torch.cuda.current_device())


def measure(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 3
) -> dict[str, Timing]:
    """Time calls on the GPU in turns, by events, each from an empty L2.

    The flush keeps the GPU busy while the CPU launches, so that launching does not show.
    """
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    for call in calls.values():
        for _ in range(warmup):
            call()
    pairs: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            start.record()
            call()
            end.record()
            pairs[name].append((start, end))
    torch.cuda.synchronize()
    return {
        name: Timing.of([round(start.elapsed_time(end) * 1e6) for start, end in events])
        for name, events in pairs.items()
    }


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table.

    Examples
    --------
    >>> print(markdown(["a", "b"], [["1", "2"]]), end="")
    | a | b |
    | --- | --- |
    | 1 | 2 |
    """
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def spread(timing: Timing) -> str:
    """Return the median in microseconds, and the 20th and 80th percentile."""
    low, middle, high = (1e6 * t for t in (timing.p20, timing.median, timing.p80))
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def verdict(baseline: Timing, subject: Timing) -> str:
    """Say how much faster than the baseline, or that it lost.

    Examples
    --------
    >>> fast, slow = Timing.of([100]), Timing.of([250])
    >>> verdict(slow, fast), verdict(fast, slow)
    ('2.50x faster', 'loss: 2.50x slower')
    """
    ratio = baseline.median / subject.median
    return f"{ratio:.2f}x faster" if ratio >= 1 else f"loss: {1 / ratio:.2f}x slower"


def describe() -> str:
    """Return the device and the versions, one line."""
    import triton

    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    runtime = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    return (
        f"{properties.name}, {properties.multi_processor_count} multiprocessors, "
        f"{properties.total_memory / 2**30:.0f} GiB; torch {torch.__version__}, {runtime}, "
        f"triton {triton.__version__}"
    )
