"""The demonstration: train, convert, compile, run in a fresh process, compare."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.bench.baselines import write_chain
from lutcc.bench.compare import Comparison, Subject
from lutcc.bench.layers import verdicts
from lutcc.bench.machine import describe
from lutcc.bench.timing import Timing, pin_to_core
from lutcc.codegen.targets import parse_targets
from lutcc.data import ImageSplit
from lutcc.data.digits import load as load_digits
from lutcc.errors import BackendError
from lutcc.report import digits

if TYPE_CHECKING:
    from torch import nn

BATCHES = (1, 64, 1024)
CODEBOOKS = (2, 4, 8, 16, 30)
DETAILED = 16  # the number of codebooks whose layers are looked at one by one
BITS = {"fp32": 32, "bf16": 16, "bf16_cast": 16, "int8_onednn": 8, "int8_x86": 8}

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """Where the demonstration writes, and how long it measures."""

    output: Path
    seed: int = 0
    target: str = "host"
    core: int | None = None
    seconds: float = 0.02
    rounds: int = 8
    codebooks: tuple[int, ...] = CODEBOOKS


def run_demo(options: DemoOptions, progress: Progress) -> dict[str, Any]:
    """Run the whole demonstration and return its results as plain data.

    Raises
    ------
    TargetError, UsageError
        If the target is unknown or the core cannot be used; both are looked at first.
    BackendError
        If an artifact, loaded in a fresh process, does not give what the converted model gives.
    """
    parse_targets(options.target)
    usable = os.sched_getaffinity(0)
    core = pin_to_core(options.core)
    os.sched_setaffinity(0, usable)  # all of them for the work that is not measured
    options.output.mkdir(parents=True, exist_ok=True)
    data = load_digits(seed=options.seed)
    with _one_thread():
        progress(f"training a 64-30-30-30-10 MLP on {len(data.train_y)} handwritten digits")
        start = time.perf_counter()
        model = digits.train(data, options.seed)
        trained = time.perf_counter() - start
        converted = {}
        for ncodebooks in options.codebooks:
            progress(f"converting at {ncodebooks} codebooks and compiling for {options.target}")
            converted[ncodebooks] = _convert_and_compile(model, data, ncodebooks, options)
        progress("compiling each layer alone")
        layers = _compile_layers(model, converted, options)
    pin_to_core(core)
    with Comparison() as compare:
        compare.add_input("test", data.test_x)
        for rows in BATCHES:
            compare.add_input(f"rows{rows}", digits.batch(data, rows))
        progress("loading the artifacts in a fresh process")
        result = _measure_models(compare, model, data, converted, options, progress)
        result["layers"] = _measure_layers(compare, model, data, layers, options, progress)
    result |= {"machine": describe(core), "seed": options.seed, "train_seconds": trained}
    result["test_rows"] = len(data.test_y)
    return result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep BLAS and torch on one thread: two that spin for each other crawl on a busy machine."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


def _convert_and_compile(
    model: nn.Sequential, data: ImageSplit, ncodebooks: int, options: DemoOptions
) -> dict[str, Any]:
    """Convert every layer, compile, save; returns the converted model, its path and its logits."""
    import torch

    import lutcc

    recipe = {"*": lutcc.recipes.Maddness(ncodebooks=ncodebooks, random_state=options.seed)}
    calibration = torch.from_numpy(data.train_x)
    start = time.perf_counter()
    lookup = lutcc.convert(model, recipe, calibration).eval()
    fitted = time.perf_counter() - start
    path = options.output / f"digits-c{ncodebooks}.lutcc"
    start = time.perf_counter()
    lutcc.compile(lookup, (calibration[:2],), target=options.target).save(path)
    compiled = time.perf_counter() - start
    with torch.inference_mode():
        logits = lookup(torch.from_numpy(data.test_x)).numpy()
    return {
        "model": lookup, "path": path, "logits": logits, "fit_s": fitted, "compile_s": compiled,
    }  # fmt: skip


def _linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    from torch import nn

    return [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]


def _compile_layers(
    model: nn.Sequential, converted: dict[int, dict[str, Any]], options: DemoOptions
) -> list[dict[str, Any]]:
    """Compile each look-up layer alone, with the ReLU behind it, and store its dense twin."""
    import torch
    from torch import nn

    import lutcc

    chosen = DETAILED if DETAILED in converted else max(converted)
    lookup = dict(converted[chosen]["model"].named_modules())
    layers = []
    linears = _linears(model)
    for index, (name, linear) in enumerate(linears):
        relu = index < len(linears) - 1
        path = options.output / f"layer-{name}-c{chosen}.lutcc"
        dense = options.output / f"layer-{name}.safetensors"
        alone = nn.Sequential(lookup[name], *([nn.ReLU()] if relu else []))
        example = torch.zeros(2, linear.in_features)
        lutcc.compile(alone, (example,), target=options.target).save(path)
        exact = options.output / f"layer-{name}-exact.lutcc"
        twin = nn.Sequential(linear, *([nn.ReLU()] if relu else []))
        lutcc.compile(twin, (example,), target=options.target).save(exact)
        write_chain(str(dense), [(linear.weight, linear.bias)], relu_last=relu)
        layers.append(
            {"name": name, "in": linear.in_features, "out": linear.out_features, "relu": relu,
             "ncodebooks": chosen, "path": path, "dense": dense, "exact": exact}
        )  # fmt: skip
    return layers


def _measure_models(
    compare: Comparison,
    model: nn.Sequential,
    data: ImageSplit,
    converted: dict[int, dict[str, Any]],
    options: DemoOptions,
    progress: Progress,
) -> dict[str, Any]:
    import torch

    import lutcc

    dense_path = options.output / "digits.safetensors"
    pairs = [(layer.weight, layer.bias) for _, layer in _linears(model)]
    write_chain(str(dense_path), pairs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows: list[dict[str, Any]] = []
    subjects: list[Subject] = []
    for ncodebooks, made in converted.items():
        subject, loaded = compare.add_artifact(f"lutcc {ncodebooks}", made["path"])
        logits, saw_torch = compare.output(subject, "test")
        if not np.array_equal(logits, made["logits"]):
            worst = float(np.abs(logits - made["logits"]).max())
            raise BackendError(
                f"the artifact's logits differ from the converted model's by up to {worst:g}",
                where=str(made["path"]),
                fix="look-up layers are exact on every backend: please report this",
            )
        subjects.append(subject)
        rows.append(
            {"label": subject.label, "kind": "lutcc", "ncodebooks": ncodebooks,
             "accuracy": digits.accuracy(logits, data.test_y), "isa": loaded["isa"],
             "bytes": made["path"].stat().st_size, "table_bytes": _table_bytes(made["model"]),
             "artifact": str(made["path"]), "load_s": loaded["load_s"], "fit_s": made["fit_s"],
             "compile_s": made["compile_s"], "loaded_without_torch": not saw_torch}
        )  # fmt: skip
    exact_path = options.output / "digits-exact.lutcc"
    example = (torch.from_numpy(data.train_x[:2]),)
    lutcc.compile(model, example, target=options.target).save(exact_path)
    subject, loaded = compare.add_artifact("compiled", exact_path)
    logits, _ = compare.output(subject, "test")
    subjects.append(subject)
    rows.append(
        {"label": subject.label, "kind": "dense", "precision": "compiled",
         "accuracy": digits.accuracy(logits, data.test_y), "isa": loaded["isa"],
         "bytes": parameters * 4}
    )  # fmt: skip
    for subject in compare.add_dense("digits", dense_path):
        logits, _ = compare.output(subject, "test")
        precision = subject.label.removesuffix("/amx")
        subjects.append(subject)
        rows.append(
            {"label": subject.label, "kind": "dense", "precision": precision,
             "accuracy": digits.accuracy(logits, data.test_y), "isa": None,
             "bytes": parameters * BITS[precision] // 8}
        )  # fmt: skip
    exact = next(row["accuracy"] for row in rows if row["label"] == "fp32")
    times: dict[int, dict[str, Timing]] = {}
    for batch in BATCHES:
        progress(f"timing {len(subjects)} candidates at batch {batch}, in turns, on one core")
        times[batch] = compare.measure(
            subjects, f"rows{batch}", seconds=options.seconds, rounds=options.rounds
        )
    for row in rows:
        row["relative_accuracy"] = row["accuracy"] / exact
        row["times"] = {batch: asdict(times[batch][row["label"]]) for batch in BATCHES}
    return {"exact_accuracy": exact, "parameters": parameters, "models": rows}


def _table_bytes(model: nn.Module) -> int:
    """Return the bytes of all buffers of the converted layers: trees, tables, scales."""
    return sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())


def _measure_layers(
    compare: Comparison,
    model: nn.Sequential,
    data: ImageSplit,
    layers: list[dict[str, Any]],
    options: DemoOptions,
    progress: Progress,
) -> list[dict[str, Any]]:
    import torch

    modules = dict(model.named_children())
    rows = []
    for index, layer in enumerate(layers):
        progress(f"layer {layer['name']}: look-up against dense")
        before = list(modules.values())[: list(modules).index(layer["name"])]
        subject, loaded = compare.add_artifact(f"layer{index}", layer["path"])
        own = Subject("lutcc", subject.worker, subject.name)
        twin, _ = compare.add_artifact(f"layer{index}-exact", layer["exact"])
        compiled = Subject("compiled", twin.worker, twin.name)
        dense = [compiled, *compare.add_dense(f"layer{index}", layer["dense"])]
        batches = {}
        for batch in BATCHES:
            x = torch.from_numpy(digits.batch(data, batch))
            for module in before:
                x = module(x)
            compare.add_input(f"layer{index}-{batch}", x.numpy())
            times = compare.measure(
                [own, *dense],
                f"layer{index}-{batch}",
                seconds=options.seconds / 2,
                rounds=max(3, options.rounds // 2),
            )
            batches[batch] = verdicts(times) | {
                "times": {label: asdict(timing) for label, timing in times.items()}
            }
        kept = {key: layer[key] for key in ("name", "in", "out", "relu", "ncodebooks")}
        rows.append(kept | {"isa": loaded["isa"], "batches": batches})
    return rows
