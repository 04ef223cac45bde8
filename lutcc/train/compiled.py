"""A trained model against its compiled form: whether the logits agree, and how fast each is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lutcc.bench.machine import describe, one_line
from lutcc.bench.timing import Timing, burst, interleave
from lutcc.train.masked_lm import MaskedLM
from lutcc.train.masking import Batch

TOLERANCE = 1e-3  # of logits, which are some units large


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near the logits of two forms of a model are.

    Parameters
    ----------
    tokens
        Tokens compared.
    within
        Share of the tokens none of whose logits differs by more than the tolerance.
    median, largest
        Of the tokens' largest differences.
    same_prediction
        Share of the tokens with the same most likely token.
    """

    tokens: int
    within: float
    median: float
    largest: float
    same_prediction: float

    @classmethod
    def of(cls, a: Tensor, b: Tensor, tolerance: float) -> Agreement:
        """Compare logits (N, L, vocabulary).

        Examples
        --------
        >>> a = torch.tensor([[[1.0, 2.0], [3.0, 1.0]]])
        >>> Agreement.of(a, a + torch.tensor([0.0, 1.5]), tolerance=1e-3).same_prediction
        1.0
        """
        worst = (a.double() - b.double()).abs().amax(-1).flatten()
        return cls(
            tokens=worst.numel(),
            within=(worst <= tolerance).double().mean().item(),
            median=worst.median().item(),
            largest=worst.max().item(),
            same_prediction=(a.argmax(-1) == b.argmax(-1)).double().mean().item(),
        )

    def row(self, label: str) -> str:
        """Return the row of a Markdown table."""
        return (
            f"| {label} | {self.within:.3%} | {self.median:.1e} | {self.largest:.1e} "
            f"| {self.same_prediction:.3%} |"
        )


def in_float64(model: MaskedLM) -> MaskedLM:
    """Return a copy that computes in float64: what rounding alone changes is told by it."""
    return copy.deepcopy(model).double().eval()


