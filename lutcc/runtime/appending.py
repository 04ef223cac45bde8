"""Logs of lines: each is appended whole, under a lock, and is on the disk when that returns."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock, Timeout

from lutcc.errors import LogError

_LOCK_SECONDS = 60.0


def lock_of(path: Path) -> FileLock:
    """Return the lock that every writer of a log holds while it writes; makes the folder.

    Raises
    ------
    LogError
        If the folder cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=_LOCK_SECONDS)


def append_line(path: Path, line: str) -> None:
    """Append a line; a last line that a killed writer left unfinished is ended, not removed.

    Parameters
    ----------
    path
        The log; it and its folder are made where they are missing.
    line
        Without its end.

    Raises
    ------
    LogError
        If it cannot be written, or another process holds the lock for a minute.
    """
    try:
        with lock_of(path):
            _append(path, line.encode() + b"\n")
    except Timeout:
        raise LogError(
            f"another process has held its lock for {_LOCK_SECONDS:.0f} s",
            where=str(path),
            fix="end the process that writes this log, or log to another folder",
        ) from None
    except OSError as error:
        raise _unwritable(path, error) from error


def _append(path: Path, line: bytes) -> None:
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        while line:  # a second round only where the disk is full, or a signal came between
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _unwritable(path: Path, error: OSError) -> LogError:
    return LogError(
        f"cannot be written ({error.strerror or error})",
        where=str(path),
        fix="choose a folder that you may write to, with space left",
    )
