"""Artifacts on disk: a folder, or an uncompressed zip; reading checks first, writing is atomic."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from lutcc.errors import ArtifactError
from lutcc.runtime.files import cannot_write, write_folder, write_whole
from lutcc.runtime.manifest import MANIFEST, MAX_MANIFEST_BYTES, FileEntry, Manifest, read_manifest

_AGAIN = "copy it again, or make it again with lutcc.compile and save"
_COMPILE = "it is a model, not an artifact: compile it first, with lutcc.compile or lutcc compile"
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    ValueError,
    OSError,
    LookupError,
)
# A fixed time stamp, so that equal artifacts are equal files.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def read(path: str | os.PathLike[str]) -> tuple[Manifest, dict[str, bytes]]:
    """Read an artifact and check format, names, sizes and hashes; nothing in it is opened.

    Raises
    ------
    ArtifactError
        When it is missing, truncated, tampered with, of another version, or no artifact at all.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"cannot be read: {getattr(error, 'strerror', None) or error}",
            where=str(path),
            fix="check the path; `artifact.save(path)` writes one",
        ) from error
    if stat.S_ISDIR(mode):
        return _read(_Folder(path), path)
    if not stat.S_ISREG(mode):
        raise ArtifactError("is neither a folder nor a regular file", where=str(path), fix=_AGAIN)
    try:
        with path.open("rb") as stream:
            return _read(_Zip(stream, path), path)
    except PermissionError as error:
        raise ArtifactError(
            f"cannot be read: {error.strerror}", where=str(path), fix="grant read permission"
        ) from error