@contextmanager
def record_codes(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the codes' bits (tokens, h * tau) that every look-up block computes meanwhile."""
    from lutcc.nn import LookupFFN

    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        seen.append(output.flatten(0, -2) > 0)

    handles = [
        module.projection.register_forward_hook(keep)
        for module in model.modules()
        if isinstance(module, LookupFFN)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def equal_codes(a: list[Tensor], b: list[Tensor], code_length: int) -> float:
    """Return the share of equal codes of two records of :func:`record_codes`.

    Examples
    --------
    >>> bits = torch.tensor([[True, False, True, True]])
    >>> equal_codes([bits], [bits ^ torch.tensor([True, False, False, False])], 2)
    0.5
    """
    same = [(x == y).unflatten(-1, (-1, code_length)).all(-1) for x, y in zip(a, b, strict=True)]
    return torch.cat([each.flatten() for each in same]).double().mean().item()


def bfloat16(model: nn.Module) -> nn.Module:
    """Return a copy with all parameters in bfloat16."""
    return copy.deepcopy(model).to(torch.bfloat16).eval()


@dataclass(frozen=True, slots=True)
class Compiled:
    """What :func:`compile_and_compare` found.

    Parameters
    ----------
    label
        The block in words.
    file, file_bytes
        Name and size of the artifact.
    artifact, float64
        The artifact's logits, and torch's in float64, against torch's in float32.
    equal_codes
        Share of codes that are the same in torch's float32 and float64.
    log_perplexity, torch_log_perplexity
        Of the artifact and of torch, on the same held-out tokens.
    times
        Number of sequences -> form -> time of a call on one core.
    length
        Tokens of a sequence.
    machine
        What was measured on.
    """

    label: str
    file: str
    file_bytes: int
    artifact: Agreement
    float64: Agreement
    equal_codes: float
    log_perplexity: float
    torch_log_perplexity: float
    times: dict[int, dict[str, Timing]]
    length: int
    machine: str

    def markdown(self) -> str:
        """Return the findings as Markdown."""
        lines = [
            f"`{self.file}` ({self.file_bytes:,} bytes), {self.artifact.tokens:,} held-out tokens. "
            "A sign near 0 may fall either way when sums are rounded otherwise; then another row "
            "is looked up. Float64 shows what rounding alone does.",
            "",
            f"| compared with torch float32 | logits within {TOLERANCE:g} | median difference "
            "| largest | same prediction |",
            "| --- | ---: | ---: | ---: | ---: |",
            self.artifact.row("the artifact"),
            self.float64.row("torch float64"),
            "",
            f"Codes equal in torch float32 and float64: {self.equal_codes:.4%}. Log perplexity: "
            f"torch {self.torch_log_perplexity:.4f}, artifact {self.log_perplexity:.4f}.",
        ]
        for rows, times in self.times.items():
            tokens = rows * self.length
            count = "1 sequence" if rows == 1 else f"{rows} sequences"
            lines += ["", f"The whole model, {count} ({tokens:,} tokens), one core:", ""]
            lines.append(speed_table(times, tokens, own=f"lutcc, {self.label}"))
        return "\n".join([*lines, "", f"{self.machine}."])


def compile_and_compare(
    model: MaskedLM,
    dense: MaskedLM,
    batches: Sequence[Batch],
    path: str | Path,
    *,
    label: str,
    seconds: float = 3.0,
) -> Compiled:
    """Compile a look-up model into one artifact; compare its logits and speed with torch's.

    Parameters
    ----------
    model, dense
        Trained, on the CPU: the model to compile, and the one with dense blocks.
    batches
        Held-out data.
    path
        Where to save the artifact; it is loaded from there.
    label
        The model's block in words.
    seconds
        To spend on timing each form, for one sequence and for a whole batch.

    Raises
    ------
    LutccError
        If the model cannot be compiled.
    """
    import lutcc

    path = Path(path)
    model.eval()
    dense.eval()
    ids = torch.cat([batch.ids for batch in batches])
    lutcc.compile(model, (ids[:2],)).save(path)
    artifact = lutcc.load(path)
    exact = lutcc.compile(dense, (ids[:2],))
    with torch.inference_mode():
        with record_codes(model) as codes:
            logits = model(ids)
        with record_codes(twin := in_float64(model)) as exact_codes:
            reference = twin(ids)
    found = torch.cat([torch.as_tensor(artifact(batch.ids)) for batch in batches])
    candidates: dict[str, Callable[[Tensor], object]] = {
        "torch float32, dense FFN": dense,
        "torch bfloat16, dense FFN": bfloat16(dense),
        f"torch float32, {label}": model,
        "lutcc, dense FFN": exact,
        f"lutcc, {label}": artifact,
    }
    with _one_thread():
        times = {
            rows: speeds(candidates, ids[:rows], seconds=seconds)
            for rows in (1, len(batches[0].ids))
        }
    return Compiled(
        label=label,
        file=path.name,
        file_bytes=path.stat().st_size,
        artifact=Agreement.of(logits, found, TOLERANCE),
        float64=Agreement.of(logits, reference, TOLERANCE),
        equal_codes=equal_codes(codes, exact_codes, _code_length(model)),
        log_perplexity=log_perplexity(found, batches),
        torch_log_perplexity=log_perplexity(logits, batches),
        times=times,
        length=model.sizes.length,
        machine=one_line(describe()),
    )


def log_perplexity(logits: Tensor, batches: Sequence[Batch]) -> float:
    """Return the mean negative log likelihood of all masked tokens; logits (N, L, vocabulary)."""
    total, tokens, start = 0.0, 0, 0
    for batch in batches:
        mine = logits[start : start + len(batch.ids)].flatten(0, 1)[batch.places]
        total += torch.nn.functional.cross_entropy(mine, batch.labels, reduction="sum").item()
        tokens += len(batch.labels)
        start += len(batch.ids)
    return total / tokens


def _code_length(model: nn.Module) -> int:
    from lutcc.nn import LookupFFN

    return next(m.code_length for m in model.modules() if isinstance(m, LookupFFN))


@contextmanager
def _one_thread() -> Iterator[None]:
    import lutcc

    before = torch.get_num_threads(), lutcc.get_num_threads()
    torch.set_num_threads(1)
    lutcc.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        lutcc.set_num_threads(before[1])


def speeds(
    candidates: Mapping[str, Callable[[Tensor], object]], x: Tensor, *, seconds: float = 2.0
) -> dict[str, Timing]:
    """Time calls of several functions on the same input, in turns, for some seconds each."""

    def runner(call: Callable[[Tensor], object]) -> Callable[[float], list[int]]:
        return lambda duration: burst(lambda: call(x), duration, warmup=1)

    with torch.inference_mode():
        runners = {name: runner(call) for name, call in candidates.items()}
        return interleave(runners, seconds=seconds / 5, rounds=5)


def speed_table(times: Mapping[str, Timing], tokens: int, *, own: str) -> str:
    """Return a Markdown table of medians: tokens per second, and ``own``'s speed over each.

    Parameters
    ----------
    times
        Label -> time of a call.
    tokens
        Of a call.
    own
        The label to compare with the others. Above 1 it is the faster one.

    Examples
    --------
    >>> slow, fast = Timing(2e-3, 2e-3, 2e-3, 2e-3, 5), Timing(1e-3, 1e-3, 1e-3, 1e-3, 5)
    >>> print(speed_table({"torch": slow, "lutcc": fast}, 100, own="lutcc"))
    | form | ms | tokens/s | lutcc is so many times as fast |
    | --- | ---: | ---: | ---: |
    | torch | 2.00 | 50,000 | 2.00x |
    | lutcc | 1.00 | 100,000 | - |
    """
    lines = [
        f"| form | ms | tokens/s | {own} is so many times as fast |",
        "| --- | ---: | ---: | ---: |",
    ]
    for label, timing in times.items():
        median = timing.median
        ratio = "-" if label == own else f"{median / times[own].median:.2f}x"
        lines.append(f"| {label} | {median * 1e3:.2f} | {tokens / median:,.0f} | {ratio} |")
    return "\n".join(lines)
