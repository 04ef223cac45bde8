"""How an entry function shares its work out among threads, and the scratch of each."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import tvm.tirx as tir

from lutcc.codegen.sizes import Sizes
from lutcc.ir.module import Function
from lutcc.schedules.x86.context import Scratch
from lutcc.schedules.x86.emit import Expr, View, bind, hold, i64, maximum, minimum, parallel


class Threads:
    """The threads of an entry function.

    Parameters
    ----------
    count
        How many there are; None: the function is serial.
    space, base
        The workspace, and where the scratch of the first thread begins in it.
    per_thread
        Bytes of scratch of each thread; a serial function finds out itself.
    """

    def __init__(self, count: Expr | None, space: Any, base: Expr, per_thread: int) -> None:
        self.count, self.space, self.base, self.per_thread = count, space, base, per_thread

    @contextlib.contextmanager
    def loop(self, most: Expr | None = None) -> Iterator[tuple[Expr, Expr]]:
        """Open the loop over threads, at most ``most``; yields (thread, number of threads)."""
        if self.count is None:
            yield i64(0), i64(1)
            return
        threads = self.count if most is None else bind(minimum(self.count, most))
        with parallel(threads) as thread:
            yield self.opaque(thread), threads

    def opaque(self, value: Expr) -> Expr:
        """Give a value a name, which TVM's passes do not look through where it is of a thread.

        They would expand it in every address, which takes most of the time of a compilation.
        """
        return bind(value) if self.count is None else bind(hold(value))

    def scratch(self, thread: Expr) -> Scratch:
        """Return the scratch of a thread, nothing of it taken."""
        return _ThreadScratch(self, self._base(thread))

    def opaque_scratch(self, thread: Expr) -> Scratch:
        """Return the scratch of a thread, whose address TVM's passes do not look through."""
        return _ThreadScratch(self, self.opaque(self._base(thread)))

    def _base(self, thread: Expr) -> Expr:
        return self.base + thread * self.per_thread


class _ThreadScratch(Scratch):
    """Scratch of one thread, whose size the serial function finds out."""

    def __init__(self, threads: Threads, base: Expr) -> None:
        super().__init__(threads.space, base)
        self.threads = threads

    def take(self, count: int, dtype: str) -> View:
        """Return ``count`` elements at a multiple of 64 bytes."""
        view = super().take(count, dtype)
        if self.threads.count is None:
            self.threads.per_thread = max(self.threads.per_thread, self.used)
        return view


def useful_threads(most: Expr, main: Function, sizes: Sizes, rows_per_thread: float) -> Expr:
    """Return how many threads the open sizes give enough to do, at most ``most``."""
    rows = sizes.rows
    if rows is None:
        first = main.params[0].type.sizes()[:1]
        enough = i64(int(max(1, *first, 1) / rows_per_thread))
    elif rows_per_thread >= 1:
        enough = tir.floordiv(rows, i64(math.ceil(rows_per_thread)))
    else:
        enough = rows * int(1 / rows_per_thread)
    return bind(maximum(minimum(most, enough), 1))
