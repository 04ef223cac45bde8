"""What compiling made before, by what it was made of: the same kernels are not built twice.

An entry is a file named by the sha256 of all that its contents depend on, with lutcc's own code and
the versions of the compiler among it. It is written under another name and then renamed, so that
compilations in several processes share a folder, and one that is interrupted leaves whole entries
or none: the next goes on with those.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lutcc.errors import InputError

FOLDER_VARIABLE = "LUTCC_CACHE_DIR"
SIZE_VARIABLE = "LUTCC_CACHE_MB"
DEFAULT_MB = 2048
#: What :data:`FOLDER_VARIABLE` says to turn the cache off.
OFF = "off"

_MAGIC = b"lutcc-cache-1"
_SUFFIX = ".entry"
_PARTIAL = ".part"
#: A file under another name that is this old was left by a process that died.
_ABANDONED_SECONDS = 3600.0
#: Folders of lutcc whose code decides what is compiled.
_CODE = ("codegen", "frontend", "ir", "runtime", "schedules")
_PACKAGES = ("apache-tvm", "apache-tvm-ffi", "torch", "numpy")


@dataclass(frozen=True, slots=True)
class Entry:
    """What was kept: plain data and bytes."""

    data: Any
    blob: bytes = b""


@dataclass
class CompileCache:
    """A folder of entries of bounded size; those not used for longest go first.

    Nothing in it is ever needed: an entry that is damaged is removed and made again, and where the
    folder cannot be written nothing is kept.

    Attributes
    ----------
    folder
        Made when something is first kept, for this user only: entries hold machine code.
    limit
        Bytes.
    hits, misses
        How many entries were asked for and there, or not there.

    Examples
    --------
    >>> cache = CompileCache(Path("cache"), limit=1 << 30)  # doctest: +SKIP
    >>> key = cache.key("library", text)  # doctest: +SKIP
    >>> entry = cache.get(key)  # doctest: +SKIP
    """

    folder: Path
    limit: int
    hits: int = 0
    misses: int = 0
    _room: int | None = field(default=None, repr=False)

    @property
    def largest(self) -> int:
        """Bytes of the largest entry that is kept: others should have room too."""
        return self.limit // 4

    @staticmethod
    def key(kind: str, *parts: Any) -> str:
        """Return the name of an entry: of its kind and the digest of all that it depends on.

        ``parts`` are texts, bytes, or plain data. Code of lutcc and the compiler's versions are
        added.
        """
        hashed = hashlib.sha256(code_digest().encode())
        for part in parts:
            plain = (
                part
                if isinstance(part, bytes)
                else part.encode()
                if isinstance(part, str)
                else json.dumps(part, sort_keys=True).encode()
            )
            hashed.update(f"{len(plain)}:".encode() + plain)
        return f"{kind}-{hashed.hexdigest()}"

    def get(self, key: str) -> Entry | None:
        """Return an entry; None if it is not there or damaged (then it is removed)."""
        path = self._path(key)
        entry = None
        try:
            if self.folder.stat().st_uid == os.geteuid():  # another owner's code is not run
                entry = _unframed(path.read_bytes())
                os.utime(path)
        except OSError:
            pass
        except ValueError:
            with contextlib.suppress(OSError):
                path.unlink()
        self.hits += entry is not None
        self.misses += entry is None
        return entry

    def reject(self) -> None:
        """Count the last hit as a miss: the entry turned out to be of no use."""
        self.hits -= 1
        self.misses += 1

    def put(self, key: str, data: Any, blob: bytes = b"") -> None:
        """Keep plain data and bytes, if there is room; older entries make room."""
        framed = _framed(data, blob)
        if len(framed) > self.largest:
            return
        part = None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self.problem() is not None:
                return
            if self._room is None or self._room < len(framed):
                self._room = self._make_room(len(framed))
            handle, part = tempfile.mkstemp(prefix=f"{key}.", suffix=_PARTIAL, dir=self.folder)
            with os.fdopen(handle, "wb") as stream:
                stream.write(framed)
            os.replace(part, self._path(key))
            self._room -= len(framed)
        except BaseException as error:
            if part is not None:
                with contextlib.suppress(OSError):
                    os.unlink(part)
            if not isinstance(error, OSError):
                raise

    def problem(self) -> str | None:
        """Return why nothing can be kept in the folder, or None."""
        nearest = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        if not nearest.is_dir():
            return f"{nearest} is no folder"
        if nearest == self.folder and nearest.stat().st_uid != os.geteuid():
            return f"{nearest} belongs to another user"
        if not os.access(nearest, os.W_OK | os.X_OK):
            return f"{nearest} may not be written"
        return None

    def entries(self) -> dict[Path, os.stat_result]:
        """Return the entries that are there."""
        return _files(self.folder, _SUFFIX)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _make_room(self, wanted: int) -> int:
        """Remove what is too much, and what processes that died left; return the room there is."""
        for path, about in _files(self.folder, _PARTIAL).items():
            if time.time() - about.st_mtime > _ABANDONED_SECONDS:
                path.unlink(missing_ok=True)
        entries = self.entries()
        total = sum(about.st_size for about in entries.values())
        if total + wanted > self.limit:
            for path, about in sorted(entries.items(), key=lambda item: item[1].st_mtime_ns):
                path.unlink(missing_ok=True)
                total -= about.st_size
                if total + wanted <= self.limit * 3 // 4:
                    break
        return self.limit - total


def default_cache() -> CompileCache | None:
    """Return the cache that the environment names; None if it is turned off.

    Raises
    ------
    InputError
        If the variable for its size is no number.
    """
    named = os.environ.get(FOLDER_VARIABLE, "").strip()
    text = os.environ.get(SIZE_VARIABLE, "").strip() or str(DEFAULT_MB)
    if not text.isdecimal():
        raise InputError(
            f"{text!r} is no number of megabytes",
            where=f"environment variable {SIZE_VARIABLE}",
            fix=f"set it to a whole number, such as {DEFAULT_MB}, or unset it",
        )
    if named.lower() == OFF or int(text) == 0:
        return None
    folder = Path(named) if named else _user_folder()
    return None if folder is None else CompileCache(folder, int(text) << 20)


def as_cache(given: bool | str | os.PathLike[str] | CompileCache) -> CompileCache | None:
    """Return the cache that a caller means: True the default one, a path the one there, False none.

    Raises
    ------
    InputError
        If the environment's settings are wrong.
    """
    if isinstance(given, CompileCache):
        return given
    if isinstance(given, bool):
        return default_cache() if given else None
    return CompileCache(Path(given), DEFAULT_MB << 20)


@functools.cache
def code_digest(*folders: str) -> str:
    """Return a digest of lutcc's code that compiles (or in ``folders``), and of what it uses.

    A changed line of code makes other entries, so that nobody who works on lutcc runs old kernels.
    Where a file changed after this process began, which code it runs is not known: its entries are
    for itself.
    """
    import lutcc

    root, began = Path(lutcc.__file__).parent, _process_began()
    hashed = hashlib.sha256(lutcc.__version__.encode())
    for folder in folders or _CODE:
        for path in sorted((root / folder).rglob("*.py")):
            hashed.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
            if path.stat().st_mtime >= began:
                hashed.update(os.urandom(16))
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            hashed.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    return hashed.hexdigest()


def _process_began() -> float:
    """Return when this process began, in seconds as of ``time.time``; infinity if unknown."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return time.time() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return math.inf


