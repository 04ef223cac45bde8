"""The builder's side of tuning: configs to shared libraries."""

from __future__ import annotations

import gc
import hashlib
import os
import pickle
import time
from pathlib import Path

import numpy as np

from lutcc.codegen.build import link
from lutcc.schedules.space import Config
from lutcc.tuning.messages import Built, Constant, Input, Kept, Memory, Order
from lutcc.tuning.task import Subject

_KEPT_TASKS, _KEPT_CONSTANTS = 3, 8


class Builder:
    """Builds candidates into shared libraries."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._subjects = Kept[Order, tuple[Subject, list[np.ndarray]]](_KEPT_TASKS)
        self._files = Kept[str, Path](_KEPT_CONSTANTS)
        gc.collect()
        gc.freeze()  # TVM's modules are never garbage; looking through them takes a while

    def build(self, order: Order, config: Config) -> Built:
        """Build one config and link it."""
        start = time.perf_counter()
        subject, inputs = self._subject(order)
        candidate = subject.candidate(config, order.isa, order.mcpu, inputs)
        self._count += 1
        stem = self._folder / f"{os.getpid()}-{self._count}"
        library = stem.with_suffix(".so")  # never the same name twice: dlopen goes by the name
        link(candidate.module, library, fast=True)
        places = {id(array): index for index, array in enumerate(inputs)}
        forgotten = {*candidate.outputs, *candidate.scratch}
        arguments: list[Memory | Constant | Input | int] = []
        for index, value in enumerate(candidate.arguments):
            if not isinstance(value, np.ndarray):
                arguments.append(int(value))
            elif id(value) in places:
                arguments.append(Input(places[id(value)]))
            elif index in forgotten:
                arguments.append(Memory(value.shape, value.dtype.str))
            else:
                arguments.append(self._store(value, Path(f"{stem}-{index}.npy")))
        seconds = time.perf_counter() - start
        return Built(library, candidate.symbol, tuple(arguments), candidate.outputs, seconds)

    def _subject(self, order: Order) -> tuple[Subject, list[np.ndarray]]:
        known = self._subjects.used(order)
        if known is None:
            subject = pickle.loads(order.path.read_bytes())
            known = self._subjects.keep(order, (subject, subject.inputs(order.seed)))
        return known

    def _store(self, array: np.ndarray, path: Path) -> Constant:
        array = np.ascontiguousarray(array)
        digest = hashlib.blake2b(array.tobytes(), digest_size=16).hexdigest()
        digest += f"-{array.dtype.str}-{array.shape}"
        before = self._files.used(digest)
        try:
            os.link(before or "", path)  # the same bytes, on disk only once
        except OSError:
            np.save(path, array)
        self._files.keep(digest, path)
        return Constant(path, digest)
