"""Builds candidates in a process of their own, the next ones ahead of time."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lutcc.errors import LutccError
from lutcc.schedules.space import Config, config_id
from lutcc.tuning.messages import Built, Order
from lutcc.tuning.process import Child, ChildFailed, told
from lutcc.tuning.records import Outcome

#: Requests that the builder has at a time: one that it works on and one that is next.
_AHEAD = 2
_KEPT = 48

Key = tuple[Order, str]


@dataclass
class _Request:
    key: Key
    config: Config
    started: float | None = None


class Builds:
    """What is built, being built, and to be built.

    Parameters
    ----------
    child
        The builder process.
    timeout_s
        For one candidate.
    ahead
        Build while something is measured. Only if the builder has a core of its own.
    """

    def __init__(self, child: Child, timeout_s: float, *, ahead: bool) -> None:
        self._child, self._timeout_s, self._ahead = child, timeout_s, ahead
        self._waiting: deque[_Request] = deque()
        self._sent: dict[int, _Request] = {}
        self._done: OrderedDict[Key, Built | Outcome] = OrderedDict()
        self._starts = child.starts

    def prefetch(self, order: Order, configs: Sequence[Config]) -> None:
        """Name what will be asked for next; replaces what was named before."""
        if not self._ahead:
            return
        self._waiting.clear()
        for config in configs:
            self._enqueue((order, config_id(config)), config)
        self._keep_busy()

    def get(self, order: Order, config: Config) -> Built | Outcome:
        """Return the built candidate, or the outcome that tells why there is none."""
        key = (order, config_id(config))
        while key not in self._done:
            if not any(request.key == key for request in self._sent.values()):
                self._waiting = deque(r for r in self._waiting if r.key != key)
                self._waiting.appendleft(_Request(key, config))
            self._keep_busy()
            self._receive()
        if self._child.alive:
            self._keep_busy()
        else:
            self._child.launch()  # it starts while others measure
        self._done.move_to_end(key)
        return self._done[key]

    def drain(self) -> None:
        """Take in what is ready, and keep the builder busy."""
        while self._sent and self._child.alive and self._child.waiting():
            self._receive()
        if self._waiting:
            self._keep_busy()

    def _enqueue(self, key: Key, config: Config) -> None:
        known = (r.key for r in (*self._waiting, *self._sent.values()))
        if key not in self._done and key not in known:
            self._waiting.append(_Request(key, config))

    def _keep_busy(self) -> None:
        self._child.start()
        if self._starts != self._child.starts:  # a new process knows nothing of what was sent
            self._starts = self._child.starts
            self._waiting.extendleft(reversed(self._sent.values()))
            self._sent.clear()
        while self._waiting and len(self._sent) < (_AHEAD if self._ahead else 1):
            request = replace(self._waiting.popleft(), started=None)
            if request.key in self._done:
                continue
            try:
                number = self._child.send("build", request.key[0], request.config)
            except ChildFailed:  # it died of the one before, which _receive will find out
                self._waiting.appendleft(request)
                return
            self._sent[number] = request

    def _receive(self) -> None:
        """Take in one answer; a builder that crashes or hangs does so on what it had started."""
        started = [r.started for r in self._sent.values() if r.started is not None]
        limit = self._timeout_s
        wait = limit if not started else max(0.0, min(started) + limit - time.monotonic())
        try:
            number, kind, value = self._child.receive(wait, limit)
        except ChildFailed as failure:
            self._lost(failure)
            return
        if kind == "started":
            if number in self._sent:
                self._sent[number].started = value
            return
        request = self._sent.pop(number, None)
        if request is None:
            return
        if kind == "value":
            self._keep(request.key, value)
        else:
            message = told(value) if isinstance(value, LutccError) else str(value)
            self._keep(request.key, Outcome("compile_error", message=message))

    def _lost(self, failure: ChildFailed) -> None:
        """Blame the request that was worked on, and ask again for the others."""
        guilty = next((n for n, r in self._sent.items() if r.started is not None), None)
        number = min(self._sent) if guilty is None else guilty
        status = "timeout" if failure.status == "timeout" else "crash"
        message = f"while it was built: {failure.message}"
        self._keep(self._sent.pop(number).key, Outcome(status, message=message))

    def _keep(self, key: Key, result: Built | Outcome) -> None:
        self._done[key] = result
        while len(self._done) > _KEPT:
            _, old = self._done.popitem(last=False)
            if isinstance(old, Built):
                for path in old.files:
                    path.unlink(missing_ok=True)
