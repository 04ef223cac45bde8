"""Compares compiled artifacts with dense torch layers, in turns, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from lutcc.bench.baselines import PRECISIONS, WITHOUT_AMX
from lutcc.bench.machine import has_amx
from lutcc.bench.timing import Timing, interleave
from lutcc.errors import BackendError

# Memory that a call frees stays with the process, for every subject alike: page faults would
# otherwise be half the time of a large bf16 layer.
_ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": "4000000000",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TOP_PAD_": "67108864",
}
#: A call that takes longer than this many seconds is timed once a turn, without warm-up.
_LONG = 0.1
#: One that takes this many is timed twice in all.
_HOPELESS = 4.0
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TVM_BIND_THREADS": "0"}


#: Precisions that oneDNN computes with AMX where it may.
_WITH_AMX = ("bf16", "bf16_cast", "bf16_onednn", "bf16_onednn_cast", "int8_onednn")


class Worker:
    """A measuring process (:mod:`lutcc.bench.worker`) and its end of the conversation."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        root = Path(__file__).resolve().parents[2]
        inherited = {k: v for k, v in os.environ.items() if k not in WITHOUT_AMX}
        path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = inherited | _ALLOCATOR | _ONE_THREAD | {"PYTHONPATH": path} | (environment or {})
        self._stderr = tempfile.TemporaryFile(mode="w+", encoding="utf-8")  # noqa: SIM115 - in close
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lutcc.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=env,
        )

    def ask(self, action: str, **request: Any) -> dict[str, Any]:
        """Send one request and return its answer.

        Raises
        ------
        BackendError
            When the request failed or the process died; with what it said.
        """
        to, back = self._streams()
        try:
            to.write(json.dumps({"do": action, **request}) + "\n")
            to.flush()
            line = back.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._process.wait()
            self._stderr.seek(0)
            said = self._stderr.read().strip()[-2000:]
            raise BackendError(
                f"the measuring process ended with code {code}" + (f":\n{said}" if said else ""),
                where=f"{action} {request.get('name', '')}".strip(),
            )
        answer = json.loads(line)
        if "error" in answer:
            raise BackendError(answer["error"], where=f"{action} {request.get('name', '')}".strip())
        return answer

    def _streams(self) -> tuple[IO[str], IO[str]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("opened with pipes")
        return self._process.stdin, self._process.stdout

    def close(self) -> None:
        """End the process."""
        to, back = self._streams()
        with contextlib.suppress(BrokenPipeError):
            to.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        back.close()
        self._stderr.close()


@dataclass(frozen=True, slots=True)
class Subject:
    """Something measured: which worker holds it, under which name, and what it is."""

    label: str
    worker: str
    name: str


class Comparison:
    """Artifacts and dense chains, loaded once, measured against one another at any batch size.

    Use as a context manager; its processes end with it.
    """

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="lutcc-bench-")
        self._inputs: dict[str, tuple[str, int | None]] = {}
        self.amx = has_amx()

    def __enter__(self) -> Comparison:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._folder.cleanup()

    def _worker(self, name: str) -> Worker:
        if name not in self._workers:
            self._workers[name] = Worker(WITHOUT_AMX if name == "torch-without-amx" else None)
            for key, (path, batch) in self._inputs.items():
                self._workers[name].ask("input", name=key, path=path, batch=batch)
        return self._workers[name]

    def add_input(self, name: str, x: np.ndarray, batch: int | None = None) -> None:
        """Make an input (N, D) float32 known to every process.

        With ``batch``, calls take that many rows of it in turn: look-ups of one input again and
        again would find their few table rows in the nearest cache.
        """
        path = str(Path(self._folder.name) / f"{len(self._inputs)}.npy")
        np.save(path, np.ascontiguousarray(x, np.float32))
        self._inputs[name] = (path, batch)
        for worker in self._workers.values():
            worker.ask("input", name=name, path=path, batch=batch)

    def add_artifact(
        self,
        label: str,
        path: Path,
        *,
        isa: str | None = None,
        cores: Sequence[int] = (),
    ) -> tuple[Subject, dict[str, Any]]:
        """Load an artifact in a process without torch; returns it and {"isa", "load_s"}.

        Parameters
        ----------
        label, path, isa
            Name of the subject, the artifact, and its variant (None: the best).
        cores
            Run on these, with a thread for each; by default on this process's, with one thread.
        """
        worker = "lutcc" if not cores else f"lutcc-on-{len(cores)}"
        if cores:
            self._worker(worker).ask("cores", cores=list(cores))
        answer = self._worker(worker).ask(
            "artifact", name=label, path=str(path), isa=isa, threads=len(cores) or 1
        )
        return Subject(label, worker, label), answer

    def add_dense(
        self, key: str, path: Path, precisions: Iterable[str] = PRECISIONS
    ) -> list[Subject]:
        """Load a dense chain in each precision; with and without AMX where the CPU has it."""
        subjects = []
        for precision in precisions:
            capped = self.amx and precision in _WITH_AMX
            for worker in ("torch", "torch-without-amx") if capped else ("torch",):
                label = f"{precision}/amx" if capped and worker == "torch" else precision
                name = f"{key}:{precision}"
                self._worker(worker).ask("dense", name=name, path=str(path), precision=precision)
                subjects.append(Subject(label, worker, name))
        return subjects

    def add_network(self, label: str, path: Path, precision: str) -> Subject:
        """Load a network of convolutions in one precision, see ``lutcc.bench.images_baselines``."""
        worker = "onnxruntime" if precision.endswith("onnxruntime") else "torch"
        name = f"network:{precision}"
        self._worker(worker).ask("network", name=name, path=str(path), precision=precision)
        return Subject(label, worker, name)

    def add_product(
        self, label: str, input: str, candidate: dict[str, Any], shape: dict[str, int], seed: int
    ) -> Subject:
        """Prepare a product of :mod:`lutcc.bench.sampled`; it is to be measured on ``input``."""
        name = f"{candidate['part']}:{label}"
        request = {"candidate": candidate, "shape": shape, "seed": seed}
        self._worker("torch").ask("product", name=name, input=input, **request)
        return Subject(label, "torch", name)

    def add_read(self, label: str, input: str, nbytes: int, of: str) -> Subject:
        """Prepare a loop that reads ``nbytes`` of what an artifact, which was added, reads."""
        self._worker("lutcc").ask("read", name=label, input=input, nbytes=nbytes, of=of)
        return Subject(label, "lutcc", label)

    def add_blocked(
        self, label: str, input: str, *, columns: int, outputs: int, block: int, seed: int
    ) -> Subject:
        """Prepare onnxruntime's product with 4-bit weights, to be measured on ``input``."""
        sizes = {"columns": columns, "outputs": outputs, "block": block, "seed": seed}
        self._worker("onnxruntime").ask("blocked", name=label, input=input, **sizes)
        return Subject(label, "onnxruntime", label)

    def measure_cold(
        self, subjects: Iterable[Subject], input: str, *, rounds: int = 10
    ) -> dict[str, Timing]:
        """Time subjects with empty caches, a call each in turns; label -> seconds per call."""

        def turn(subject: Subject) -> Callable[[float], list[int]]:
            worker = self._worker(subject.worker)
            return lambda _: worker.ask("cold", name=subject.name, input=input)["ns"]

        return interleave({s.label: turn(s) for s in subjects}, seconds=0, rounds=rounds)

    def measure(
        self, subjects: Iterable[Subject], input: str, *, seconds: float = 0.02, rounds: int = 10
    ) -> dict[str, Timing]:
        """Time subjects on one input in turns; label -> seconds per call.

        A first call tells how long one takes; where it is long, fewer are made.
        """
        chosen = {subject.label: self._runner(subject, input) for subject in subjects}
        return interleave(chosen, seconds=seconds, rounds=rounds)

    def _runner(self, subject: Subject, input: str) -> Callable[[float], list[int]]:
        worker = self._worker(subject.worker)

        def turn(seconds: float, **counts: int) -> list[int]:
            request = {"name": subject.name, "input": input, "seconds": seconds}
            return worker.ask("burst", **request, **counts)["ns"]

        once = {"warmup": 0, "least": 1}
        first = turn(0, **once)
        if first[0] > _HOPELESS * 1e9:
            times = iter([first, turn(0, **once)])
            return lambda seconds: next(times, [])
        if first[0] > _LONG * 1e9:
            return lambda seconds: turn(seconds, **once)
        return turn

    def output(self, subject: Subject, input: str) -> tuple[np.ndarray, bool]:
        """Run once; returns the output (float32) and whether its process had loaded torch."""
        path = str(Path(self._folder.name) / "output.npy")
        answer = self._worker(subject.worker).ask(
            "output", name=subject.name, input=input, path=path
        )
        return np.load(path), answer["torch"]
