"""Changed artifacts, and kernels written in C, for test_native.py."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

from lutcc.runtime import ffi
from lutcc.runtime.manifest import digest
from tests.runtime.native_build import CC

Files = dict[str, bytes]

#: A kernel that refuses what it is given.
REFUSING = """
void TVMFFIErrorSetRaisedFromCStrParts(const char*, const char**, int);
int __tvm_ffi_scale(void* self, const void* args, int count, void* result) {
  const char* parts[] = {"row 3 ", 0, "is too large"};
  (void)self, (void)args, (void)count, (void)result;
  TVMFFIErrorSetRaisedFromCStrParts("IndexError", parts, 3);
  return -1;
}
"""

#: A kernel that shares a loop among threads, of which the one with the highest number refuses.
SHARING = """
void TVMFFIErrorSetRaisedFromCStrParts(const char*, const char**, int);
typedef struct { void* handle; int tasks; } env;
typedef int (*loop)(int task, const env*, void*);
int (*__TVMBackendParallelLaunch)(loop, void*, int);
static int body(int task, const env* env, void* data) {
  const char* parts[] = {task == 2 ? "row 2 is too large" : "?"};
  (void)data;
  if (task + 1 != env->tasks) return 0;
  TVMFFIErrorSetRaisedFromCStrParts("IndexError", parts, 1);
  return -1;
}
int __tvm_ffi_scale(void* self, const void* args, int count, void* result) {
  (void)self, (void)args, (void)count, (void)result;
  return 0;
}
int __tvm_ffi_scale_mt(void* self, const void* args, int count, void* result) {
  (void)self, (void)args, (void)count, (void)result;
  return __TVMBackendParallelLaunch(body, 0, 0);
}
"""

#: A kernel that copies its one input, in which a matrix alone may have gaps, to its one output.
COPYING = """
#include <string.h>
#include "tvm_abi.h"
int __tvm_ffi_scale(void* self, const any* args, int count, any* result) {
  const lutcc_tensor *x = args[0].tensor, *y = args[3].tensor;
  long long size = x->dtype.bits / 8, total = 1, i;
  int axis;
  (void)self, (void)result;
  if (count != 5) return -1;
  for (axis = x->ndim - 1; axis >= 0; total *= x->shape[axis--])
    if (y->strides[axis] != total || (x->ndim != 2 && x->strides[axis] != total)) return -1;
  for (i = 0; i < total; ++i) {
    long long rest = i, at = 0;
    for (axis = x->ndim - 1; axis >= 0; rest /= x->shape[axis--])
      at += rest % x->shape[axis] * x->strides[axis];
    memcpy((char*)y->data + i * size, (char*)x->data + at * size, (size_t)size);
  }
  return 0;
}
"""
_ABI = """
#include "lutcc.h"
typedef struct { int type, padding; union { const lutcc_tensor* tensor; long long integer; }; } any;
"""


def rewrite(path: Path, change: Callable[[Files], object]) -> Path:
    """Change the files of a copy of an artifact."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    target = path.parent / f"changed-{os.urandom(4).hex()}.lutcc"
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return target


def edited(change: Callable[[dict], object]) -> Callable[[Files], None]:
    """Return a change of the manifest, which gets a digest that fits."""

    def edit(files: Files) -> None:
        body = json.loads(files["manifest.json"])
        change(body)
        body["digest"] = digest(body)
        files["manifest.json"] = json.dumps(body).encode()

    return edit


def exchanged(source: str, folder: Path) -> Callable[[Files], None]:
    """Return a change of the kernels into some that are written in C."""
    from lutcc.runtime.export import HEADER

    (folder / "kernels.c").write_text(source)
    (folder / "tvm_abi.h").write_text(_ABI)
    command = [str(CC), "-shared", "-fPIC", f"-I{HEADER.parent}", "-o", "kernels.so", "kernels.c"]
    subprocess.run(command, cwd=folder, check=True)
    library = (folder / "kernels.so").read_bytes()
    entry = {"size": len(library), "sha256": hashlib.sha256(library).hexdigest()}

    def exchange(files: Files) -> None:
        for name in ("kernels-avx2.so", "kernels-avx512.so"):
            files[name] = library
            edited(lambda body, n=name: body["files"].update({n: entry}))(files)

    return exchange


def tvm_libraries() -> dict[str, str]:
    runtime = ffi.runtime_library_path()
    spec = importlib.util.find_spec("tvm_ffi")
    assert runtime is not None
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).parent / "lib" / "libtvm_ffi.so"
    return {"LUTCC_TVM_FFI": str(library), "LUTCC_TVM_RUNTIME": str(runtime)}
