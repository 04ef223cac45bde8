"""run with several arrays in one file: by name, in order, damaged, whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lutcc
from lutcc import ir
from lutcc.cli import archives
from lutcc.errors import InputError, LutccError, UsageError
from lutcc.runtime import TensorSpec, files
from lutcc.runtime.bfloat16 import as_numpy

X = np.arange(24, dtype=np.float32).reshape(3, 8)
SCORES = np.arange(12, dtype=np.float32).reshape(3, 4) - 5
EXPECTED = {"narrow": SCORES * 3, "wide": X * 2}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with the inputs x and scores and the outputs narrow and wide."""
    b = ir.Builder("main")
    results = {}
    for name, out, width, factor in (("x", "wide", 8, 2), ("scores", "narrow", 4, 3)):
        given = b.param(name, ir.TensorType((ir.Sym("n"), width), "float32"))
        scale = b.constant(f"{name}.scale", np.full(width, factor, np.float32))
        shift = b.constant(f"{name}.shift", np.zeros(width, np.float32))
        results[out] = b.op("affine", given, scale, shift, name=out)
    b.returns(*(results[name] for name in EXPECTED))
    path = tmp_path_factory.mktemp("two") / "two.lutcc"
    return lutcc.compile(b.module(), target="avx2").save(path)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.savez("named.npz", scores=SCORES, x=X)
    np.savez_compressed("ordered.npz", X, SCORES)
    np.save("x.npy", X)
    np.save("scores.npy", SCORES)
    save_file({"scores": SCORES, "x": X}, "named.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "inputs",
    [
        ["named.npz"],
        ["ordered.npz"],
        ["named.safetensors"],
        ["x.npy", "scores.npy"],
        ["named.npz:x", "named.safetensors:scores"],
    ],
    ids=" ".join,
)
def test_inputs_in_any_form(lutcc_command, two: Path, here: Path, inputs: list[str]):
    done = lutcc_command("run", two, *inputs, "-o", "y.npz", "--threads", 1, "--json", "-q")
    assert done.code == 0, done.err
    outputs = {o["name"]: o for o in done.json["outputs"]}
    assert set(outputs) == set(EXPECTED)
    assert all(o["file"] == "y.npz" for o in outputs.values())
    with np.load("y.npz", allow_pickle=False) as written:
        assert list(written.files) == ["narrow", "wide"]
        for name, expected in EXPECTED.items():
            np.testing.assert_array_equal(written[name], expected)


def test_outputs_in_any_form(lutcc_command, two: Path, here: Path):
    assert lutcc_command("run", two, "named.npz", "-o", "y.safetensors", "-q").code == 0
    written = load_file("y.safetensors")
    assert set(written) == set(EXPECTED)
    done = lutcc_command("run", two, "named.npz", "-o", "1.npy", "-o", "2.npy", "--json", "-q")
    assert [o["file"] for o in done.json["outputs"]] == ["1.npy", "2.npy"]
    for (name, expected), file in zip(EXPECTED.items(), ("1.npy", "2.npy"), strict=True):
        np.testing.assert_array_equal(written[name], expected)
        np.testing.assert_array_equal(np.load(file), expected)
    done = lutcc_command("run", two, "named.npz", "-o", "1.npy", "--json", "-q")
    assert [o["file"] for o in done.json["outputs"]] == ["1.npy", None]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["one.npz"], "one.npz lacks 'scores'"),
        (["three.npz"], "three.npz also holds 'z'"),
        (["typo.npz"], "typo.npz lacks 'scores' and also holds 'scoers'"),
        (["typo.npz"], "'scoers': did you mean 'scores'?"),
        (["nmed.npz"], "no file 'nmed.npz'; did you mean 'named.npz'"),
        (["x.npy"], "1 inputs given, the artifact takes 2"),
        (["named.npz", "x.npy"], "named.npz holds 2 tensors"),
        (["named.npz:y", "x.npy"], "named.npz holds no tensor 'y'"),
        (["named.npz", "-o", "y.txt"], "'y.txt' is neither .npy nor .npz nor .safetensors"),
        (["named.npz", "-o", "y.npz", "-o", "z.npy"], "an archive takes all outputs"),
        (["named.npz", "-o", "y.npy", "-o", "y.npy"], "named twice"),
        (["named.npz", "-o", "1.npy", "-o", "2.npy", "-o", "3.npy"], "3 outputs named"),
        (["named.npz", "-o", "folder.npz"], "'folder.npz' is a folder"),
        (["named.npz", "-o", "no/such/y.npz"], "mkdir -p no/such"),
    ],
)
def test_wrong_names(lutcc_command, two: Path, here: Path, words: list[str], message: str):
    np.savez("one.npz", x=X)
    np.savez("three.npz", x=X, scores=SCORES, z=X)
    np.savez("typo.npz", x=X, scoers=SCORES)
    Path("folder.npz").mkdir()
    before = sorted(os.listdir())
    done = lutcc_command("run", two, *words)
    assert done.code == 2
    assert message in done.err
    assert sorted(os.listdir()) == before


