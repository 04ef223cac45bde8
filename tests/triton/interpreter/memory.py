"""Watches the memory of interpreted kernels: what a GPU's sanitizer does, without a GPU.

Each load, store and atomic addition must stay inside the elements of the tensors that the kernel
was given (not only inside their storage), and no two programs of a launch may touch the same byte
if one of them writes it, except by atomic additions alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter

NOBODY = -1


class MemoryAccessError(AssertionError):
    """A kernel reads or writes what it must not."""


class Region:
    """One storage: which bytes belong to tensors, and who touched them."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.base, self.size = storage.data_ptr(), storage.nbytes()
        self.allowed = np.zeros(self.size, bool)
        self.writer = np.full(self.size, NOBODY, np.int64)
        # Two readers, so that a write by either of two programs is known to be one too many.
        self.first_reader = np.full(self.size, NOBODY, np.int64)
        self.last_reader = np.full(self.size, NOBODY, np.int64)
        self.atomic = np.zeros(self.size, bool)

    def allow(self, tensor: torch.Tensor) -> None:
        index = np.zeros((), np.int64)
        for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
            index = index[..., None] + np.arange(length) * stride
        size = tensor.element_size()
        start = (index.reshape(-1) + tensor.storage_offset()) * size
        for byte in range(size):
            self.allowed[start + byte] = True


class Watch:
    """The tensors of the launch at work."""

    def __init__(self) -> None:
        self.regions: list[Region] | None = None

    def start(self, arguments: Iterable[Any]) -> None:
        regions: dict[int, Region] = {}
        for tensor in arguments:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.nbytes():
                    regions.setdefault(storage.data_ptr(), Region(storage)).allow(tensor)
        self.regions = list(regions.values())

    def stop(self) -> None:
        self.regions = None

    def access(self, pointers: Any, mask: Any, kind: str) -> None:
        """Check one access by the program at work; ``pointers`` and ``mask`` are handles."""
        if self.regions is None:
            return
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses, wanted = np.broadcast_arrays(pointers.data, mask.data)
        addresses = addresses[wanted.astype(bool)].astype(np.int64)
        left = addresses
        for region in self.regions:
            here = (left >= region.base) & (left + width <= region.base + region.size)
            if here.any():
                self._inside(region, left[here] - region.base, width, kind)
                left = left[~here]
        if left.size:
            raise MemoryAccessError(
                f"{kind} outside of every tensor: {left.size} of {addresses.size} lanes, program "
                f"{interpreter.interpreter_builder.grid_idx}"
            )

    def _inside(self, region: Region, offsets: np.ndarray, width: int, kind: str) -> None:
        program = interpreter.interpreter_builder.grid_idx
        if not all(region.allowed[offsets + byte].all() for byte in (0, width - 1)):
            raise MemoryAccessError(f"{kind} between the elements of a tensor, program {program}")
        dimensions = interpreter.interpreter_builder.grid_dim
        me = int(np.ravel_multi_index(program, dimensions))
        writer = region.writer[offsets]
        if kind == "load":
            self._nobody_else(writer, me, "reads what", "wrote", region.atomic[offsets])
            first = region.first_reader[offsets]
            region.first_reader[offsets] = np.where(first == NOBODY, me, first)
            region.last_reader[offsets] = me
            return
        for reader in (region.first_reader[offsets], region.last_reader[offsets]):
            self._nobody_else(reader, me, "writes what", "read")
        if kind == "atomic":
            plain = (writer != NOBODY) & ~region.atomic[offsets]
            if plain.any():
                raise MemoryAccessError(f"atomic addition to what a store wrote, program {me}")
            region.atomic[offsets] = True
        else:
            if np.unique(offsets).size != offsets.size:
                raise MemoryAccessError(f"one store writes an element twice, program {program}")
            self._nobody_else(writer, me, "writes what", "wrote", region.atomic[offsets])
        region.writer[offsets] = me

    @staticmethod
    def _nobody_else(
        who: np.ndarray, me: int, does: str, did: str, also: np.ndarray | None = None
    ) -> None:
        others = (who != NOBODY) & ((who != me) | (False if also is None else also))
        if others.any():
            raise MemoryAccessError(f"race: program {me} {does} program {who[others][0]} {did}")


WATCH = Watch()


def install() -> None:
    """Patch the interpreter; once is enough."""
    builder: Any = interpreter.InterpreterBuilder
    if getattr(builder, "watched_by_lutcc", False):
        return
    builder.watched_by_lutcc = True
    load, store = builder.create_masked_load, builder.create_masked_store
    atomic, launch = builder.create_atomic_rmw, interpreter.GridExecutor.__call__

    def create_masked_load(self: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        WATCH.access(pointers, mask, "load")
        return load(self, pointers, mask, *rest, **named)

    def create_masked_store(
        self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any
    ) -> Any:
        WATCH.access(pointers, mask, "store")
        return store(self, pointers, value, mask, *rest, **named)

    def create_atomic_rmw(
        self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **named: Any
    ) -> Any:
        WATCH.access(pointers, mask, "atomic")
        return atomic(self, op, pointers, value, mask, *rest, **named)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        WATCH.start([*args, *kwargs.values()])
        try:
            return launch(self, *args, **kwargs)
        finally:
            WATCH.stop()

    builder.create_masked_load, builder.create_masked_store = (
        create_masked_load,
        create_masked_store,
    )
    builder.create_atomic_rmw = create_atomic_rmw
    interpreter.GridExecutor.__call__ = call
