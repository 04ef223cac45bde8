"""Artifacts on disk: whatever was done to the file, the answer is an ArtifactError that says so."""

from __future__ import annotations

import json
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lutcc
from lutcc.errors import ArtifactError, CpuMismatchError, LutccError, TargetError
from lutcc.runtime import Artifact, container, files
from lutcc.runtime.manifest import digest, read_manifest

X = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_zip(
    path: Path,
    files: dict[str, bytes] | list[tuple[str, bytes]],
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    pairs = files.items() if isinstance(files, dict) else files
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in pairs:
            archive.writestr(name, data)
    return path


def edited(files: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> dict[str, bytes]:
    """Return the files with a changed manifest whose digest fits again."""
    manifest = json.loads(files["manifest.json"])
    change(manifest)
    if isinstance(manifest.get("digest"), str):
        manifest["digest"] = digest(manifest)
    return {**files, "manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize("name", ["a.lutcc", "a.zip", "folder", "folder.d"])
def test_round_trip(artifact: Artifact, scale: np.ndarray, tmp_path: Path, name: str) -> None:
    path = artifact.save(tmp_path / name)
    assert path.is_dir() == name.startswith("folder")
    loaded = lutcc.load(path)
    np.testing.assert_array_equal(loaded(X), X * scale)
    assert loaded.manifest == artifact.manifest
    assert loaded.inputs == artifact.inputs
    assert loaded.module == artifact.module
    assert loaded.extra["note"] == "tiny"
    again = loaded.save(tmp_path / f"again-{name}")
    if path.is_file():
        assert again.read_bytes() == path.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, f"again-{name}"])


def test_container_option(artifact: Artifact, tmp_path: Path) -> None:
    assert artifact.save(tmp_path / "x.lutcc", container="folder").is_dir()
    assert artifact.save(tmp_path / "y", container="zip").is_file()
    for name in ("x.lutcc", "y"):
        assert lutcc.load(tmp_path / name)(X).shape == X.shape
    with pytest.raises(ArtifactError, match="'zip' or 'folder'"):
        artifact.save(tmp_path / "z", container="tar")


def test_overwriting(artifact: Artifact, tmp_path: Path) -> None:
    for name in ("a.lutcc", "folder"):
        for _ in range(2):
            artifact.save(tmp_path / name)
        assert lutcc.load(tmp_path / name)(X).shape == X.shape
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    with pytest.raises(ArtifactError, match="other files"):
        artifact.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "dear"
    with pytest.raises(ArtifactError, match="is a folder"):
        artifact.save(tmp_path / "mine", container="zip")
    with pytest.raises(ArtifactError, match="is a file"):
        artifact.save(tmp_path / "a.lutcc", container="folder")
    with pytest.raises(ArtifactError, match="cannot be written"):
        artifact.save(tmp_path / "nowhere" / "a.lutcc")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.lutcc", "folder", "mine"]


@pytest.mark.parametrize("name", ["a.lutcc", "folder"])
def test_failed_write_leaves_the_old_artifact(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = artifact.save(tmp_path / name)

    def broken(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(ArtifactError, match="No space left"):
        artifact.save(path)
    monkeypatch.undo()
    assert lutcc.load(path)(X).shape == X.shape
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_failed_swap_restores_the_folder(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifact.save(tmp_path / "folder")
    rename = os.rename

    def broken(source: Any, target: Any) -> None:
        if Path(source).name == "new":
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(files, "_exchange", lambda *_: False)  # as on systems that cannot
    monkeypatch.setattr(os, "rename", broken)
    with pytest.raises(ArtifactError, match="Input/output"):
        artifact.save(path)
    monkeypatch.undo()
    assert lutcc.load(path)(X).shape == X.shape
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_not_there_or_something_else(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"(?s)nothing.lutcc: cannot be read.*No such file"):
        lutcc.load(tmp_path / "nothing.lutcc")
    (tmp_path / "text.lutcc").write_text("hello")
    with pytest.raises(ArtifactError, match="no readable zip"):
        lutcc.load(tmp_path / "text.lutcc")
    (tmp_path / "empty.lutcc").touch()
    with pytest.raises(ArtifactError, match="no readable zip"):
        lutcc.load(tmp_path / "empty.lutcc")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        lutcc.load(tmp_path / "folder")
    with pytest.raises(ArtifactError, match=r"no manifest\.json"):
        lutcc.load(write_zip(tmp_path / "other.zip", {"a": b"b"}))
    os.mkfifo(tmp_path / "pipe.lutcc")
    with pytest.raises(ArtifactError, match="neither a folder nor a regular file"):
        lutcc.load(tmp_path / "pipe.lutcc")
    with pytest.raises(ArtifactError, match="cannot be read"):
        lutcc.load("nul\0byte")


def test_truncated_anywhere(saved: Path, tmp_path: Path) -> None:
    data = saved.read_bytes()
    path = tmp_path / "cut.lutcc"
    cuts = {*range(0, len(data), max(1, len(data) // 200)), len(data) - 1, 1, 2, 3, 4, 22}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        with pytest.raises(ArtifactError):
            lutcc.load(path)


def test_a_changed_byte_anywhere(saved: Path, tmp_path: Path) -> None:
    """A flipped byte is refused, or it hit something that says nothing (a time stamp, say)."""
    data = saved.read_bytes()
    good = container.read(saved)
    path = tmp_path / "flip.lutcc"
    rng = np.random.default_rng(0)
    heads = [len(data) - i for i in range(1, 500)]
    refused = 0
    for offset in [*rng.integers(0, len(data), 150).tolist(), *heads]:
        changed = bytearray(data)
        changed[offset] ^= int(rng.integers(1, 256))
        path.write_bytes(changed)
        try:
            assert container.read(path) == good
        except ArtifactError:
            refused += 1
    assert refused > 400


@pytest.mark.parametrize(
    "name", ["kernels-avx2.so", "kernels-avx512.so", "constants.safetensors", "module.ir"]
)
@pytest.mark.parametrize("how", ["byte", "longer", "shorter", "missing"])
def test_tampered_files(saved: Path, tmp_path: Path, name: str, how: str) -> None:
    files = entries(saved)
    data = files[name]
    middle = len(data) // 2
    if how == "byte":
        files[name] = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
    elif how == "longer":
        files[name] = data + b"\0"
    elif how == "shorter":
        files[name] = data[:-1]
    else:
        del files[name]
    folder = tmp_path / "folder"
    folder.mkdir()
    for key, value in files.items():
        (folder / key).write_bytes(value)
    for path in (write_zip(tmp_path / "a.lutcc", files), folder):
        with pytest.raises(ArtifactError, match=f"(?s){name}.*To mend it"):
            lutcc.load(path)


def test_extra_and_doubled_entries(saved: Path, tmp_path: Path) -> None:
    files = entries(saved)
    path = tmp_path / "a.lutcc"
    with pytest.raises(ArtifactError, match=r"does not list: 'virus\.py'"):
        lutcc.load(write_zip(path, {**files, "virus.py": b"import os"}))
    for name in ("../../evil", "/etc/passwd", "a/b", "kernels-avx2.so/x"):
        with pytest.raises(ArtifactError, match="does not list"):
            lutcc.load(write_zip(path, {**files, name: b"x"}))
    with (
        pytest.warns(UserWarning, match="Duplicate name"),
        pytest.raises(ArtifactError, match=r"'module\.ir' occurs twice"),
    ):
        lutcc.load(write_zip(path, [*files.items(), ("module.ir", files["module.ir"])]))
    with pytest.raises(ArtifactError, match="no regular file"):
        lutcc.load(write_zip(path, {**files, "folder/": b""}))


def test_compressed_entries_are_refused(saved: Path, tmp_path: Path) -> None:
    """So no small file can unfold into a large one."""
    path = write_zip(tmp_path / "a.lutcc", entries(saved), zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match=r"(?s)is compressed.*zip -0"):
        lutcc.load(path)


def test_links_are_refused(saved: Path, tmp_path: Path) -> None:
    files = entries(saved)
    path = tmp_path / "a.lutcc"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            kind = stat.S_IFLNK if name == "module.ir" else stat.S_IFREG
            info.external_attr = (kind | 0o644) << 16
            archive.writestr(info, data)
    with pytest.raises(ArtifactError, match=r"'module\.ir' is no regular file"):
        lutcc.load(path)
    folder = tmp_path / "folder"
    lutcc.load(saved).save(folder)
    shutil.move(folder / "module.ir", tmp_path / "elsewhere")
    (folder / "module.ir").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"'module\.ir', which is no regular file"):
        lutcc.load(folder)


def test_lying_zip_directory(saved: Path, tmp_path: Path) -> None:
    """Sizes in the central directory that the file cannot hold, and encrypted flags."""
    data = bytearray(saved.read_bytes())
    start = data.find(b"PK\x01\x02")
    huge = bytearray(data)
    struct.pack_into("<II", huge, start + 20, 2**31, 2**31)
    locked = bytearray(data)
    struct.pack_into("<H", locked, start + 8, 1)
    for changed, pattern in ((huge, "claims 2147483648 bytes"), (locked, "encrypted")):
        path = tmp_path / "a.lutcc"
        path.write_bytes(changed)
        with pytest.raises(ArtifactError, match=pattern):
            lutcc.load(path)


@pytest.mark.parametrize(
    ("version", "writer", "told", "fix"),
    [
        (2, "7.0", "lutcc 7.0; this lutcc", "pip install --upgrade lutcc"),
        (
            0,
            "0.0.1.dev3",
            "lutcc 0.0.1.dev3, is no longer read",
            "load it with lutcc 0.0.1.dev3",
        ),
        (2, "\n" * 9, "an unknown version of lutcc; this", "upgrade"),
        (2, None, "an unknown version of lutcc; this", "upgrade"),
    ],
)
def test_other_format_versions(
    saved: Path, tmp_path: Path, version: int, writer: str | None, told: str, fix: str
) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest.update(format_version=version, lutcc_version=writer, what_is_new=1)
        if version > 1:
            del manifest["variants"]

    with pytest.raises(ArtifactError, match=r"\$\.format_version") as raised:
        lutcc.load(write_zip(tmp_path / "a.lutcc", edited(entries(saved), change)))
    assert f"format {version}, written by {told}" in raised.value.what
    assert fix in (raised.value.fix or "")


def test_an_artifact_of_the_first_format() -> None:
    """Written on 2026-11-26 by lutcc 0.1.0; later versions must read it and find the same."""
    path = Path(__file__).parent / "stored" / "format-1.zip"
    artifact = lutcc.load(path)
    assert artifact.manifest.lutcc_version == "0.1.0"
    with np.load(path.with_suffix(".npz")) as stored:
        np.testing.assert_array_equal(artifact(stored["x"]), stored["y"])
        (want,) = lutcc.ir.interpret(artifact.module, [stored["x"]])
        np.testing.assert_array_equal(want, stored["y"])


def test_manifest_digest(saved: Path, tmp_path: Path) -> None:
    files = entries(saved)
    files["manifest.json"] = files["manifest.json"].replace(b'"per_row": 1', b'"per_row": 0')
    with pytest.raises(ArtifactError, match=r"\$\.digest.*changed after writing"):
        lutcc.load(write_zip(tmp_path / "a.lutcc", files))


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "unknown key": (lambda m: m.update(filez=1), r"\$: unknown key 'filez'; did you mean 'files'"),
    "format": (lambda m: m.update(format="onnx"), r"\$\.format: expected 'lutcc-artifact'"),
    "kind": (lambda m: m.update(kind="gpu"), r"\$\.kind: expected one of 'ir', 'relax'"),
    "no inputs": (lambda m: m.update(inputs=[]), r"\$\.inputs: expected 1 to"),
    "dtype": (
        lambda m: m["inputs"][0].update(dtype="complex64"),
        r"\$\.inputs\[0\]\.dtype: expected one of",
    ),
    "negative size": (
        lambda m: m["inputs"][0].update(shape=[["n", 1], -1]),
        r"\$\.inputs\[0\]\.shape\[1\]: -1 is not from",
    ),
    "boolean size": (
        lambda m: m["inputs"][0].update(shape=[["n", 1], True]),
        r"\$\.inputs\[0\]\.shape\[1\]: expected a whole number, got true or false",
    ),
    "path escape": (
        lambda m: m["files"].update({"../evil": m["files"]["module.ir"]}),
        r"\$\.files: '\.\./evil' is no file name",
    ),
    "absolute path": (
        lambda m: m["files"].update({"/etc/passwd": m["files"]["module.ir"]}),
        r"\$\.files: '/etc/passwd' is no file name",
    ),
    "variant outside": (
        lambda m: m["variants"][0].update(file="../kernels.so"),
        r"\$\.variants\[0\]\.file: expected a file name",
    ),
    "variant of nothing": (
        lambda m: m["variants"][0].update(file="kernels-other.so"),
        r"which is not in \$\.files",
    ),
    "isa": (lambda m: m["variants"][0].update(isa="sse9"), r"\$\.variants\[0\]\.isa"),
    "isa twice": (
        lambda m: (
            m["variants"][1].update(isa="avx2"),
            m["variants"][1]["program"].update(isa="avx2"),
        ),
        r"\$\.variants: an ISA level occurs twice",
    ),
    "features left out": (
        lambda m: m["variants"][1].update(features=[]),
        r"\$\.variants: entry 1 leaves out the CPU flags",
    ),
    "signature": (
        lambda m: m["inputs"][0].update(shape=[["n", 1], 17]),
        r"\$\.inputs: differs from \$\.variants\[0\]\.program\.inputs",
    ),
    "entry": (
        lambda m: m["variants"][0]["program"].update(entry="a b"),
        r"\$\.variants\[0\]\.program\.entry: expected an identifier",
    ),
    "blob": (
        lambda m: m["variants"][0]["program"]["blob"][0].update(offset=2**30),
        r"\$\.variants\[0\]\.program\.blob\[0\]: ends at byte",
    ),
    "workspace": (
        lambda m: m["variants"][0]["program"]["workspace"].update(per_row="1"),
        r"workspace\.per_row: expected a whole number, got a string",
    ),
    "sha256": (
        lambda m: m["files"]["module.ir"].update(sha256="0"),
        r"\$\.files\.module\.ir\.sha256: expected a sha256",
    ),
    "stray file": (
        lambda m: m["files"].update({"b.bin": m["files"]["module.ir"]}),
        r"'b\.bin' is neither a variant",
    ),
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_manifest_schema_names_the_path(saved: Path, name: str) -> None:
    change, pattern = CHANGES[name]
    files = edited(entries(saved), change)
    with pytest.raises(ArtifactError, match=f"(?s){pattern}.*To mend it"):
        read_manifest(files["manifest.json"], "here")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        (b"", "no valid JSON"),
        (b"\xff\xfe", "no valid JSON"),
        (b'{"format": "lutcc-artifact", "format": "x"}', "occurs twice"),
        (b'{"format": NaN}', "NaN is no JSON number"),
        (b"[" * 100_000, "no valid JSON"),
        (b'{"format": "lutcc-artifact", "format_version": ' + b"9" * 5000 + b"}", "no valid JSON"),
        (b"[]", "expected an object, got a list"),
        (b"null", "expected an object, got null"),
    ],
)
def test_not_json(text: bytes, pattern: str) -> None:
    with pytest.raises(ArtifactError, match=pattern):
        read_manifest(text, "here")


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["../x", "avx2", "n", "float32", "kernels-avx2.so"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


def _spots(value: Any) -> list[tuple[Any, Any]]:
    """Return (parent, key) of everything in a JSON value."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    found = []
    for key in keys:
        found += [(value, key), *_spots(value[key])]
    return found


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_mutated_manifests_never_crash(saved: Path, data: st.DataObject) -> None:
    """Whatever replaces a part of the manifest, reading it gives a manifest or an ArtifactError."""
    manifest = json.loads(entries(saved)["manifest.json"])
    for _ in range(data.draw(st.integers(1, 3))):
        spots = _spots(manifest)
        parent, key = spots[data.draw(st.integers(0, len(spots) - 1))]
        action = data.draw(st.sampled_from(["replace", "delete", "add"]))
        if action == "delete":
            del parent[key]
        elif action == "add" and isinstance(parent, dict):
            parent[data.draw(st.text(max_size=8))] = data.draw(_JSON)
        else:
            parent[key] = data.draw(_JSON)
    if data.draw(st.booleans()):
        manifest["digest"] = digest(manifest)
    parsed = error = None
    try:
        parsed = read_manifest(json.dumps(manifest).encode(), "here")
    except ArtifactError as caught:
        error = caught
    if error is not None:
        assert str(error).startswith("here: ")
        assert error.fix
    else:
        assert parsed is not None
        assert read_manifest(parsed.to_bytes(), "again") == parsed


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_random_bytes_are_no_manifest(text: bytes) -> None:
    with pytest.raises(ArtifactError):
        read_manifest(text, "here")


def test_safetensors_that_lies(saved: Path, tmp_path: Path) -> None:
    """The hash fits but the file is no safetensors, or lacks a constant the kernels need."""
    from lutcc.runtime import constants
    from lutcc.runtime.manifest import FileEntry

    for data, pattern in (
        (b"\xff" * 64, "no safetensors file"),
        (constants.dump({"other": X}), "need the constant 'scale', which is missing"),
        (constants.dump({"scale": X[0, :3]}), None),
        (constants.dump({"scale": np.arange(1000, dtype=np.float32)}), "cannot be packed"),
    ):
        files = {**entries(saved), "constants.safetensors": data}
        entry = FileEntry.of(data)
        files = edited(
            files,
            lambda m, e=entry: m["files"].update(
                {"constants.safetensors": {"size": e.size, "sha256": e.sha256}}
            ),
        )
        path = write_zip(tmp_path / "a.lutcc", files)
        if pattern is None:
            lutcc.load(path)
        else:
            with pytest.raises(ArtifactError, match=f"(?s){pattern}"):
                lutcc.load(path)


def test_a_library_that_is_none(saved: Path, tmp_path: Path) -> None:
    from lutcc.runtime.manifest import FileEntry

    def swap(manifest: dict[str, Any]) -> None:
        for variant in manifest["variants"]:
            entry = FileEntry.of(junk)
            manifest["files"][variant["file"]] = {"size": entry.size, "sha256": entry.sha256}

    junk = b"\x7fELF" + b"\0" * 500
    files = edited(entries(saved), swap)
    files.update(dict.fromkeys((n for n in files if n.endswith(".so")), junk))
    with pytest.raises(ArtifactError, match="dynamic linker refuses"):
        lutcc.load(write_zip(tmp_path / "a.lutcc", files))


def test_other_cpu(saved: Path, make_artifact, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("LUTCC_MAX_ISA", "avx2")
    loaded = lutcc.load(saved)
    assert loaded.isa == "avx2"
    assert loaded(X).shape == X.shape
    assert "lacks" in str(loaded.explain())
    with pytest.raises(CpuMismatchError, match=r"(?s)avx512 needs avx512f.*target='avx2'"):
        lutcc.load(saved, isa="avx512")
    with pytest.raises(TargetError, match="no variant 'avx512_vbmi_vnni'"):
        lutcc.load(saved, isa="avx512_vbmi_vnni")
    monkeypatch.setenv("LUTCC_MAX_ISA", "none")
    with pytest.raises(CpuMismatchError, match=r"(?s)avx2 needs.*avx2.*unset LUTCC_MAX_ISA"):
        lutcc.load(saved)
    unread = Artifact.read(saved)
    assert unread.isa is None
    assert unread.explain().chosen is None
    with pytest.raises(CpuMismatchError):
        unread(X)
    made = make_artifact("avx512")  # for another processor: makes, saves, does not run
    made.save(tmp_path / "cross.lutcc")
    monkeypatch.setenv("LUTCC_MAX_ISA", "sse")
    with pytest.raises(TargetError, match="LUTCC_MAX_ISA"):
        lutcc.load(saved)


@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_variant_by_name(saved: Path, scale: np.ndarray, isa: str) -> None:
    from lutcc.runtime import cpu

    if isa not in cpu.supported_isas():
        pytest.skip(f"the CPU lacks {isa}")
    loaded = lutcc.load(saved, isa=isa)
    assert loaded.isa == isa
    np.testing.assert_array_equal(loaded(X), X * scale)


def test_explain(saved: Path) -> None:
    loaded = lutcc.load(saved)
    explanation = loaded.explain()
    facts = explanation.to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert explanation.chosen is not None
    assert facts["isa"] == loaded.isa == explanation.chosen.isa
    assert facts["kernels"] == [
        {"stage": "main.0", "ops": ["affine"], "config": {"rows": 1}, "source": "default"}
    ]
    assert facts["table_bytes"] == 128
    text = str(explanation)
    for part in (
        "variants",
        f"* {loaded.isa}",
        "runs: the best level",
        "scale: float32 16",
        "affine",
    ):
        assert part in text


def test_every_error_is_a_lutcc_error() -> None:
    assert issubclass(ArtifactError, LutccError)
    assert issubclass(CpuMismatchError, ArtifactError)
