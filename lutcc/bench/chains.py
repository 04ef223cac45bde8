"""Whole networks of look-ups, in integers from end to end, against the network that is replaced.

Everything but one run of the look-ups has one core, in turns: lutcc in a process without torch,
torch in another. The weights are random: what a network of this shape costs does not depend on
them; how exact it is does, and is not told here.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutcc import ir
from lutcc.bench.baselines import ONEDNN, PRECISIONS, runs_here, write_chain
from lutcc.bench.chains_report import FLOATS, OWN, TWO_CORES
from lutcc.bench.compare import Comparison, Subject
from lutcc.bench.options import BenchOptions
from lutcc.bench.rows import OnRow, collected
from lutcc.bench.timing import Timing
from lutcc.runtime import cpu


@dataclass(frozen=True, slots=True)
class Network:
    """Layers of these widths, with an activation between them.

    Attributes
    ----------
    widths
        Of the input, of each layer.
    ncodebooks
        C of every layer, at most its inputs; K is 16.
    activation
        "relu" or "gelu".
    """

    widths: tuple[int, ...]
    ncodebooks: int
    activation: str = "relu"

    def __str__(self) -> str:
        shape = "-".join(map(str, self.widths))
        between = "" if self.activation == "relu" else f" {self.activation}"
        return f"{shape}{between}, C = {self.ncodebooks}"


#: A network, and the feed-forward pair of a small transformer.
NETWORKS = (Network((512, 512, 512, 512, 10), 64), Network((384, 1536, 384), 48, "gelu"))
BATCHES = (1, 64, 1024)
IMAGES, QUICK_IMAGES = (1, 64), (1,)
QUICK_NETWORK, QUICK_BATCHES = Network((64, 64, 64, 10), 16), (1, 64)
_ROWS = 2048


def bench_chains(
    options: BenchOptions,
    on_row: OnRow = None,
) -> list[dict[str, Any]]:
    """Measure a network at several batch sizes.

    Returns
    -------
    list
        A row for each: N, ``network``, ``dead`` (columns that are not computed), and ``times``
        (seconds): ``lutcc look-ups``, the same with floats between layers, and on two cores where
        there are two, ``lutcc int8``, ``lutcc bfloat16``, and torch's by precision.
    """
    return collected(itertools.chain(_rows(options), image_rows(options)), on_row)


def _rows(options: BenchOptions) -> Iterator[dict[str, Any]]:
    for network in (QUICK_NETWORK,) if options.quick else NETWORKS:
        yield from _rows_of(network, options)


def _rows_of(network: Network, options: BenchOptions) -> Iterator[dict[str, Any]]:
    """Measure one network at several batch sizes."""
    with tempfile.TemporaryDirectory(prefix="lutcc-bench-") as name, Comparison() as compare:
        folder, rng = Path(name), np.random.default_rng(options.seed)
        weights = [
            (rng.normal(size=(b, a)) * np.sqrt(2 / a)).astype(np.float32)
            for a, b in zip(network.widths, network.widths[1:], strict=False)
        ]
        inputs = rng.normal(size=(_ROWS, network.widths[0])).astype(np.float32)
        module = lookup_network(inputs, weights, network.ncodebooks, network.activation)
        exact = {c: _exact_network(weights, c, network.activation) for c in ("int8", "bfloat16")}
        subjects = _own(compare, folder, module, exact, options)
        subjects += _torch(compare, folder, weights, network.activation)
        for batch in QUICK_BATCHES if options.quick else BATCHES:
            label = f"x{batch}"
            compare.add_input(label, np.ascontiguousarray(inputs[:batch]))
            times = compare.measure(subjects, label, seconds=options.seconds, rounds=options.rounds)
            yield _row(str(network), batch, dead_columns_of(module), options, times)


def image_rows(options: BenchOptions) -> Iterator[dict[str, Any]]:
    """Measure a network of convolutions; yields rows as those of :func:`bench_chains`."""
    from lutcc.bench.chains_images import subjects_of

    with tempfile.TemporaryDirectory(prefix="lutcc-bench-") as name, Comparison() as compare:
        rng = np.random.default_rng(options.seed)
        network, subjects, dead = subjects_of(compare, Path(name), options, rng)
        for batch in QUICK_IMAGES if options.quick else IMAGES:
            label, shape = f"images{batch}", (network.channels[0], network.size, network.size)
            compare.add_input(label, rng.normal(size=(batch, *shape)).astype(np.float32))
            times = compare.measure(subjects, label, seconds=options.seconds, rounds=options.rounds)
            yield _row(str(network), batch, dead, options, times)


def _row(
    network: str, batch: int, dead: int, options: BenchOptions, times: Mapping[str, Timing]
) -> dict[str, Any]:
    return {
        "N": batch,
        "network": network,
        "dead": dead,
        "isa": options.isa or cpu.best_isa() or "",
        "bf16_native": "avx512_bf16" in cpu.flags(),
        "times": {name: asdict(timing) for name, timing in times.items()},
    }


def lookup_network(
    inputs: np.ndarray,
    weights: Sequence[np.ndarray],
    ncodebooks: int,
    activation: str = "relu",
) -> ir.Module:
    """Return a network with every layer by look-ups, each fitted to what reaches it.

    Parameters
    ----------
    inputs
        (N, D) float32.
    weights
        (M, K) float32 of each layer.
    ncodebooks
        C, at most a layer's inputs.
    activation
        Between layers, as ``activation`` names it, or "relu".

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> weights = [rng.normal(size=s).astype(np.float32) for s in ((8, 8), (3, 8))]
    >>> x = rng.normal(size=(200, 8)).astype(np.float32)
    >>> module = lookup_network(x, weights, 4)
    >>> [op.opcode for op in module.main.body if op.opcode == "tree_encode"]
    ['tree_encode', 'tree_encode']
    """
    from lutcc.fit import Maddness
    from lutcc.ir.arithmetic import activate

    b = ir.Builder("main")
    value = b.param("x", ir.TensorType((ir.Sym("n"), inputs.shape[1]), "float32"))
    reaching = inputs
    for number, weight in enumerate(weights):
        codebooks = min(ncodebooks, weight.shape[1])
        last = number == len(weights) - 1
        layer = Maddness(codebooks, ridge_lambda=1.0, random_state=0).fit(reaching, weight.T)
        found = (layer.splitdims_, layer.splitvals_, layer.lut_, layer.scale_, layer.offset_)
        dims, values, lut, scale, offset = (
            b.constant(f"{name}{number}", array)
            for name, array in zip(("dims", "values", "lut", "scale", "offset"), found, strict=True)
        )
        sums = b.op("lut_accumulate", b.op("tree_encode", value, dims, values), lut)
        value = b.op("lut_dequantize", sums, scale, offset)
        if not last:
            relu = activation == "relu"
            value = b.op("relu", value) if relu else b.op("activation", value, kind=activation)
            reaching = activate(layer.predict(reaching), activation)
    b.returns(value)
    return b.module()


def dead_columns_of(module: ir.Module) -> int:
    """Return how many columns of a module's sums no tree compares."""
    from lutcc.ir.passes import IntegerChains
    from lutcc.ir.passes.dead_columns import find_dead

    return sum(dead.columns - dead.computed for dead in find_dead(IntegerChains()(module)))


