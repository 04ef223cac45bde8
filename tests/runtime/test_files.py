"""Writing whole or not at all: full disks, no memory, interrupts and processes that are killed."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

import lutcc
from lutcc.errors import ArtifactError, LutccError
from lutcc.runtime import Artifact, files

OLD, NEW = b"what was there", b"what is to come"


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, hidden ones too."""
    found = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "problem", [OSError(errno.ENOSPC, "No space left on device"), MemoryError()]
)
@pytest.mark.parametrize("there", [True, False])
def test_a_write_that_fails_in_the_middle(
    tmp_path: Path, problem: BaseException, there: bool
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for path in (one, two) if there else ():
        path.write_bytes(OLD)
    before = contents(tmp_path)

    def fail(stream: IO[bytes]) -> None:
        stream.write(NEW)
        raise problem

    with pytest.raises(ArtifactError, match=r"two: cannot be written") as raised:
        files.write_whole(
            {one: lambda stream: stream.write(NEW), two: fail}, error=ArtifactError, nbytes=30
        )
    assert contents(tmp_path) == before
    told = raised.value.fix or ""
    if isinstance(problem, OSError):
        assert "30 bytes" in told
        assert f"are free in {str(tmp_path)!r}" in told
    else:
        assert "out of memory" in raised.value.what
    files.write_whole({one: lambda stream: stream.write(NEW), two: lambda s: s.write(NEW)})
    assert contents(tmp_path) == {"one": NEW, "two": NEW}


def test_an_interrupt_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_bytes(OLD)

    def interrupted(stream: IO[bytes]) -> None:
        stream.write(NEW)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole({path: interrupted})
    assert contents(tmp_path) == {"one": OLD}


@pytest.mark.parametrize("name", ["a.lutcc", "folder"])
@pytest.mark.parametrize("there", [True, False])
def test_no_room_for_an_artifact(
    artifact: Artifact, tmp_path: Path, name: str, there: bool
) -> None:
    path = tmp_path / name
    if there:
        artifact.save(path)
    before = contents(tmp_path)
    with file_size_limit(4096), pytest.raises(ArtifactError, match="File too large") as raised:
        artifact.save(path)
    assert contents(tmp_path) == before
    assert f"it takes {artifact.nbytes + len(artifact.manifest.to_bytes()):,} bytes" in str(
        raised.value
    )
    assert "ulimit" in str(raised.value)
    assert lutcc.load(artifact.save(path)).manifest == artifact.manifest


def test_no_memory_for_an_artifact(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifact.save(tmp_path / "folder")
    before = contents(tmp_path)

    def broken(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("lutcc.runtime.bundle.pack", broken)
    with pytest.raises(ArtifactError, match="out of memory"):
        artifact.save(path, packed=True)
    monkeypatch.undo()
    assert contents(tmp_path) == before


KILLED = """
import sys, time
from pathlib import Path
from lutcc.runtime import files

def hang(*_):
    print("in the middle", flush=True)
    time.sleep(600)

path = Path(sys.argv[2])
if sys.argv[1] == "file":
    files.write_whole({path: lambda stream: (stream.write(b"half"), stream.flush(), hang())})
else:
    if sys.argv[1] == "folder":
        files._sync_folder = hang  # the new folder is written, nothing is moved yet
    else:
        files._exchange = lambda *_: False
        rename = files.os.rename
        files.os.rename = lambda a, b: hang() if Path(a).name == "new" else rename(a, b)
    files.write_folder(path, {"one": b"half"})
"""


@pytest.mark.parametrize("when", ["file", "folder", "between the two moves"])
def test_a_killed_process(tmp_path: Path, when: str) -> None:
    path = tmp_path / "model"
    if when == "file":
        path.write_bytes(OLD)
    else:
        path.mkdir()
        (path / "one").write_bytes(OLD)
    before = contents(tmp_path)
    command = [sys.executable, "-c", KILLED, when, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"in the middle\n"
        during = contents(tmp_path)
        files.remove_abandoned(path)  # not abandoned: its writer lives
        assert contents(tmp_path) == during
        assert len(during) == 2 or when == "folder"
        running.send_signal(signal.SIGKILL)
    assert contents(tmp_path) == during  # nobody could clean up
    files.remove_abandoned(path)
    assert contents(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    path = tmp_path / "folder"
    for data in ({"one": OLD, "two": OLD}, {"one": NEW}, {"three": NEW}):
        files.write_folder(path, data)
        assert contents(path) == data
        assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    names = (".a.txt.part", ".a.txt.x", "a.x.part", ".b.txt.12345678.part", ".a.12345678.part")
    mine = {name: tmp_path / name for name in names}
    for path in mine.values():
        path.write_bytes(OLD)
    files.write_text(tmp_path / "a.txt", "text")
    assert set(contents(tmp_path)) == {*mine, "a.txt"}
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~files.umask()


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    with pytest.raises(LutccError, match="No such file") as raised:
        files.write_text(tmp_path / "nowhere" / "a.txt", "text")
    assert "existing folder" in (raised.value.fix or "")
    assert os.listdir(tmp_path) == []


def test_links_and_pipes_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    for data in ("first", "second"):
        files.write_text(tmp_path / "link", data)
        assert (tmp_path / "there" / "real").read_text() == data
    assert (tmp_path / "link").is_symlink()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE) as reader:
        files.write_text(pipe, "through")
        assert reader.communicate()[0] == b"through"
    assert pipe.is_fifo()
