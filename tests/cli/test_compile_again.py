"""compile, again: the same files and options give the same artifact at once, others do not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import lutcc
from tests.cli.support import Files


@pytest.fixture
def compiled(lutcc_command: Any, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that compiles with a cache and returns the output and what it said."""
    monkeypatch.setenv("LUTCC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*options: object, model: Path = files.module, output: str = "k.lutcc") -> Any:
        done = lutcc_command("compile", model, "-t", "avx2", "-o", output, "--json", *options)
        assert done.code == 0, done.err
        return Path(output), done

    return run


def entries(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("artifact-*"))


def test_the_same_again(compiled: Any, tmp_path: Path) -> None:
    first, told = compiled()
    assert told.json["cache"] == {"hits": 0, "misses": 3}
    data = first.read_bytes()
    first.unlink()
    second, again = compiled(output="other.lutcc")
    assert again.json["cache"] == {"hits": 1, "misses": 0}
    assert "compiled before" in again.err
    assert second.read_bytes() == data
    assert lutcc.load(second).manifest == lutcc.Artifact.read(second).manifest
    skipped = ("output", "seconds", "cache")
    assert {k: v for k, v in again.json.items() if k not in skipped} == {
        k: v for k, v in told.json.items() if k not in skipped
    }


def test_what_makes_another_artifact(compiled: Any, files: Files, tmp_path: Path) -> None:
    compiled()
    _, told = compiled("--packed")
    assert told.json["cache"] == {"hits": 2, "misses": 1}  # its kernels were there
    changed = tmp_path / "changed.ir"
    changed.write_text(files.module.read_text().replace("@main", "@main ", 1))
    _, told = compiled(model=changed)
    assert told.json["cache"]["misses"] >= 1
    logs = tmp_path / "logs"
    logs.mkdir()
    _, told = compiled("--tuning-logs", logs)
    assert told.json["cache"] == {"hits": 2, "misses": 1}
    assert len(entries(tmp_path)) == 4
    _, told = compiled("--no-cache")
    assert told.json["cache"] is None
    folder, told = compiled(output="folder")
    assert folder.is_dir()
    assert told.json["cache"] == {"hits": 2, "misses": 0}


def test_a_damaged_entry(compiled: Any, tmp_path: Path) -> None:
    output, _ = compiled()
    data = output.read_bytes()
    (entry,) = entries(tmp_path)
    kept = entry.read_bytes()
    entry.write_bytes(kept[:-9] + bytes([kept[-9] ^ 1]) + kept[-8:])
    _, told = compiled()
    assert told.json["cache"] == {"hits": 2, "misses": 1}
    assert output.read_bytes() == data
    assert entry.read_bytes() == kept


def test_a_failure_keeps_the_old_artifact(
    compiled: Any, lutcc_command: Any, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, _ = compiled()
    data = output.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    for option in ("--packed", "--quiet"):  # compiled now; from the cache
        done = lutcc_command("compile", files.module, "-t", "avx2", "-o", output, option)
        assert done.code == 1
        assert "k.lutcc: cannot be written: No space left on device" in done.err
        assert "bytes are free" in done.err
        assert output.read_bytes() == data
        assert sorted(p.name for p in Path().iterdir()) == ["cache", "k.lutcc"]
