"""Whole networks of look-ups against the exact network in every precision, in one run on one core.

lutcc's kernels run in a process without torch, torch's in another; all take turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.bench.baselines import ONEDNN, PRECISIONS, runs_here, write_chain
from lutcc.bench.compare import Comparison, Subject

if TYPE_CHECKING:
    from torch import nn

_FAMILIES = {"float32": "fp32", "bfloat16": "bf16", "int8": "int8"}


@dataclass(frozen=True, slots=True)
class NetworkSpeed:
    """Best seconds per call of everything that was measured on so many rows.

    Attributes
    ----------
    rows
        Of a call.
    networks
        By the name that was given.
    exact
        "lutcc float32", "lutcc bfloat16", "lutcc int8", and torch's by engine, such as "fp32",
        "bf16_onednn/amx".
    """

    rows: int
    networks: dict[str, float]
    exact: dict[str, float]

    def fastest(self, precision: str) -> float:
        """Return the best time of the exact network in "float32", "bfloat16" or "int8".

        Examples
        --------
        >>> speed = NetworkSpeed(1, {}, {"lutcc int8": 2e-6, "int8_x86": 1e-6, "fp32": 5e-7})
        >>> speed.fastest("int8")
        1e-06
        """
        names = (f"lutcc {precision}", _FAMILIES[precision])
        return min(time for label, time in self.exact.items() if label.startswith(names))

    def faster(self, name: str, precision: str) -> float:
        """Return how many times as fast a network is as the exact one; below 1 it is slower."""
        return self.fastest(precision) / self.networks[name]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


def network_speeds(
    exact: nn.Sequential,
    networks: Mapping[str, nn.Module],
    inputs: np.ndarray,
    batches: Sequence[int] = (1, 1024),
    *,
    seconds: float = 0.01,
    rounds: int = 15,
) -> list[NetworkSpeed]:
    """Compile and time networks that stand for ``exact``, and ``exact`` in every precision.

    Parameters
    ----------
    exact
        Linear layers with a ReLU between them.
    networks
        What ``lutcc.convert`` or ``lutcc.finetune`` made, by name.
    inputs
        (N, D) float32; repeated where a batch has more rows.
    batches
        Rows of a call.
    seconds, rounds
        As in :class:`lutcc.bench.options.BenchOptions`.
    """
    import torch

    import lutcc

    sample = torch.from_numpy(np.ascontiguousarray(inputs[:64]))
    modules: dict[str, Any] = dict(networks)
    precisions = tuple(_FAMILIES)
    for precision in precisions:
        recipe = {"*": lutcc.recipes.Exact(compute=precision)}
        modules[f"lutcc {precision}"] = lutcc.convert(exact, recipe)
    speeds: list[NetworkSpeed] = []
    with tempfile.TemporaryDirectory(prefix="lutcc-bench-") as name, Comparison() as compare:
        subjects: list[Subject] = []
        for number, (label, module) in enumerate(modules.items()):
            path = Path(name) / f"{number}.lutcc"
            lutcc.compile(module, sample).save(path)
            subjects.append(compare.add_artifact(label, path)[0])
        chain = Path(name) / "dense.safetensors"
        linears = [layer for layer in exact if isinstance(layer, torch.nn.Linear)]
        pairs = [(layer.weight.detach(), layer.bias.detach()) for layer in linears]
        write_chain(str(chain), pairs)
        engines = [p for p in (*PRECISIONS, *ONEDNN) if runs_here(p)]
        subjects += compare.add_dense("dense", chain, engines)
        for batch in batches:
            compare.add_input(f"x{batch}", np.resize(inputs, (batch, inputs.shape[1])))
            found = compare.measure(subjects, f"x{batch}", seconds=seconds, rounds=rounds)
            times = {label: timing.best for label, timing in found.items()}
            ours = {label: times.pop(label) for label in networks}
            speeds.append(NetworkSpeed(batch, ours, times))
    return speeds
