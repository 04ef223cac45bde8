"""Sampled products and training steps on a GPU, against dense ones and against selecting first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lutcc.bench.gpu_timing import markdown, measure, spread, verdict
from lutcc.bench.timing import Timing

SIZE = 4096
#: Features that are taken together, beside single ones.
GROUP = 16
#: How much faster than dense a product should be, by the part of the pairs that it takes.
GOALS = {0.5: 1.6, 0.25: 2.5}
#: Modes whose selection is timed.
SELECTIONS = (("topk", 1), ("topk", GROUP), ("topk_weights", 1), ("crs", 1), ("bernoulli", 1))

#: What computes a product: its backend and the size of groups.
WAYS = {
    "index_select": ("index_select", 1),
    "columns": ("fused", 1),
    "groups": ("fused", GROUP),
}
_NAMES = {
    "index_select": "index_select + cuBLAS",
    "columns": "fused, single columns",
    "groups": f"fused, groups of {GROUP}",
    "layer": "layer: selection and all, the faster way",
    "layer groups": f"layer: the same in groups of {GROUP}",
}

Calls = Mapping[str, Callable[[], object]]


@dataclass(frozen=True, slots=True)
class ProductRow:
    """A product of square matrices, by all ways, forward and with both gradients."""

    size: int
    ratio: float
    times: Mapping[str, Timing]


@dataclass(frozen=True, slots=True)
class SelectionRow:
    """Scores of pairs, and the selection by them."""

    mode: str
    group_size: int
    scores: Timing
    selection: Timing


@dataclass(frozen=True, slots=True)
class StepRow:
    """A training step: "dense" and others."""

    name: str
    times: Mapping[str, Timing]


class Operands:
    """A square product as a layer has it: rows, a weight, and the gradient of the result.

    Parameters
    ----------
    size
        Rows, features and outputs.
    device, dtype
        Of all three.
    """

    def __init__(self, size: int, device: torch.device | str, dtype: torch.dtype) -> None:
        x, weight, self.grad = (torch.randn(size, size, device=device, dtype=dtype) for _ in "xwg")
        self.x, self.weight = x.requires_grad_(), weight.requires_grad_()

    def dense(self) -> Tensor:
        """Return the whole product."""
        return nn.functional.linear(self.x, self.weight)

    def sampled(self, ratio: float, group_size: int) -> Callable[[], Tensor]:
        """Return what computes the product of top-k pairs, which are selected here."""
        import lutcc.ops

        with torch.no_grad():
            scores = lutcc.ops.column_row_scores(self.x, self.weight.t(), group_size)
            sample = lutcc.ops.column_row_sample(scores, max(1, int(ratio * len(scores))))
        op = torch.ops.lutcc.sampled_matmul
        return lambda: op(self.x, self.weight.t(), None, *sample, group_size)

    def layer(self, ratio: float, group_size: int) -> Callable[[], Tensor]:
        """Return what scores, selects and multiplies."""
        import lutcc.ops
        from lutcc.sampling_options import SamplingOptions

        options = SamplingOptions(sample_ratio=ratio, group_size=group_size)
        return lambda: lutcc.ops.sampled_linear(self.x, self.weight, None, options)

    def passes(self, name: str, function: Callable[[], Tensor]) -> Calls:
        """Return "<name> forward", and "<name> both" with the gradients."""

        def forward() -> object:
            with torch.no_grad():
                return function()

        def both() -> object:
            return torch.autograd.grad(function(), (self.x, self.weight), self.grad)

        return {f"{name} forward": forward, f"{name} both": both}


def _by(backend: str, call: Callable[[], object]) -> Callable[[], object]:
    """Return the call with this backend."""
    import lutcc.ops

    def run() -> object:
        before = lutcc.ops.get_sampled_backend()
        lutcc.ops.set_sampled_backend(backend)
        try:
            return call()
        finally:
            lutcc.ops.set_sampled_backend(before)

    return run


def product_calls(
    operands: Operands, ratio: float, ways: Mapping[str, tuple[str, int]] = WAYS
) -> dict[str, Callable[[], object]]:
    """Return what is timed of a product: "<way> forward" and "<way> both", by "dense" and others.

    Without scores and selection.

    Examples
    --------
    >>> operands = Operands(8, "cpu", torch.float32)
    >>> sorted(product_calls(operands, 0.5, {"index_select": ("index_select", 1)}))
    ['dense both', 'dense forward', 'index_select both', 'index_select forward']
    """
    calls = dict(operands.passes("dense", operands.dense))
    for name, (backend, group_size) in ways.items():
        passes = operands.passes(name, operands.sampled(ratio, group_size))
        calls.update({key: _by(backend, call) for key, call in passes.items()})
    return calls


def layer_calls(operands: Operands, ratio: float) -> dict[str, Callable[[], object]]:
    """Return the same of layers: with scores and selection, by the way that "auto" keeps.

    They are timed apart: to set a backend is to forget what "auto" has chosen.
    """
    return {
        **operands.passes("layer", operands.layer(ratio, 1)),
        **operands.passes("layer groups", operands.layer(ratio, GROUP)),
    }


def selection_calls(
    size: int, mode: str, group_size: int, device: torch.device | str, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """Return what is timed of a selection of half the pairs: "scores" and "selection"."""
    import lutcc.ops

    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    weights_only = mode == "topk_weights"
    scores = lutcc.ops.column_row_scores(a, b.t(), group_size, weights_only)
    seed = torch.zeros((), dtype=torch.int64, device=device)
    k = max(1, len(scores) // 2)
    return {
        "scores": lambda: lutcc.ops.column_row_scores(a, b.t(), group_size, weights_only),
        "selection": lambda: lutcc.ops.column_row_sample(scores, k, mode, seed=seed),
    }


def step_calls(
    model: nn.Module, inputs: Tensor, ratio: float, *, groups: bool
) -> dict[str, Callable[[], object]]:
    """Return training steps of a model, dense and sampled, from the same parameters."""
    from lutcc.bench.gpu_models import TrainingStep, sampled_copy

    calls: dict[str, Callable[[], object]] = {
        "sampled": TrainingStep(sampled_copy(model, ratio), inputs)
    }
    if groups:
        calls["sampled in groups"] = TrainingStep(sampled_copy(model, ratio, GROUP), inputs)
    return {"dense": TrainingStep(model, inputs), **calls}


def bench_steps(rounds: int) -> list[StepRow]:
    """Measure steps of a Wide ResNet 28-10 and of a transformer, bfloat16, half sampled."""
    from lutcc.bench.gpu_models import Transformer, WideResNet

    place: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    rows: list[StepRow] = []
    with torch.device("cuda"):
        network: nn.Module = WideResNet()
    network = network.to(torch.bfloat16).to(memory_format=torch.channels_last)  # pyright: ignore
    images = torch.randn(128, 3, 32, 32, **place).to(memory_format=torch.channels_last)
    calls = step_calls(network, images, 0.5, groups=False)
    rows.append(StepRow("Wide ResNet 28-10, 128 images", measure(calls, rounds=rounds)))
    del network, images, calls
    with torch.device("cuda"):
        encoder: nn.Module = Transformer()
    tokens = torch.randn(16, 512, 1024, **place)
    calls = step_calls(encoder.to(torch.bfloat16), tokens, 0.5, groups=True)
    name = "transformer of 12 layers, 1024 features, 8192 tokens"
    rows.append(StepRow(name, measure(calls, rounds=rounds)))
    return rows


def product_table(rows: Sequence[ProductRow]) -> str:
    """Return the table of the products, by all ways beside the dense one."""
    lines = []
    for row in rows:
        for kind, label in (("forward", "forward"), ("both", "forward + backward")):
            dense = row.times[f"dense {kind}"]
            goal = GOALS.get(row.ratio)
            for name in (n.removesuffix(f" {kind}") for n in row.times if n.endswith(kind)):
                if name == "dense":
                    continue
                time = row.times[f"{name} {kind}"]
                reached = "" if goal is None else _reached(dense.median / time.median, goal)
                lines.append(
                    [
                        f"{row.size}^3",
                        f"{row.ratio:.0%}",
                        label,
                        _NAMES[name],
                        spread(dense),
                        spread(time),
                        verdict(dense, time),
                        reached,
                    ]
                )
    header = ["product", "pairs", "pass", "way", "dense us", "us", "against dense", "goal"]
    return markdown(header, lines)


def _reached(factor: float, goal: float) -> str:
    return f"{goal}x: {'reached' if factor >= goal else 'missed'}"


def selection_table(rows: Sequence[SelectionRow]) -> str:
    """Return the table of scores and selections."""
    lines = [
        [row.mode, str(row.group_size), spread(row.scores), spread(row.selection)] for row in rows
    ]
    return markdown(["mode", "group", "scores us", "selection us"], lines)


def step_table(rows: Sequence[StepRow]) -> str:
    """Return the table of the training steps."""
    lines = [
        [
            row.name,
            name,
            spread(row.times["dense"]),
            spread(time),
            verdict(row.times["dense"], time),
        ]
        for row in rows
        for name, time in row.times.items()
        if name != "dense"
    ]
    return markdown(["step", "layers", "dense us", "us", "against dense"], lines)


def run(rounds: int, out: Callable[[str], Any]) -> None:
    """Measure on the current GPU and write the tables."""
    products: list[ProductRow] = []
    for ratio in GOALS:
        operands = Operands(SIZE, "cuda", torch.bfloat16)
        times = measure(product_calls(operands, ratio), rounds=rounds)
        times |= measure(layer_calls(operands, ratio), rounds=rounds)
        products.append(ProductRow(SIZE, ratio, times))
    out(f"Sampled products against cuBLAS, bfloat16, top-k:\n\n{product_table(products)}\n")
    selections: list[SelectionRow] = []
    for mode, group_size in SELECTIONS:
        calls = selection_calls(SIZE, mode, group_size, "cuda", torch.bfloat16)
        times = measure(calls, rounds=rounds)
        selections.append(SelectionRow(mode, group_size, times["scores"], times["selection"]))
    text = selection_table(selections)
    out(f"Scores of {SIZE} pairs of {SIZE} rows, and taking half of them:\n\n{text}\n")
    steps = step_table(bench_steps(min(rounds, 20)))
    out(f"Training steps with half of the pairs, bfloat16, SGD:\n\n{steps}")
