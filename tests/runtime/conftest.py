"""A tiny kernel with the entry contract of lutcc.codegen, built by hand: y = x * scale.

The runtime's tests use it, so that they test the runtime and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutcc import ir
from lutcc.runtime import Artifact, cpu, threads

COLUMNS = 16
# Rows that the kernel refuses on purpose, to see how an error in a kernel comes out.
POISON_ROWS = 77


def build_library(path: Path, columns: int = COLUMNS) -> Path:
    """Compile the entry functions ``scale`` and ``scale_mt`` into a shared library."""
    os.environ.setdefault("TVM_BIND_THREADS", "0")
    import tvm
    from tvm.script import tirx as T

    width = columns

    @T.prim_func(s_tir=True)
    def scale(a: T.handle, b: T.handle, w: T.handle, o: T.handle, threads: T.int64):
        T.func_attr({"global_symbol": "scale", "tirx.noalias": True})
        n = T.int64()
        s0 = T.int64()
        s1 = T.int64()
        nb = T.int64()
        nw = T.int64()
        A = T.match_buffer(a, (n, T.int64(width)), "float32", strides=[s0, s1], align=4)
        B = T.match_buffer(b, (nb,), "uint8", align=64)
        W = T.match_buffer(w, (nw,), "uint8", align=64)
        Y = T.match_buffer(o, (n, T.int64(width)), "float32", align=4)
        S = T.decl_buffer((T.int64(width),), "float32", data=B.data, align=64)
        assert threads == T.int64(1), "the serial entry takes one thread"
        assert n != T.int64(POISON_ROWS), "poisoned"
        for i in T.serial(n):
            for j in T.serial(T.int64(width)):
                W[i] = T.uint8(1)
                Y[i, j] = A[i, j] * S[j]

    @T.prim_func(s_tir=True)
    def scale_mt(a: T.handle, b: T.handle, w: T.handle, o: T.handle, threads: T.int64):
        T.func_attr({"global_symbol": "scale_mt", "tirx.noalias": True})
        n = T.int64()
        s0 = T.int64()
        s1 = T.int64()
        nb = T.int64()
        nw = T.int64()
        A = T.match_buffer(a, (n, T.int64(width)), "float32", strides=[s0, s1], align=4)
        B = T.match_buffer(b, (nb,), "uint8", align=64)
        W = T.match_buffer(w, (nw,), "uint8", align=64)
        Y = T.match_buffer(o, (n, T.int64(width)), "float32", align=4)
        S = T.decl_buffer((T.int64(width),), "float32", data=B.data, align=64)
        for t in T.parallel(threads):
            for i in T.serial((n + threads - T.int64(1)) // threads):
                if t * ((n + threads - T.int64(1)) // threads) + i < n:
                    for j in T.serial(T.int64(width)):
                        W[t * ((n + threads - T.int64(1)) // threads) + i] = T.uint8(1)
                        Y[t * ((n + threads - T.int64(1)) // threads) + i, j] = (
                            A[t * ((n + threads - T.int64(1)) // threads) + i, j] * S[j]
                        )

    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3"})
    module = tvm.IRModule({"scale": scale, "scale_mt": scale_mt})
    tvm.compile(module, target=target).export_library(str(path))
    return path


def scale_module(scale: np.ndarray) -> ir.Module:
    """Return the IR of the fake kernel: affine without shift."""
    b = ir.Builder("main")
    x = b.param("x", ir.TensorType((ir.Sym("n"), len(scale)), "float32"))
    y = b.op("affine", x, b.constant("scale", scale), b.constant("shift", np.zeros_like(scale)))
    b.returns(y)
    return b.module()


def scale_program(isa: str, columns: int = COLUMNS) -> dict[str, Any]:
    """Return the Program (JSON) of the fake kernel."""
    shape = [["n", 1], columns]
    return {
        "isa": isa,
        "features": list(cpu.ISA_FEATURES[isa]),
        "entry": "scale",
        "inputs": [{"name": "x", "shape": shape, "dtype": "float32"}],
        "outputs": [{"name": "y", "shape": shape, "dtype": "float32"}],
        "blob": [
            {"pack": "vector", "params": {}, "sources": ["scale"], "offset": 0, "nbytes": 256}
        ],
        "blob_nbytes": 256,
        "workspace": {"per_thread": 0, "per_row": 1, "fixed": 0},
        "kernels": [
            {
                "stage": "main.0",
                "ops": ["affine"],
                "config": {"rows": 1},
                "source": "default",
            }
        ],
    }


def scale_array(columns: int = COLUMNS) -> np.ndarray:
    """Return the factors 1, 2, 3, ..."""
    return np.arange(1, columns + 1, dtype=np.float32)


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shared library of the tiny kernel."""
    pytest.importorskip("tvm")
    return build_library(tmp_path_factory.mktemp("library") / "scale.so")


@pytest.fixture(scope="session")
def make_artifact(library: Path) -> Callable[..., Artifact]:
    """Return a function that bundles the tiny kernel for some ISA levels."""

    def make(*isas: str) -> Artifact:
        isas = isas or ("avx2", "avx512")
        return Artifact.from_programs(
            scale_module(scale_array()),
            [scale_program(isa) for isa in isas],
            dict.fromkeys(isas, library),
            {"note": "tiny"},
        )

    return make


@pytest.fixture(scope="session")
def saved(make_artifact: Callable[..., Artifact], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact file; tests must not change it."""
    return make_artifact().save(tmp_path_factory.mktemp("saved") / "scale.lutcc")


@pytest.fixture
def artifact(make_artifact: Callable[..., Artifact]) -> Artifact:
    """A fresh artifact in memory."""
    return make_artifact()


@pytest.fixture(scope="session")
def scale() -> np.ndarray:
    """What the tiny kernel multiplies each column with."""
    return scale_array()


@pytest.fixture(autouse=True)
def _thread_count() -> Iterator[None]:
    """Restore the global thread count."""
    before = threads.state.count, threads.state.asked
    yield
    threads.state.count, threads.state.asked = before
