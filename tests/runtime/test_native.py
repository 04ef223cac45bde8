"""liblutcc: artifacts served from C and C++, under AddressSanitizer and UBSan."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc.runtime import Artifact, container, cpu
from lutcc.runtime.signature import DTYPES
from tests.runtime import native_build, test_relax
from tests.runtime.native_artifacts import (
    COPYING,
    REFUSING,
    SHARING,
    edited,
    exchanged,
    rewrite,
    tvm_libraries,
)
from tests.runtime.native_build import Native

# A text is evaluated when a test is about to run, not in every process that collects tests.
pytestmark = pytest.mark.skipif(
    "native_build.lacks()",
    reason="liblutcc needs CMake 3.21, a C++ compiler, and here its AddressSanitizer",
)

executable = test_relax.executable  # a fixture: the library of a model with exact layers
counting = test_relax.counting  # a fixture: an artifact that adds the number of threads


@pytest.fixture(scope="module")
def exported(
    make_artifact: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What export_c writes of the tiny kernel, y[i, j] = x[i, j] * (j + 1)."""
    return make_artifact().export_c(tmp_path_factory.mktemp("exported") / "model")


@pytest.fixture(scope="module")
def native(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Native:
    """The library, built once."""
    return native_build.build(exported, tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def tiny(exported: Path) -> Path:
    """The exported artifact; tests must not change it."""
    return exported / "model.lutcc"


@pytest.fixture(scope="module")
def look_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real look-up layer, 64 columns in and 40 out."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((500, 64)).astype(np.float32)
    layer = lutcc.fit.Maddness(ncodebooks=8).fit(A, rng.standard_normal((64, 40)))
    artifact = lutcc.compile(layer.to_ir(), target="avx2")
    return artifact.save(tmp_path_factory.mktemp("look-up") / "m.lutcc", packed=True)


def rows(n: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, columns)).astype(np.float32)


# Running -------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 5, 33])
def test_example_gives_what_python_gives(native: Native, look_up: Path, n: int) -> None:
    x = rows(n, 64, n)
    done = native.run("example", look_up, n, data=x.tobytes())
    assert done.returncode == 0, done.stderr.decode()
    y = np.frombuffer(done.stdout, np.float32).reshape(n, 40)
    np.testing.assert_array_equal(y, lutcc.load(look_up)(x))
    assert b"input x: float32[1*n, 64]" in done.stderr


@pytest.mark.skipif(native_build.CLANG is None, reason="there is no clang++")
def test_clang_builds_it_without_warnings(exported: Path, look_up: Path, tmp_path: Path) -> None:
    program = native_build.by_hand(str(native_build.CLANG), exported, tmp_path / "clang")
    x = rows(7, 64)
    done = subprocess.run(
        [str(program), str(look_up), "7"], input=x.tobytes(), capture_output=True, check=True
    )
    assert done.stdout == lutcc.load(look_up)(x).tobytes()


def test_example_reports_errors(native: Native, tiny: Path, tmp_path: Path) -> None:
    assert native.run("example", tiny, 3, data=b"short").returncode == 1
    done = native.run("example", tmp_path / "none.lutcc")
    assert done.returncode == 1
    assert b"No such file" in done.stderr


def test_folders_and_zip64(
    native: Native, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Artifact.read(tiny).save(tmp_path / "folder", packed=True, container="folder")
    assert native.check("load", folder).startswith("0 avx")
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    large = rewrite(tiny, lambda files: None)
    assert b"PK\6\6" in large.read_bytes()
    expected = "avx2" if cpu.best_isa() == "avx2" else "avx512"
    assert native.check("load", large) == f"0 {expected}"
    assert native.check("load", large, "avx2") == "0 avx2"


def test_layouts(native: Native, tiny: Path) -> None:
    assert native.check("layouts", tiny) == "15840"


def test_eight_threads(native: Native, look_up: Path, tmp_path: Path) -> None:
    x = rows(200, 64)
    x.tofile(tmp_path / "x")
    lutcc.load(look_up)(x).tofile(tmp_path / "y")
    printed = native.check("threads", look_up, tmp_path / "x", tmp_path / "y", 8, 200)
    assert printed == "1600 calls, 0 wrong"


def test_loops_that_threads_share(native: Native, tmp_path: Path) -> None:
    """Of eight callers, each with a thread beside it; the numbers are those of one thread."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(32, 2048), nn.ReLU(), nn.Linear(2048, 24)).eval()
    artifact = lutcc.compile(layers, torch.zeros(2, 32), target="avx2")
    assert artifact.kind == "ir"
    path = artifact.save(tmp_path / "m.lutcc", packed=True)
    x = rows(200, 32)
    x.tofile(tmp_path / "x")
    artifact.num_threads = 1
    artifact(x).tofile(tmp_path / "y")
    printed = native.check("threads", path, tmp_path / "x", tmp_path / "y", 8, 40)
    assert printed == "320 calls, 0 wrong"
    for threads in (1, 2, 5):
        done = native.run("example", path, 200, threads, data=x.tobytes())
        assert done.stdout == (tmp_path / "y").read_bytes()


def test_a_number_that_one_of_the_threads_refuses(
    native: Native, tiny: Path, tmp_path: Path
) -> None:
    much = edited(lambda body: body["work_per_row"].update(flops=10**9))
    path = rewrite(rewrite(tiny, exchanged(SHARING, tmp_path)), much)
    for _ in range(5):
        done = native.run("example", path, 4, 3, data=rows(4, 16).tobytes())
        assert done.returncode == 1
        assert b"row 2 is too large\nTo mend it: correct the numbers" in done.stderr
    assert native.run("example", path, 4, 1, data=rows(4, 16).tobytes()).returncode == 0


def test_large_outputs_at_any_address(native: Native, look_up: Path, tmp_path: Path) -> None:
    """Kernels store large outputs past the caches, which needs whole cache lines."""
    x = rows(7000, 64)
    assert 7000 * 40 * 4 > 1 << 20
    x.tofile(tmp_path / "x")
    lutcc.load(look_up)(x).tofile(tmp_path / "y")
    assert native.check("unaligned", look_up, tmp_path / "x", tmp_path / "y") == "16 same"


def test_sha256(native: Native) -> None:
    """Without the CPU's instructions; with them it is checked by every artifact that loads."""
    data = bytes(7 * i & 255 for i in range(200))
    expected = [hashlib.sha256(data[:n]).hexdigest() for n in range(200)]
    assert native.check("sha256", 200).split() == expected


PLUGIN = """
import ctypes as C, sys
if sys.argv[3] == "tvm":
    from lutcc.runtime import ffi
    ffi.load_runtime_library("a test")
library = C.CDLL(sys.argv[1])  # local symbols
library.lutcc_error.restype = C.c_char_p
class Tensor(C.Structure):
    _fields_ = [("data", C.c_void_p), ("device", C.c_int32 * 2), ("ndim", C.c_int32),
                ("dtype", C.c_uint8 * 4), ("shape", C.c_void_p), ("strides", C.c_void_p),
                ("offset", C.c_uint64)]
model, numbers, shape, y = C.c_void_p(), (C.c_float * 1232)(), (C.c_int64 * 2)(77, 16), Tensor()
assert not library.lutcc_load(sys.argv[2].encode(), None, C.byref(model)), library.lutcc_error()
x = Tensor(C.addressof(numbers), (1, 0), 2, (2, 32, 1, 0), C.addressof(shape))
print(library.lutcc_run(model, C.byref(x), 1, C.byref(y), 1), library.lutcc_error().decode())
"""


@pytest.mark.parametrize("company", ["alone", "tvm"])
def test_plugin_whose_symbols_are_local(native: Native, tiny: Path, company: str) -> None:
    """Kernels report errors to the library that runs them, also beside TVM's own."""
    preloads = native_build.preloads()
    if preloads is None:
        pytest.skip("the compiler does not say where its sanitizer lies")
    root = str(Path(__file__).resolve().parents[2])
    env = {"LD_PRELOAD": preloads, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONPATH": root}
    command = [sys.executable, "-c", PLUGIN, str(native.library), str(tiny), company]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **env}, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("5 ")
    assert "poisoned" in done.stdout


def test_numbers_that_a_kernel_refuses(native: Native, tiny: Path) -> None:
    path = rewrite(tiny, exchanged(REFUSING, tiny.parent))
    done = native.run("example", path, 1, data=bytes(64))
    assert done.returncode == 1
    assert b"row 3 is too large\nTo mend it: correct the numbers passed in" in done.stderr


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_rank_and_strides(native: Native, tiny: Path, dtype: str) -> None:
    """Inputs and outputs whose axes lie in any order and direction, with gaps, at odd bytes."""
    path = rewrite(tiny, exchanged(COPYING, tiny.parent))
    for shape in ([], [["n", 1]], [3, ["n", 2]], [["n", 2], 3, 1, 4], [2, 1, 3, 1, ["n", 1]]):
        tensor = {"shape": shape, "dtype": dtype}

        def change(body: dict, tensor: dict = tensor) -> None:
            programs = [variant["program"] for variant in body["variants"]]
            for part in (body, *programs):
                part["inputs"] = [{"name": "x", **tensor}]
                part["outputs"] = [{"name": "y", **tensor}]

        ready = rewrite(path, edited(change))
        assert native.check("copies", ready, 30) == "30"
        if shape and shape[0] == ["n", 2]:
            printed = native.run("checks", "copies", ready, 1, "odd").stdout.decode()
            assert "dimension 0 must be a multiple of 2\nTo mend it: pad or cut" in printed


# Exact layers --------------------------------------------------------------------------------


def test_exact_layers(native: Native, executable: Path, tmp_path: Path) -> None:
    x = rows(100, 5)
    names = ("sum", "product")
    artifact = Artifact.from_relax(
        {},
        {"avx2": executable},
        [{"name": "x", "shape": test_relax.SHAPE, "dtype": "float32"}],
        [{"name": n, "shape": test_relax.SHAPE, "dtype": "float32"} for n in names],
        {"w": test_relax.WEIGHT, "another": np.arange(3)},
        ["w"],
        {"bounds": {"n": [1, 50]}},
    )
    path = artifact.save(tmp_path / "exact.lutcc", packed=True)
    libraries = tvm_libraries()
    for n in (0, 1, 7):
        done = native.run("example", path, n, data=x[:n].tobytes(), env=libraries)
        assert done.returncode == 0, done.stderr.decode()
        total, product = np.frombuffer(done.stdout, np.float32).reshape(2, n, 5)
        np.testing.assert_array_equal(total, np.maximum(x[:n] + test_relax.WEIGHT, 0))
        np.testing.assert_array_equal(product, x[:n] * test_relax.WEIGHT)
    done = native.run("example", path, 51, data=x.tobytes(), env=libraries)
    assert b"n is 51, and the model takes 1 to 50\nTo mend it: pass fewer" in done.stderr
    x.tofile(tmp_path / "x")
    np.maximum(x + test_relax.WEIGHT, 0).tofile(tmp_path / "y")
    printed = native.check("threads", path, tmp_path / "x", tmp_path / "y", 8, 50, **libraries)
    assert printed == "400 calls, 0 wrong"
    libraries["LUTCC_TVM_FFI"] = str(tmp_path / "missing.so")
    done = native.run("example", path, 1, data=x.tobytes(), env=libraries)
    assert done.returncode == 1
    assert b"LUTCC_TVM_FFI" in done.stderr


@pytest.mark.thorough
def test_exact_layers_are_told_the_number_of_threads(native: Native, counting: Path) -> None:
    for given, count in (((), 1), ((2,), 2), ((7,), 7)):
        done = native.run("example", counting, 3, *given, data=bytes(60), env=tvm_libraries())
        assert done.returncode == 0, done.stderr.decode()
        assert (np.frombuffer(done.stdout, np.float32) == count).all()


# What is refused -----------------------------------------------------------------------------


def refused(native: Native, path: Path, status: int, *texts: str, options: tuple = ()) -> None:
    printed = native.check("load", path, *options)
    assert printed.startswith(f"{status} "), printed
    assert "To mend it: " in printed
    for text in texts:
        assert text in printed


def test_wrong_calls(native: Native, tiny: Path) -> None:
    printed = native.check("mistakes", tiny).split("\n---\n")
    found = dict(each.split(": ", 1) for each in printed if ": " in each)
    expected = {
        "no model": ("1", "model is NULL"),
        "no inputs": ("1", "inputs is NULL"),
        "no outputs": ("1", "outputs is NULL"),
        "two inputs": ("1", "expected 1 inputs (x: float32[n, 16]), got 2"),
        "no output": ("1", "expected 1 outputs (y: float32[n, 16]), got 0"),
        "dtype": ("1", "input 'x': expected dtype float32 (shape (n, 16)), got float64"),
        "device": ("1", "expected a CPU tensor"),
        "one row": ("1", "a single row needs a leading dimension"),
        "rank": ("1", "expected 2 dimensions (n, 16), got 3"),
        "no shape": ("1", "shape is NULL"),
        "no data": ("1", "data is NULL"),
        "columns": ("1", "got (3, 15): dimension 1 must be 16, not 15"),
        "negative": ("1", "sizes are at least 0"),
        "huge": ("6", "2^63"),
        "output columns": ("1", "output 'y': expected shape (3, 16), got (3, 15)"),
        "output data": ("1", "output 'y': data is NULL"),
        "output dtype": ("1", "output 'y': expected dtype float32"),
        "poisoned": ("5", "poisoned"),
        "fine": ("0", ""),
        "no path": ("1", "path is NULL"),
        "no place": ("1", "model is NULL"),
        "threads": ("1", "-1 is no thread count"),
        "options": ("1", "struct_size is 3"),
    }
    assert found.keys() == expected.keys()
    for label, (status, text) in expected.items():
        assert found[label].startswith(status), label
        assert text in found[label]
        assert ("To mend it: " in found[label]) == (status != "0"), label


def test_processors(native: Native, tiny: Path) -> None:
    refused(native, tiny, 3, "avx2 needs abm", "capped at none", options=("-", "none"))
    refused(native, tiny, 3, "avx512 needs avx512f", options=("avx512", "avx2"))
    refused(native, tiny, 1, "no variant 'sse'", "avx2, avx512", options=("sse",))
    refused(native, tiny, 1, "'avx9' is no instruction-set level", options=("-", "avx9"))
    assert native.check("load", tiny, "-", "avx2") == "0 avx2"
    assert native.check("load", tiny, LUTCC_MAX_ISA="avx2") == "0 avx2"
    assert native.check("load", tiny, LUTCC_MAX_ISA="none").startswith("3 ")


def test_levels_are_those_of_python(native: Native, tiny: Path) -> None:
    for below, level in pairwise(("none", *cpu.ISA_LEVELS)):
        needs, has = list(cpu.ISA_FEATURES[level]), cpu.ISA_FEATURES.get(below, ())

        def change(body: dict, level: str = level, needs: list[str] = needs) -> None:
            del body["variants"][0]
            body["variants"][0].update(isa=level, features=needs)
            body["variants"][0]["program"].update(isa=level, features=needs)
            del body["files"]["kernels-avx2.so"], body["files"]["packed-avx2.bin"]

        def both(files: dict[str, bytes], change: Callable[[dict], object] = change) -> None:
            del files["kernels-avx2.so"], files["packed-avx2.bin"]
            edited(change)(files)

        path = rewrite(tiny, both)
        lacks = set(needs) - set(has) | set(cpu.missing(needs))
        text = f"{level} needs {', '.join(flag for flag in needs if flag in lacks)}\n"
        refused(native, path, 3, text, f"capped at {below}", options=("-", below))


def test_paths_and_temporary_folders(native: Native, tiny: Path, tmp_path: Path) -> None:
    refused(native, tmp_path / "none", 2, "No such file or directory")
    refused(native, Path("/dev/null"), 2, "neither a folder nor a regular file")
    refused(native, tmp_path, 2, "holds no manifest.json")
    (tmp_path / "link").symlink_to(tiny)
    refused(native, tmp_path, 2, "'link', which is no regular file")
    (tmp_path / "text").write_text("no artifact")
    refused(native, tmp_path / "text", 2, "no readable zip file")
    refused(native, tiny, 2, "temporary folder", options=("-", "-", tmp_path / "text"))
    assert not list(tmp_path.glob("lutcc-*"))
    assert native.check("load", tiny, "-", "-", tmp_path).startswith("0 ")
    assert not list(tmp_path.glob("lutcc-*"))


def test_damaged_bytes(native: Native, tiny: Path, tmp_path: Path) -> None:
    counts = native.check("damage", tiny, tmp_path / "damaged.lutcc", 150).split()
    refusals, loads = map(int, counts)  # time stamps of the zip may be anything
    assert refusals + loads == 150
    assert refusals > 130


def test_files_that_do_not_fit(native: Native, tiny: Path, saved: Path) -> None:
    changes: list[tuple[Callable[[dict[str, bytes]], object], str]] = [
        (lambda f: f.update({"more": b""}), "its manifest does not list: 'more'"),
        (lambda f: f.pop("module.ir"), "'module.ir' is missing"),
        (lambda f: f.update({"module.ir": b"short"}), "has 5 bytes, the manifest says"),
        (
            lambda f: f.update({"packed-avx2.bin": bytes(256), "packed-avx512.bin": bytes(256)}),
            "the sha256 of 'packed-avx",
        ),
        (lambda f: f.update({"manifest.json": b"{"}), "is no valid JSON"),
        (lambda f: f.update({"manifest.json": b'{"a": 1, "a": 2}'}), "the key 'a' occurs twice"),
        (lambda f: f.update({"manifest.json": b"[" * 999}), "nested too deeply"),
        (lambda f: f.update({"manifest.json": b'{"a": "\xff"}'}), "no UTF-8"),
    ]
    for change, text in changes:
        refused(native, rewrite(tiny, change), 2, text)
    changed = rewrite(tiny, lambda files: None)
    with zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", " " * 99)
    refused(native, changed, 2, "is compressed")
    refused(native, saved, 2, "not packed", "packed=True")


def test_manifests_that_do_not_fit(native: Native, tiny: Path) -> None:
    def first(body: dict) -> dict:
        return body["variants"][0]

    changes: list[tuple[Callable[[dict], object], str]] = [
        (lambda b: b.update(format="zip"), "$.format: expected 'lutcc-artifact'"),
        (
            lambda b: b.update(format_version=2, lutcc_version="7.0"),
            "has format 2, written by lutcc 7.0; this library reads 1",
        ),
        (
            lambda b: b.update(format_version=0, lutcc_version="\n"),
            "has format 0, written by an unknown version of lutcc; this library reads 1",
        ),
        (lambda b: b.update(format_version=1.5), "expected a whole number, got a number ('1.5')"),
        (lambda b: b.pop("modules"), "$: the key 'modules' is missing"),
        (lambda b: b.update(more=1), "unknown key 'more'"),
        (lambda b: b.update(kind="exe"), "$.kind: expected 'ir' or 'relax'"),
        (lambda b: b["inputs"][0].update(dtype="float8"), "$.inputs[0].dtype: 'float8'"),
        (lambda b: b["inputs"].append(b["inputs"][0]), "differs from $.inputs"),
        (lambda b: b.update(outputs=[]), "$.outputs: expected 1 to 256 entries, got 0"),
        (lambda b: first(b).update(isa="sse"), "$.variants[0].isa: 'sse'"),
        (lambda b: first(b).update(file="other.so"), "$.variants[0].file: is not in $.files"),
        (lambda b: first(b).update(packed="../x"), "$.variants[0].packed: expected a file name"),
        (lambda b: first(b)["features"].pop(), "leaves out the CPU flag"),
        (lambda b: first(b)["program"].update(blob_nbytes=999), "the program says 999"),
        (lambda b: first(b)["program"]["workspace"].update(fixed=-1), "-1 is not from 0"),
        (lambda b: b["files"].update({"a/b": {}}), "'a/b' is no file name"),
        (lambda b: b["modules"].append("x.ir"), "$.modules: expected ['module.ir']"),
    ]
    for change, text in changes:
        refused(native, rewrite(tiny, edited(change)), 2, text.strip("[]"))
    path = rewrite(tiny, lambda f: f.update({"manifest.json": f["manifest.json"] + b" "}))
    assert native.check("load", path).startswith("0 ")  # white space is not hashed


def test_digests_of_any_extra(native: Native, tmp_path: Path, tiny: Path) -> None:
    """The library hashes the same canonical JSON as Python."""
    manifest, contents = container.read(tiny)
    text = 'quote " back \\ slash / \b\f\n\r\t \x01 \x7f \xe9 \u20ac \U0001f600'
    extra = {"text": text, text: [1, -2.5, 1e-7, 1e22, True, None, {}, [], {"b": 1, "a": [[]]}]}
    path = tmp_path / "extra.lutcc"
    container.write(path, replace(manifest, extra=extra), contents)
    assert native.check("load", path).startswith("0 ")
