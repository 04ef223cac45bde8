"""The measuring process: loads artifacts or dense models and runs them in bursts on request.

``python -m lutcc.bench.worker`` reads one JSON request per line and answers each with one line:

    {"do": "artifact", "name": N, "path": P, "isa": null, "threads": 1}
        -> {"isa": ..., "load_s": ...}
    {"do": "dense", "name": N, "path": P, "precision": "fp32"}   -> {}
    {"do": "network", "name": N, "path": P, "precision": "int8_x86"} -> {}
    {"do": "product", "name": N, "input": X, "candidate": {...}, "shape": {...}, "seed": 0} -> {}
    {"do": "input", "name": X, "path": P, "batch": null}         -> {}
        (float32; an artifact that takes bfloat16 is given it converted beforehand)
    {"do": "read", "name": N, "input": X, "nbytes": 1, "of": A}  -> {}
    {"do": "blocked", "name": N, "input": X, "columns": 4096, "outputs": 4096, "block": 32,
     "seed": 0}                                                  -> {}
    {"do": "cold", "name": N, "input": X}                        -> {"ns": [...]}
    {"do": "cores", "cores": [0, 1]}                             -> {}
    {"do": "burst", "name": N, "input": X, "seconds": 0.02}      -> {"ns": [...]}
    {"do": "output", "name": N, "input": X, "path": P}           -> {"torch": bool}

A worker that is asked for artifacts alone never imports torch, as a deployed program would not.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lutcc.bench.baselines import in_turn
from lutcc.bench.timing import burst
from lutcc.errors import LutccError, UsageError, suggest

#: Memory that is written before a cold call: more than caches hold.
_OTHER_BYTES = 64 << 20
_COLD_CALLS = 2


class Bench:
    """What the process has loaded."""

    def __init__(self) -> None:
        self._artifacts: dict[str, Any] = {}
        self._models: dict[str, tuple[Any, str]] = {}
        self._networks: dict[str, tuple[str, str]] = {}
        self._inputs: dict[str, list[np.ndarray]] = {}
        self._calls: dict[tuple[str, str], Callable[[], Any]] = {}
        self._other = np.zeros(_OTHER_BYTES, np.uint8)

    def artifact(self, name: str, path: str, isa: str | None, threads: int) -> dict[str, Any]:
        """Load an artifact, for a given ISA level or the best that this CPU has."""
        start = time.perf_counter()
        from lutcc.runtime import load, set_num_threads

        set_num_threads(threads)
        loaded = load(path, isa=isa) if isa else load(path)
        self._artifacts[name] = loaded
        return {"isa": loaded.isa, "load_s": time.perf_counter() - start}

    def dense(self, name: str, path: str, precision: str) -> dict[str, Any]:
        """Load a dense chain to be run in one precision by torch."""
        import torch

        from lutcc.bench.baselines import read_chain

        torch.set_num_threads(1)
        self._models[name] = (read_chain(path), precision)
        return {}

    def network(self, name: str, path: str, precision: str) -> dict[str, Any]:
        """Load a network of convolutions to be run in one precision."""
        self._networks[name] = (path, precision)
        return {}

    def product(
        self,
        name: str,
        input: str,
        candidate: dict[str, Any],
        shape: dict[str, int],
        seed: int,
    ) -> dict[str, Any]:
        """Prepare a product of :mod:`lutcc.bench.sampled`, which draws its own operands."""
        import torch

        from lutcc.bench import sampled

        torch.set_num_threads(1)
        call = sampled.prepare(sampled.Candidate(**candidate), sampled.Shape(**shape), seed)
        call()  # compiles
        self._calls[name, input] = call
        return {}

    def input(self, name: str, path: str, batch: int | None = None) -> dict[str, Any]:
        """Load an input array, float32 (N, D); calls take ``batch`` rows of it in turn."""
        x = np.load(path, allow_pickle=False)
        size = batch or len(x)
        self._inputs[name] = [x[i : i + size] for i in range(0, len(x) - size + 1, size)]
        return {}

    def read(self, name: str, input: str, nbytes: int, of: str) -> dict[str, Any]:
        """Prepare a loop that reads so many bytes of an artifact's packed constants once."""
        from lutcc.bench.limits import read_once
        from lutcc.runtime import cpu

        memory = self._artifacts[of].kernel.blob
        self._calls[name, input] = read_once(cpu.best_isa() or "avx2", nbytes, memory)
        return {}

    def blocked(
        self, name: str, input: str, columns: int, outputs: int, block: int, seed: int
    ) -> dict[str, Any]:
        """Prepare onnxruntime's product with 4-bit weights."""
        from lutcc.bench.codebook import blocked_product

        (x,) = self._inputs[input]
        self._calls[name, input] = blocked_product(columns, outputs, block, seed, x)
        return {}

    def cold(self, name: str, input: str) -> dict[str, Any]:
        """Run one subject a few times, each after other memory went through the caches."""
        call = self._call(name, input)
        times = []
        with self._mode(name):
            for _ in range(_COLD_CALLS):
                self._other += 1
                start = time.perf_counter_ns()
                call()
                times.append(time.perf_counter_ns() - start)
        return {"ns": times}

    def cores(self, cores: list[int]) -> dict[str, Any]:
        """Let this process run on these cores."""
        os.sched_setaffinity(0, cores)
        return {}

    def burst(
        self, name: str, input: str, seconds: float, warmup: int = 2, least: int = 3
    ) -> dict[str, Any]:
        """Run one subject for some time."""
        with self._mode(name):
            times = burst(self._call(name, input), seconds, warmup=warmup, least=least)
            return {"ns": times}

    def output(self, name: str, input: str, path: str) -> dict[str, Any]:
        """Run one subject once and store its output as float32."""
        with self._mode(name):
            result = self._call(name, input)()
        if isinstance(result, (tuple, list)):
            result = result[0]
        array = result.float().numpy() if hasattr(result, "float") else np.asarray(result)
        np.save(path, array.astype(np.float32))
        return {"torch": "torch" in sys.modules}

    def _mode(self, name: str) -> AbstractContextManager[Any]:
        of_torch = name in self._networks and not name.endswith("_onnxruntime")
        if name not in self._models and not of_torch:
            return nullcontext()
        import torch

        return torch.inference_mode()

    def _call(self, name: str, input: str) -> Callable[[], Any]:
        key = (name, input)
        if key not in self._calls:
            known = {**self._artifacts, **self._models, **self._networks}
            for what, among in ((name, known), (input, self._inputs)):
                if what not in among:
                    raise UsageError(f"nothing of the name {what!r}", fix=suggest(what, among))
            batches = self._inputs[input]
            if name in self._artifacts:
                artifact = self._artifacts[name]
                dtype = artifact.inputs[0].numpy_dtype()
                given = [x.astype(dtype, copy=False) for x in batches]
                self._calls[key] = in_turn([partial(artifact, x) for x in given])
            elif name in self._networks:
                from lutcc.bench.images_baselines import prepare_network

                path, precision = self._networks[name]
                self._calls[key] = prepare_network(Path(path), precision, batches)
            else:
                import torch

                from lutcc.bench.baselines import prepare

                model, precision = self._models[name]
                tensors = [torch.from_numpy(x) for x in batches]
                self._calls[key] = prepare(model, precision, *tensors)
        return self._calls[key]


def main() -> int:
    """Serve requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, not among the answers
    bench = Bench()
    for line in sys.stdin:
        request = json.loads(line)
        action = request.pop("do")
        try:
            answer = getattr(bench, action)(**request)
        except (LutccError, OSError, RuntimeError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