def _user_folder() -> Path | None:
    given = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(given):
        return Path(given) / "lutcc"
    try:
        return Path.home() / ".cache" / "lutcc"
    except RuntimeError:  # a user without a home
        return None


def _files(folder: Path, suffix: str) -> dict[Path, os.stat_result]:
    found: dict[Path, os.stat_result] = {}
    try:
        with os.scandir(folder) as listed:
            for item in listed:
                if item.name.endswith(suffix):
                    with contextlib.suppress(OSError):  # another process removed it
                        found[Path(item.path)] = item.stat(follow_symlinks=False)
    except OSError:
        return {}
    return found


def _framed(data: Any, blob: bytes) -> bytes:
    head = json.dumps(data, sort_keys=True).encode()
    body = len(head).to_bytes(8, "little") + head + blob
    return _MAGIC + hashlib.sha256(body).digest() + body


def _unframed(framed: bytes) -> Entry:
    start = len(_MAGIC) + 32
    if not framed.startswith(_MAGIC) or len(framed) < start + 8:
        raise ValueError("not an entry")
    body = memoryview(framed)[start:]
    if hashlib.sha256(body).digest() != framed[len(_MAGIC) : start]:
        raise ValueError("damaged")
    size = int.from_bytes(body[:8], "little")
    return Entry(json.loads(bytes(body[8 : 8 + size])), bytes(body[8 + size :]))
