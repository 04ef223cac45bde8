"""Artifacts for C and C++: the packed tables, the exported folder, the layouts of the header."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lutcc
from lutcc.errors import ArtifactError
from lutcc.runtime import Artifact, container
from lutcc.runtime.export import HEADER, NATIVE, native_sources
from lutcc.runtime.kernel import LookupKernel
from lutcc.runtime.manifest import digest
from tests.runtime.native_build import CC, CXX


def test_packed_artifacts(artifact: Artifact, tmp_path: Path, scale: np.ndarray) -> None:
    path = artifact.save(tmp_path / "packed.lutcc", packed=True)
    loaded = lutcc.load(path)
    kernel = loaded.kernel
    assert isinstance(kernel, LookupKernel)
    packed = loaded.file(f"packed-{loaded.isa}.bin")
    assert packed == kernel.blob.tobytes()
    assert packed[:64] == scale.tobytes()
    x = np.arange(48, dtype=np.float32).reshape(3, 16)
    np.testing.assert_array_equal(loaded(x), x * scale)
    # It stays packed, whatever is asked for; without constants to pack, nothing changes.
    loaded.save(tmp_path / "again.lutcc")
    assert (tmp_path / "again.lutcc").read_bytes() == path.read_bytes()
    assert {v.packed for v in artifact.manifest.variants} == {None}


def test_packed_tables_that_do_not_fit(artifact: Artifact, tmp_path: Path) -> None:
    changes: list[tuple[Callable[[dict], object], str]] = [
        (lambda b: b["variants"][0].update(packed="more.bin"), "not in \\$.files"),
        (lambda b: b["variants"][0].update(packed="../x"), "expected a file name"),
        (lambda b: b["files"]["packed-avx2.bin"].update(size=64), "has 64 bytes.*says 256"),
        (lambda b: b["variants"][0].pop("packed"), "neither a variant"),
    ]
    for change, message in changes:
        folder = artifact.save(tmp_path / "folder", packed=True, container="folder")
        body = json.loads((folder / "manifest.json").read_text())
        change(body)
        body["digest"] = digest(body)
        (folder / "manifest.json").write_text(json.dumps(body))
        with pytest.raises(ArtifactError, match=message):
            container.read(folder)


def test_export(artifact: Artifact, tmp_path: Path) -> None:
    folder = artifact.export_c(tmp_path / "some" / "folder")
    assert {path.name for path in folder.iterdir()} == {
        "CMakeLists.txt",
        "example.cpp",
        "lutcc",
        "model.lutcc",
    }
    sources = {path.name for path in native_sources()} - {"example.cpp"} | {HEADER.name}
    assert {"CMakeLists.txt", "lutcc.cpp", "tvm_abi.hpp"} < sources
    assert {path.name for path in (folder / "lutcc").iterdir()} == sources
    assert artifact.export_c(folder) == folder  # over what is there


def test_what_cannot_be_written(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="cannot be written"):
        artifact.export_c(tmp_path / "file")


HEADER_IN_C = r"""
#include "lutcc.h"
int main(void) {
  lutcc_options options = LUTCC_OPTIONS;
  int64_t shape[2] = {1, 2};
  lutcc_tensor x = lutcc_dense(0, LUTCC_FLOAT, 32, 2, shape);
  lutcc_model* model = 0;
  return lutcc_load("m", &options, &model) || lutcc_run(model, &x, 1, &x, 1);
}
"""

LAYOUTS = r"""
#include <dlpack/dlpack.h>
#include <tvm/ffi/c_api.h>
#include <cstddef>
#include "tvm_abi.hpp"
#define SAME(a, b) static_assert((a) == (b), #a " is not " #b)
using namespace lutcc;
SAME(sizeof(lutcc_tensor), sizeof(DLTensor));
SAME(offsetof(lutcc_tensor, device_type), offsetof(DLTensor, device));
SAME(offsetof(lutcc_tensor, ndim), offsetof(DLTensor, ndim));
SAME(offsetof(lutcc_tensor, dtype), offsetof(DLTensor, dtype));
SAME(offsetof(lutcc_tensor, shape), offsetof(DLTensor, shape));
SAME(offsetof(lutcc_tensor, strides), offsetof(DLTensor, strides));
SAME(offsetof(lutcc_tensor, byte_offset), offsetof(DLTensor, byte_offset));
SAME(sizeof(lutcc_dtype), sizeof(DLDataType));
SAME(offsetof(lutcc_dtype, bits), offsetof(DLDataType, bits));
SAME(offsetof(lutcc_dtype, lanes), offsetof(DLDataType, lanes));
SAME(int(LUTCC_INT), int(kDLInt));
SAME(int(LUTCC_UINT), int(kDLUInt));
SAME(int(LUTCC_FLOAT), int(kDLFloat));
SAME(int(LUTCC_BFLOAT), int(kDLBfloat));
SAME(int(LUTCC_BOOL), int(kDLBool));
SAME(1, int(kDLCPU));
SAME(sizeof(TvmObject), sizeof(TVMFFIObject));
SAME(offsetof(TvmObject, type_index), offsetof(TVMFFIObject, type_index));
SAME(sizeof(TvmAny), sizeof(TVMFFIAny));
SAME(offsetof(TvmAny, integer), offsetof(TVMFFIAny, v_int64));
SAME(sizeof(TvmBytes), sizeof(TVMFFIByteArray));
SAME(offsetof(TvmErrorCell, message), offsetof(TVMFFIErrorCell, message));
SAME(offsetof(TvmSeqCell, size), offsetof(TVMFFISeqCell, size));
SAME(sizeof(ManagedTensor), sizeof(DLManagedTensor));
SAME(offsetof(ManagedTensor, deleter), offsetof(DLManagedTensor, deleter));
SAME(int(kTvmNone), int(kTVMFFINone));
SAME(int(kTvmInt), int(kTVMFFIInt));
SAME(int(kTvmBool), int(kTVMFFIBool));
SAME(int(kTvmDLTensorPtr), int(kTVMFFIDLTensorPtr));
SAME(int(kTvmRawStr), int(kTVMFFIRawStr));
SAME(int(kTvmObjects), int(kTVMFFIStaticObjectBegin));
SAME(int(kTvmTensor), int(kTVMFFITensor));
SAME(int(kTvmArray), int(kTVMFFIArray));
"""


@pytest.mark.skipif(not (CC and CXX), reason="there is no C and C++ compiler")
def test_header_and_layouts(tmp_path: Path) -> None:
    """The header is plain C; the structs are those that tvm_ffi declares."""
    import tvm_ffi.libinfo

    (tmp_path / "header.c").write_text(HEADER_IN_C)
    (tmp_path / "layouts.cpp").write_text(LAYOUTS)
    theirs = Path(tvm_ffi.libinfo.__file__).parent / "include"
    strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", f"-I{HEADER.parent}"]
    folders = [f"-I{HEADER.parent}", f"-I{NATIVE}", f"-I{theirs}"]
    for command in (
        [CC, "-std=c99", *strict, "header.c"],
        [CXX, "-std=c++17", "-fsyntax-only", *folders, "layouts.cpp"],
    ):
        done = subprocess.run(
            [str(word) for word in command], cwd=tmp_path, capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr.decode()
