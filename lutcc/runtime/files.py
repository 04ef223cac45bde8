"""Files and folders that appear whole or not at all, whatever stops the writing.

What is unfinished lies beside its place under a hidden name and is locked by the process that
writes it. A process that is killed cannot clean up; the lock ends with it, and the next writing to
the same place removes what it left.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lutcc.errors import LutccError

_SUFFIX = ".part"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
#: Names of the new and the old folder in the one that holds what is unfinished.
_NEW, _OLD = "new", "old"


def write_whole(
    writers: Mapping[Path, Callable[[IO[bytes]], object]],
    *,
    error: type[LutccError] = LutccError,
    nbytes: int | None = None,
) -> None:
    """Write files that appear all together when each of them is whole, or not at all.

    Parameters
    ----------
    writers
        For each path, what writes its contents to an open file.
    error
        Class of the error.
    nbytes
        How much is written, for the message.

    Raises
    ------
    LutccError
        When one cannot be written; what was at the paths before is still there.

    Examples
    --------
    >>> write_whole({Path("y.txt"): lambda stream: stream.write(b"7")})  # doctest: +SKIP
    """
    parts: dict[Path, str] = {}
    with contextlib.ExitStack() as held:
        path = Path()
        try:
            for given, write in writers.items():
                path = Path(os.path.realpath(given))  # what a link points to, not the link
                if path.exists() and not path.is_file():  # /dev/stdout, a pipe
                    with path.open("wb") as stream:
                        write(stream)
                    continue
                remove_abandoned(path)
                handle, parts[path] = _unfinished(path)
                held.callback(os.close, handle)  # holds the lock until all are in place
                with os.fdopen(os.dup(handle), "wb") as stream:
                    write(stream)
                    stream.flush()
                    os.fsync(handle)
                os.fchmod(handle, 0o666 & ~umask())
            folders = {path.parent for path in parts}
            for path in list(parts):
                os.replace(parts[path], path)
                del parts[path]
            for folder in folders:
                _sync_folder(folder)
        except (OSError, MemoryError) as problem:
            _discard(parts)
            held.close()  # so that what is told of the room there is does not count it
            raise cannot_write(path, problem, error, nbytes) from problem
        finally:
            _discard(parts)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file whole or not at all.

    Raises
    ------
    LutccError
        When it cannot be written; what was there before is still there.
    """
    data = text.encode()
    write_whole({Path(path): lambda stream: stream.write(data)}, nbytes=len(data))


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files; what was at ``path`` before is there until the new one is.

    Raises
    ------
    OSError
        When it cannot be written; what was there before is still there.
    """
    remove_abandoned(path)
    with _staging(path) as staging:
        fresh, old = staging / _NEW, staging / _OLD
        fresh.mkdir()
        for name, data in files.items():
            with (fresh / name).open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
        _sync_folder(fresh)
        if not path.exists():
            os.rename(fresh, path)
        elif not _exchange(fresh, path):
            os.rename(path, old)
            try:
                os.rename(fresh, path)
            except BaseException:
                os.rename(old, path)
                raise
        _sync_folder(path.parent)


def remove_abandoned(path: Path) -> None:
    """Remove what processes that died while they wrote to ``path`` left beside it."""
    ours = re.compile(
        rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}{re.escape(_SUFFIX)}"
    )  # as tempfile
    try:
        names = os.listdir(path.parent)
    except OSError:
        return
    for name in names:
        if not ours.fullmatch(name):
            continue
        left = path.parent / name
        with contextlib.suppress(OSError), _opened(left) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails where its writer lives
            if not stat.S_ISDIR(os.fstat(handle).st_mode):
                left.unlink()
                continue
            if (left / _OLD).exists() and not path.exists():
                os.rename(left / _OLD, path)
            shutil.rmtree(left, ignore_errors=True)


def cannot_write(
    path: Path,
    problem: OSError | MemoryError,
    kind: type[LutccError] = LutccError,
    nbytes: int | None = None,
) -> LutccError:
    """Return the error to raise for a file that could not be written: where, why, what it needs."""
    if isinstance(problem, MemoryError):
        return kind(
            "cannot be written: out of memory",
            where=str(path),
            fix="close other programs, or write it on a machine with more memory",
        )
    fix = "name a path in an existing folder that may be written"
    if problem.errno in _NO_SPACE:
        need = "" if nbytes is None else f"it takes {nbytes:,} bytes; "
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(path.parent).free
            need += f"{free:,} bytes are free in {str(path.parent)!r}; "
        if problem.errno == errno.EFBIG:
            need += "files may not be larger there, see ulimit -f; "
        fix = f"{need}free some space, or name a path elsewhere"
    return kind(f"cannot be written: {problem.strerror or problem}", where=str(path), fix=fix)


def umask() -> int:
    """Return the process's file-creation mask without changing it where the system tells it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        line = next(line for line in status.splitlines() if line.startswith("Umask:"))
        return int(line.split()[1], 8)
    except (OSError, StopIteration, ValueError):
        return 0o022


def _discard(parts: dict[Path, str]) -> None:
    while parts:
        with contextlib.suppress(OSError):
            os.unlink(parts.popitem()[1])


def _unfinished(path: Path) -> tuple[int, str]:
    """Make a file beside ``path`` for what is to come there, and lock it."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent)
        if _locked(handle):
            return handle, name
        os.close(handle)


@contextmanager
def _staging(path: Path) -> Iterator[Path]:
    """Make a folder beside ``path`` for what is to come there, lock it, and remove it after."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=_SUFFIX, dir=path.parent))
        try:
            with _opened(made) as handle:
                if _locked(handle):
                    yield made
                    return
        finally:
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def _locked(handle: int) -> bool:
    """Lock what was just made; return False if another process cleaned it away before."""
    with contextlib.suppress(OSError):  # a file system without locks: nothing is cleaned up there
        fcntl.flock(handle, fcntl.LOCK_EX)
    return os.fstat(handle).st_nlink > 0


def _sync_folder(folder: Path) -> None:
    """Let the names in a folder survive a power cut, where the file system can."""
    with contextlib.suppress(OSError), _opened(folder) as handle:
        os.fsync(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return whether this system can."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = os.fsencode(one), os.fsencode(other)
    return rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0