def _own(
    compare: Comparison,
    folder: Path,
    module: ir.Module,
    exact: Mapping[str, ir.Module],
    options: BenchOptions,
) -> list[Subject]:
    """Compile the look-ups, with and without chains in integers, and lutcc's own exact layers."""
    from lutcc.codegen.targets import parse_targets
    from lutcc.compiler import compile_module
    from lutcc.ir.passes import PIPELINE, DeadColumns, IntegerChains, run_pipeline

    plain = [step for step in PIPELINE if not isinstance(step, IntegerChains | DeadColumns)]
    modules = {OWN: module, FLOATS: run_pipeline(module, plain)}
    modules |= {f"lutcc {compute}": made for compute, made in exact.items()}
    subjects = []
    for number, (label, made) in enumerate(modules.items()):
        path = folder / f"{number}.lutcc"
        compile_module(made, parse_targets(options.isa or "host")).save(path)
        subjects.append(compare.add_artifact(label, path)[0])
    if len(options.cores) > 1:
        both = options.cores[:2]
        subjects.append(compare.add_artifact(TWO_CORES, folder / "0.lutcc", cores=both)[0])
    return subjects


def _exact_network(weights: Sequence[np.ndarray], compute: str, activation: str) -> ir.Module:
    import ml_dtypes

    from lutcc.ir.arithmetic import quantize_rows

    b = ir.Builder("main")
    value = b.param("x", ir.TensorType((ir.Sym("n"), weights[0].shape[1]), "float32"))
    for number, weight in enumerate(weights):
        units = np.ones(len(weight), np.float32)
        stored = weight.astype(ml_dtypes.bfloat16)
        if compute == "int8":
            integers, units = quantize_rows(weight)
            stored = integers.astype(np.int8)
        constants = [
            b.constant(f"{name}{number}", array)
            for name, array in (
                ("weight", stored),
                ("units", units),
                ("bias", np.zeros(len(weight), np.float32)),
            )
        ]
        then = "none" if number == len(weights) - 1 else activation
        value = b.op("dense", value, *constants, compute=compute, activation=then)
    b.returns(value)
    return b.module()


def _torch(
    compare: Comparison, folder: Path, weights: Sequence[np.ndarray], activation: str
) -> list[Subject]:
    """Load the network in every precision."""
    import torch

    path = folder / "dense.safetensors"
    pairs = [(torch.from_numpy(w), torch.zeros(len(w))) for w in weights]
    write_chain(str(path), pairs, activation=activation)
    return compare.add_dense("dense", path, [p for p in (*PRECISIONS, *ONEDNN) if runs_here(p)])
