"""Artifacts on a processor without AVX-512, by user-mode emulation (qemu-x86_64)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from tests.runtime import native_build

QEMU = shutil.which("qemu-x86_64") or shutil.which("qemu-x86_64-static")
#: A processor with AVX2, which QEMU emulates from 7.2 on, and without AVX-512, which it does not.
PROCESSOR = "Haswell"
ROWS, COLUMNS = 33, 64
LEVELS = "avx2,avx512"
#: Prints what it ran and writes what it found.
SCRIPT = """
import sys, numpy, lutcc
_, model, given, found, *shape = sys.argv
artifact = lutcc.load(model)
artifact(numpy.fromfile(given, "float32").reshape([int(n) for n in shape])).tofile(found)
print(artifact.isa)
"""


@cache
def emulates() -> bool:
    """Tell whether there is a QEMU that runs a program and has AVX2 in its processor."""
    if QEMU is None or not sys.platform.startswith("linux"):
        return False
    code = "from lutcc.runtime import cpu; print(cpu.best_isa())"
    return emulated(sys.executable, "-c", code).stdout.strip() == b"avx2"


def emulated(*command: object, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run a program on the emulated processor."""
    return subprocess.run(
        [str(QEMU), "-cpu", PROCESSOR, *map(str, command)],
        input=data,
        capture_output=True,
        timeout=300,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "LUTCC_MAX_ISA"},
    )


# A text is evaluated when a test is about to run.
pytestmark = [
    pytest.mark.skipif(
        "not emulates()",
        reason="needs qemu-x86_64 7.2 or newer (the package qemu-user), which emulates AVX2",
    ),
    pytest.mark.isa("avx2"),
]


@pytest.fixture(scope="module")
def layer() -> lutcc.ir.Module:
    """A look-up layer."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((500, COLUMNS)).astype(np.float32)
    return lutcc.fit.Maddness(ncodebooks=8).fit(A, rng.standard_normal((COLUMNS, 40))).to_ir()


@pytest.fixture(scope="module")
def folder(layer: lutcc.ir.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds look.lutcc of both levels, wide.lutcc of AVX-512 alone, mixed.lutcc, and inputs."""
    folder = tmp_path_factory.mktemp("emulation")
    lutcc.compile(layer, target=LEVELS).save(folder / "look.lutcc", packed=True)
    lutcc.compile(layer, target="avx512").save(folder / "wide.lutcc", packed=True)
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    example = torch.zeros(2, 5, 32)
    mixed = lutcc.compile(model, example, target=LEVELS, dynamic={0: "n", 1: "length"})
    assert mixed.kind == "relax"
    mixed.save(folder / "mixed.lutcc")
    rng = np.random.default_rng(1)
    rng.standard_normal((ROWS, COLUMNS)).astype(np.float32).tofile(folder / "look.raw")
    rng.standard_normal((3, 7, 32)).astype(np.float32).tofile(folder / "mixed.raw")
    return folder


@pytest.fixture(scope="module")
def example(folder: Path) -> Path:
    """The C++ example, built by hand and without the sanitizers, which QEMU does not run."""
    if not native_build.CXX:
        pytest.skip("there is no C++ compiler")
    lutcc.load(folder / "look.lutcc").export_c(folder / "exported")
    return native_build.by_hand(native_build.CXX, folder / "exported", folder / "program")


SHAPES = {"look": (ROWS, COLUMNS), "mixed": (3, 7, 32)}


@pytest.mark.parametrize("name", SHAPES)
def test_python_runs_the_avx2_kernels(folder: Path, name: str) -> None:
    """/proc/cpuinfo is that of this machine, whatever the emulated processor can do."""
    model, given, found = folder / f"{name}.lutcc", folder / f"{name}.raw", folder / "found.raw"
    done = emulated(sys.executable, "-c", SCRIPT, model, given, found, *SHAPES[name])
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.strip() == b"avx2"
    x = np.fromfile(given, np.float32).reshape(SHAPES[name])
    expected = lutcc.load(model, isa="avx2")(x)
    assert np.array_equal(np.fromfile(found, np.float32).reshape(expected.shape), expected)


def test_python_refuses_kernels_for_avx512(folder: Path) -> None:
    done = emulated(
        sys.executable, "-c", f"import lutcc; lutcc.load({str(folder / 'wide.lutcc')!r})"
    )
    assert done.returncode == 1
    text = done.stderr.decode()
    assert "no kernels in it run on this processor" in text
    assert "avx512 needs avx512f, avx512bw, avx512cd, avx512dq, avx512vl" in text
    assert "To mend it: compile the model with target='avx2'" in text


def test_c_runs_the_avx2_kernels(folder: Path, example: Path) -> None:
    model, data = folder / "look.lutcc", (folder / "look.raw").read_bytes()
    done = emulated(example, model, ROWS, data=data)
    assert done.returncode == 0, done.stderr.decode()
    assert b"kernels for avx2\n" in done.stderr
    native = subprocess.run(
        [str(example), str(model), str(ROWS)],
        input=data,
        capture_output=True,
        check=True,
        env={**os.environ, "LUTCC_MAX_ISA": "avx2"},
    )
    assert b"kernels for avx2\n" in native.stderr
    assert done.stdout == native.stdout
    expected = lutcc.load(model, isa="avx2")(np.frombuffer(data, np.float32).reshape(ROWS, COLUMNS))
    assert done.stdout == expected.tobytes()


def test_c_refuses_kernels_for_avx512(folder: Path, example: Path) -> None:
    done = emulated(example, folder / "wide.lutcc", ROWS)
    assert done.returncode == 1
    text = done.stderr.decode()
    assert "avx512 needs avx512f, avx512bw, avx512cd, avx512dq, avx512vl" in text
    assert "To mend it: compile the model with target='avx2'" in text
