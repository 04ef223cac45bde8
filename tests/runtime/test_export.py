"""The C header and the C++ example, compiled and run without Python or TVM."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lutcc.errors import ArtifactError
from lutcc.runtime import Artifact

CXX = shutil.which("c++") or shutil.which("g++") or ""
CC = shutil.which("cc") or shutil.which("gcc") or ""
pytestmark = pytest.mark.skipif(not (CXX and CC), reason="there is no C and C++ compiler")


@pytest.fixture
def exported(artifact: Artifact, tmp_path: Path) -> Path:
    return artifact.export_c(tmp_path / "exported")


def run(*command: str, cwd: Path, data: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, cwd=cwd, input=data, capture_output=True, timeout=60, check=False
    )


def test_cpp_example(artifact: Artifact, exported: Path, scale: np.ndarray) -> None:
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
    library = f"kernels-{artifact.isa}.so"
    built = run(
        CXX, *flags, "example.cpp", library, "-Wl,-rpath,$ORIGIN", "-o", "example", cwd=exported
    )
    assert built.returncode == 0, built.stderr.decode()
    needed = run("ldd", "./example", cwd=exported).stdout.decode()
    assert "tvm" not in needed.replace(str(exported), "")
    for n in (1, 5, 33):
        x = np.random.default_rng(n).standard_normal((n, 16)).astype(np.float32)
        done = run("./example", str(n), cwd=exported, data=x.tobytes())
        assert done.returncode == 0, done.stderr.decode()
        y = np.frombuffer(done.stdout, np.float32).reshape(n, 16)
        np.testing.assert_array_equal(y, x * scale)
    done = run("./example", "77", cwd=exported, data=bytes(77 * 64))
    assert done.returncode == 1
    assert b"poisoned" in done.stderr
    assert run("./example", "5", cwd=exported).returncode == 1


PLAIN_C = r"""
#define LUTCC_IMPLEMENTATION
#include "model.h"
static _Alignas(64) unsigned char blob[LUTCC_MODEL_BLOB_BYTES], space[1 << 16];
int main(void) {
  float x[16 * 4], y[2 * 16];
  int64_t in[2] = {2, 16}, out[2] = {2, 16}, strides[2] = {1, 4}, own[2];
  lutcc_tensor tensors[2];
  FILE* f = fopen("model.blob", "rb");
  int i;
  if (!f || fread(blob, 1, sizeof blob, f) != sizeof blob) return 2;
  for (i = 0; i < 64; ++i) x[i] = (float)i;
  lutcc_fill(&tensors[0], x, LUTCC_FLOAT, 32, 2, in, strides, NULL); /* columns 4 apart */
  lutcc_fill(&tensors[1], y, LUTCC_FLOAT, 32, 2, out, NULL, own);
  if (lutcc_run(LUTCC_MODEL_ENTRY, &tensors[0], 1, blob, sizeof blob, space, sizeof space,
                &tensors[1], 1)) return 3;
  for (i = 0; i < 32; ++i) if (y[i] != (float)((i / 16 + 4 * (i % 16)) * (i % 16 + 1))) return 4;
  in[1] = 15;
  if (!lutcc_run(LUTCC_MODEL_ENTRY, &tensors[0], 1, blob, sizeof blob, space, sizeof space,
                 &tensors[1], 1)) return 5;
  puts(lutcc_last_error());
  return 0;
}
"""


def test_plain_c_with_strides_and_an_error(artifact: Artifact, exported: Path) -> None:
    (exported / "plain.c").write_text(PLAIN_C)
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror"]
    library = f"kernels-{artifact.isa}.so"
    built = run(CC, *flags, "plain.c", library, "-Wl,-rpath,$ORIGIN", "-o", "plain", cwd=exported)
    assert built.returncode == 0, built.stderr.decode()
    done = run("./plain", cwd=exported)
    assert done.returncode == 0
    assert b"Error" in done.stdout


def test_layouts_are_those_of_tvm_ffi(tmp_path: Path) -> None:
    """The structs of lutcc.h are the ones that tvm_ffi declares."""
    import tvm_ffi.libinfo

    source = r"""
#include <dlpack/dlpack.h>
#include <tvm/ffi/c_api.h>
#include <stddef.h>
#include "lutcc.h"
#define SAME(a, b) _Static_assert((a) == (b), #a " is not " #b)
SAME(sizeof(lutcc_tensor), sizeof(DLTensor));
SAME(offsetof(lutcc_tensor, device_type), offsetof(DLTensor, device));
SAME(offsetof(lutcc_tensor, ndim), offsetof(DLTensor, ndim));
SAME(offsetof(lutcc_tensor, code), offsetof(DLTensor, dtype));
SAME(offsetof(lutcc_tensor, shape), offsetof(DLTensor, shape));
SAME(offsetof(lutcc_tensor, strides), offsetof(DLTensor, strides));
SAME(offsetof(lutcc_tensor, byte_offset), offsetof(DLTensor, byte_offset));
SAME(sizeof(lutcc_any), sizeof(TVMFFIAny));
SAME(offsetof(lutcc_any, value), offsetof(TVMFFIAny, v_ptr));
SAME(1, kTVMFFIInt);
SAME(7, kTVMFFIDLTensorPtr);
SAME(1, kDLCPU);
SAME(LUTCC_FLOAT, kDLFloat);
SAME(LUTCC_UINT, kDLUInt);
SAME(LUTCC_INT, kDLInt);
"""
    from lutcc.runtime.export import HEADER

    (tmp_path / "check.c").write_text(source)
    include = Path(tvm_ffi.libinfo.__file__).parent / "include"
    command = [CC, "-std=c11", "-fsyntax-only", f"-I{include}", f"-I{HEADER.parent}", "check.c"]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()


def test_what_cannot_be_exported(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"):
        artifact.export_c(tmp_path / "file")
