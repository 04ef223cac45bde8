"""Autotuning: sessions that search each kernel's space on a processor, and the logs they leave."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOME = {
    "EFFORTS": "options",
    "Event": "progress",
    "LogFile": "logfile",
    "OpSpec": "oplist",
    "Progress": "progress",
    "Record": "records",
    "Session": "session",
    "SessionOptions": "options",
    "Summary": "progress",
    "Task": "task",
    "Workload": "workload",
    "read_ops": "oplist",
    "tune": "api",
}

if TYPE_CHECKING:
    from lutcc.tuning.api import tune as tune
    from lutcc.tuning.logfile import LogFile as LogFile
    from lutcc.tuning.oplist import OpSpec as OpSpec
    from lutcc.tuning.oplist import read_ops as read_ops
    from lutcc.tuning.options import EFFORTS as EFFORTS
    from lutcc.tuning.options import SessionOptions as SessionOptions
    from lutcc.tuning.progress import Event as Event
    from lutcc.tuning.progress import Progress as Progress
    from lutcc.tuning.progress import Summary as Summary
    from lutcc.tuning.records import Record as Record
    from lutcc.tuning.session import Session as Session
    from lutcc.tuning.task import Task as Task
    from lutcc.tuning.workload import Workload as Workload

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'lutcc.tuning' has no attribute {name!r}")
    return getattr(importlib.import_module(f"lutcc.tuning.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