class _Folder:
    """The files of an artifact folder."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            raise ArtifactError(
                f"cannot be listed: {error.strerror}", where=str(path), fix="grant read permission"
            ) from error
        self.sizes: dict[str, int] = {}
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise ArtifactError(
                    f"holds {entry.name!r}, which is no regular file",
                    where=str(path),
                    fix="an artifact holds only plain files, no links and no folders; remove it",
                )
            self.sizes[entry.name] = entry.stat(follow_symlinks=False).st_size

    def load(self, name: str) -> bytes:
        # O_NOFOLLOW: the file may have become a link since it was listed.
        handle = os.open(self._path / name, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with os.fdopen(handle, "rb") as stream:
            return stream.read(self.sizes[name] + 1)


class _Zip:
    """The entries of an artifact zip.

    Entries are stored without compression, so that an entry is never larger than the file it comes
    from.
    """

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        try:
            self._zip = zipfile.ZipFile(stream)
            infos = self._zip.infolist()
            total = os.fstat(stream.fileno()).st_size
        except _DAMAGE as error:
            raise ArtifactError(
                f"is no readable zip file ({error}): truncated, damaged, or no artifact",
                where=str(path),
                fix=_COMPILE if path.suffix in (".ir", ".pt2") else _AGAIN,
            ) from error
        self.sizes: dict[str, int] = {}
        for info in infos:
            problem = self._problem(info, total)
            if info.filename in self.sizes:
                problem = "occurs twice"
            if problem:
                raise ArtifactError(
                    f"the entry {info.filename!r} {problem}", where=str(path), fix=_AGAIN
                )
            self.sizes[info.filename] = info.file_size
        if sum(self.sizes.values()) > total:
            raise ArtifactError(
                "its entries overlap: together they are larger than the file",
                where=str(path),
                fix=_AGAIN,
            )

    @staticmethod
    def _problem(info: zipfile.ZipInfo, total: int) -> str | None:
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.is_dir() or kind not in (0, stat.S_IFREG):
            return "is no regular file"
        if info.flag_bits & 0x1:
            return "is encrypted"
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            return "is compressed; artifacts store their files as they are (zip -0)"
        if info.file_size > total:
            return f"claims {info.file_size} bytes in a file of {total}"
        return None

    def load(self, name: str) -> bytes:
        return self._zip.read(name)


def _read(source: _Folder | _Zip, path: Path) -> tuple[Manifest, dict[str, bytes]]:
    where = f"{path}/{MANIFEST}"
    size = source.sizes.get(MANIFEST)
    if size is None:
        raise ArtifactError(f"holds no {MANIFEST}: it is no artifact", where=str(path), fix=_AGAIN)
    if size > MAX_MANIFEST_BYTES:
        raise ArtifactError(f"is {size} bytes long, which no manifest is", where=where, fix=_AGAIN)
    manifest = read_manifest(_load(source, MANIFEST, path), where)
    extra = sorted(source.sizes.keys() - manifest.files.keys() - {MANIFEST})
    if extra:
        raise ArtifactError(
            f"holds files that its manifest does not list: {', '.join(map(repr, extra))}",
            where=str(path),
            fix="remove them, or make the artifact again",
        )
    contents: dict[str, bytes] = {}
    for name, entry in manifest.files.items():
        if name not in source.sizes:
            raise ArtifactError(f"the file {name!r} is missing", where=str(path), fix=_AGAIN)
        if source.sizes[name] != entry.size:
            raise ArtifactError(
                f"{name!r} has {source.sizes[name]} bytes, the manifest says {entry.size}",
                where=str(path),
                fix=_AGAIN,
            )
        data = _load(source, name, path)
        if FileEntry.of(data) != entry:
            raise ArtifactError(
                f"the sha256 of {name!r} is not the one in the manifest: the file was changed",
                where=str(path),
                fix=_AGAIN,
            )
        contents[name] = data
    return manifest, contents


def _load(source: _Folder | _Zip, name: str, path: Path) -> bytes:
    try:
        return source.load(name)
    except (*_DAMAGE, MemoryError) as error:
        raise ArtifactError(
            f"{name!r} cannot be read: {error}", where=str(path), fix=_AGAIN
        ) from error


def write(
    path: str | os.PathLike[str],
    manifest: Manifest,
    contents: Mapping[str, bytes],
    *,
    container: str | None = None,
) -> None:
    """Write an artifact as a "zip" or a "folder" (default: zip for ``.lutcc`` and ``.zip``).

    What stood at ``path`` before is there, whole, until the new artifact is.

    Raises
    ------
    ArtifactError
        When ``path`` cannot be written, or holds something that is no artifact.
    """
    path = Path(path)
    if container is None:
        container = "zip" if path.suffix in (".lutcc", ".zip") else "folder"
    if container not in ("zip", "folder"):
        raise ArtifactError(f"container={container!r}", fix="use 'zip' or 'folder'")
    files = {MANIFEST: manifest.to_bytes(), **dict(sorted(contents.items()))}
    if container == "zip":
        _write_zip(path, files)
    else:
        _write_folder(path, files)


def _write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    if path.is_dir():
        raise ArtifactError(
            "is a folder; a zip cannot replace it",
            where=str(path),
            fix="name another path, or pass container='folder'",
        )
    write_whole({path: lambda s: _zipped(s, files)}, error=ArtifactError, nbytes=_total(files))


def _zipped(stream: IO[bytes], files: Mapping[str, bytes]) -> None:
    """Write files as a zip, uncompressed; equal files give equal bytes."""
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name, _EPOCH)
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)


def _write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ArtifactError(
            "is a file; a folder cannot replace it",
            where=str(path),
            fix="name another path, or pass container='zip'",
        )
    if path.is_dir() and any(path.iterdir()) and not (path / MANIFEST).is_file():
        raise ArtifactError(
            "is a folder with other files in it",
            where=str(path),
            fix="name a new folder; only an artifact is overwritten",
        )
    try:
        write_folder(path, files)
    except (OSError, MemoryError) as error:
        raise cannot_write(path, error, ArtifactError, _total(files)) from error


def _total(files: Mapping[str, bytes]) -> int:
    return sum(len(data) for data in files.values())