def test_the_name_of_a_single_array_does_not_matter(tmp_path: Path):
    np.savez(tmp_path / "any.npz", whatever=X)
    (read,) = archives.read_inputs([f"{tmp_path}/any.npz"], [TensorSpec("x", (3, 8), "float32")])
    np.testing.assert_array_equal(read, X)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(X.tobytes())] ^= 1
    path.write_bytes(data)


def _pickled(path: Path) -> None:
    np.savez(path, x=np.array([{"a": 1}], dtype=object), scores=SCORES)


def _no_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("scores.npy", b"no array")


def _junk(path: Path) -> None:
    path.write_bytes(b"\x80\x04N.")


def _huge(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive, archive.open("x.npy", "w") as entry:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**50,)}
        np.lib.format.write_array_header_1_0(entry, header)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "is no .npz archive, or it is cut off or damaged"),
        (_flip, "'x' cannot be read"),
        (_pickled, "'x' holds pickled objects, which could run any code and are not read"),
        (_no_array, "'x' cannot be read"),
        (_junk, "is no .npz archive"),
        (_huge, "'x' cannot be read"),
    ],
)
def test_damaged_archives(lutcc_command, two: Path, here: Path, damage, message: str):
    path = Path("bad.npz")
    np.savez(path, x=X, scores=SCORES)
    damage(path)
    done = lutcc_command("run", two, path, "-o", "y.npz")
    assert done.code == 1
    assert message in done.err
    assert "To mend it" in done.err
    assert "Traceback" not in done.err
    assert not Path("y.npz").exists()


def test_a_damaged_safetensors_file(lutcc_command, two: Path, here: Path):
    _cut(Path("named.safetensors"))
    done = lutcc_command("run", two, "named.safetensors")
    assert done.code == 1
    assert "named.safetensors cannot be read" in done.err


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": X.astype(np.float64), "scores": SCORES}, ("argument 'x'", "float64", "float32")),
        ({"x": X, "scores": SCORES[:, :3]}, ("argument 'scores'", "(3, 3)", "must be 4")),
        ({"x": X, "scores": SCORES[:2]}, ("argument 'scores'", "its n is 2", "n = 3")),
    ],
)
def test_the_artifact_says_what_does_not_fit(lutcc_command, two, here, arrays, words):
    np.savez("wrong.npz", **arrays)
    done = lutcc_command("run", two, "wrong.npz", "-o", "y.npz")
    assert done.code == 1
    for word in words:
        assert word in done.err
    assert not Path("y.npz").exists()


@pytest.mark.parametrize("names", [["y.npz"], ["y.safetensors"], ["1.npy", "2.npy"]], ids=" ".join)
def test_nothing_appears_where_a_file_cannot_be_whole(
    lutcc_command, two: Path, here: Path, names: list[str]
):
    limit = two.stat().st_size + 4096  # its kernels go through a temporary file
    n = limit // 24  # the narrow output alone would fit, the wide one and archives do not
    np.savez("large.npz", x=np.zeros((n, 8), "f4"), scores=np.zeros((n, 4), "f4"))
    Path(names[-1]).write_bytes(b"what was there")
    before = sorted(os.listdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))  # as if the disk were full
    try:
        to = [word for name in names for word in ("-o", name)]
        done = lutcc_command("run", two, "large.npz", *to, "-q", "--threads", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.code == 1
    assert f"{names[-1]}: cannot be written: File too large" in done.err
    assert sorted(os.listdir()) == before
    assert Path(names[-1]).read_bytes() == b"what was there"


def test_a_folder_that_turns_out_unwritable(here: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    with pytest.raises(LutccError, match=r"y\.npz: cannot be written: Permission denied"):
        archives.write_outputs([Path("y.npz")], EXPECTED)
    assert not Path("y.npz").exists()


def test_bfloat16_goes_through_safetensors_only(here: Path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    x = torch.linspace(-2, 2, 24).reshape(3, 8).to(torch.bfloat16)
    save_torch({"x": x}, "b.safetensors")
    spec = TensorSpec("x", (3, 8), "bfloat16")
    (read,) = archives.read_inputs(["b.safetensors"], [spec])
    np.testing.assert_array_equal(read, as_numpy(x))
    archives.write_outputs([Path("y.safetensors")], {"x": read})
    assert torch.equal(load_torch("y.safetensors")["x"], x)
    for name in ("y.npz", "y.npy"):
        with pytest.raises(UsageError, match="is bfloat16, which"):
            archives.output_files([name], [spec])


def test_an_element_type_that_no_artifact_takes(here: Path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_torch

    save_torch({"x": torch.zeros(2, 2).to(torch.float8_e4m3fn)}, "f8.safetensors")
    with pytest.raises(InputError, match="element type F8_E4M3"):
        archives.read_inputs(["f8.safetensors"], [TensorSpec("x", (2, 2), "float32")])
