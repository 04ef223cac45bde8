"""How many threads the kernels use.

The count is global (:func:`set_num_threads`), can be set per artifact (``artifact.num_threads``),
and starts as ``LUTCC_NUM_THREADS`` or the number of CPUs that the process may use. Kernels run on
TVM's thread pool, of which every calling thread owns one; it is made on the first parallel call of
that thread and ends with it. The numbers that kernels compute do not depend on the count.
"""

from __future__ import annotations

import os
import threading

from lutcc.errors import InputError
from lutcc.runtime import cpu, ffi

NUM_THREADS_VARIABLE = "LUTCC_NUM_THREADS"

#: Parameter of a model with exact layers, int64[1], in whose place the runtime passes the number of
#: threads of a call. A runtime that does not know it passes what is stored: 1.
THREADS = "@threads"

#: More threads than this is a mistake, not a wish.
MAX_THREADS = 1024


class _State:
    """The global count; read without a lock on every call."""

    __slots__ = ("asked", "count", "forked", "pool_used")

    def __init__(self) -> None:
        self.count = 0  # 0: not determined yet
        self.asked = False  # the count was chosen by somebody, it is not a default
        self.pool_used = False  # some thread of this process owns a pool
        self.forked = False  # this is a child of such a process: its pools have no threads


state = _State()
_local = threading.local()


def checked(value: object, where: str) -> int:
    """Return ``value`` as a thread count.

    Raises
    ------
    InputError
        When it is no whole number from 1 to 1024.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_THREADS:
        raise InputError(
            f"{value!r} is no thread count",
            where=where,
            fix=f"use a whole number from 1 to {MAX_THREADS}",
        )
    return value


def _default() -> int:
    text = os.environ.get(NUM_THREADS_VARIABLE, "").strip()
    if not text:
        return min(cpu.allowed_cpus(), MAX_THREADS)
    where = f"environment variable {NUM_THREADS_VARIABLE}"
    return checked(int(text) if text.isdecimal() else text, where)


def set_num_threads(count: int | None) -> None:
    """Set how many threads the kernels may use from now on; None restores the default.

    Raises
    ------
    InputError
        When ``count`` is no whole number from 1 to 1024.

    Examples
    --------
    >>> import lutcc
    >>> lutcc.set_num_threads(1)
    >>> lutcc.get_num_threads()
    1
    """
    state.count = _default() if count is None else checked(count, "set_num_threads")
    state.asked = count is not None


def get_num_threads() -> int:
    """Return how many threads the kernels may use.

    Examples
    --------
    >>> import lutcc
    >>> lutcc.get_num_threads() >= 1
    True
    """
    if not state.count:
        state.count = _default()
    return state.count


def prepare_pool(count: int) -> int:
    """Make the calling thread's pool use ``count`` workers; return how many it will use.

    The pool's size is fixed when it is made (the greater of the allowed CPUs and ``count``), so a
    later, greater ``count`` shares the work among fewer workers than asked for. In a forked child
    of a process that had a pool, the answer is 1: the pool's threads do not survive a fork.
    """
    if getattr(_local, "count", 0) == count and not state.forked:
        return count
    if state.forked:
        return 1
    ffi.load_runtime_library("running a kernel on several threads")
    configure = ffi.tvm_ffi().get_global_func("runtime.config_threadpool")
    size = getattr(_local, "size", 0)
    if not size:
        size = _local.size = max(cpu.allowed_cpus(), count)
    # Mode 1 with a list of CPUs sets the size of a pool that is not made yet; threads are not bound
    # to the CPUs of the list because TVM_BIND_THREADS is 0.
    configure(1, min(count, size), [str(index) for index in range(size)])
    state.pool_used = True
    _local.count = count
    return count


def _after_fork() -> None:
    if state.pool_used:
        state.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
