"""Exercises TVM in a process of its own, because the failures it looks for end the process.

``python -m lutcc.doctor.selftest json`` saves a TIR variable to JSON (overflows the stack with
apache-tvm-ffi 0.1.15); ``python -m lutcc.doctor.selftest build`` compiles, links, loads and runs a
small kernel for this machine. Each prints one line and exits 0, or dies.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TVM_BIND_THREADS", "0")


def save_json() -> str:
    """Save one TIR variable to JSON and read it back."""
    import tvm
    from tvm import tirx

    saved = tvm.ir.save_json(tirx.Var("n", "int32"))
    loaded = tvm.ir.load_json(saved)
    return f"a variable of {len(saved)} JSON characters came back as {loaded}"


def build_kernel() -> str:
    """Compile, link, load and run ``y = 2 x`` for this machine's CPU."""
    import numpy as np
    import tvm
    import tvm_ffi
    from tvm import te

    x = te.placeholder((16,), "float32", name="x")
    y = te.compute((16,), lambda i: x[i] * 2.0, name="y")
    function = te.create_prim_func([x, y]).with_attr("global_symbol", "twice")
    library = tvm.compile(tvm.IRModule({"twice": function}), target="llvm")
    with tempfile.TemporaryDirectory(prefix="lutcc-doctor-") as folder:
        path = Path(folder) / "twice.so"
        library.export_library(str(path))
        kernel = tvm_ffi.load_module(str(path))["twice"]
        memory = np.zeros(64, np.float32)
        first = -memory.ctypes.data % 64 // 4  # TVM's default buffers are aligned to 64 bytes
        given, out = memory[first : first + 16], memory[first + 16 : first + 32]
        given[:] = np.arange(16)
        kernel(tvm_ffi.from_dlpack(given), tvm_ffi.from_dlpack(out))
        if not np.array_equal(out, 2 * given):
            raise SystemExit(f"the compiled kernel gave {out.tolist()}")
    return f"built and ran a kernel with LLVM {llvm_version()}"


def llvm_version() -> int:
    """Return the major version of the LLVM that TVM was built with."""
    import tvm

    return int(tvm.get_global_func("target.llvm_version_major")())


if __name__ == "__main__":
    print({"json": save_json, "build": build_kernel}[sys.argv[1]]())
