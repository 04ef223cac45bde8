"""Subjects whose kernels behave and misbehave on demand; imported by the runner's processes too."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutcc.schedules.space import Config, Knob, Space
from lutcc.tuning.task import Candidate, Task
from lutcc.tuning.workload import Workload

SIZE, ROOTS = 4096, 4
ACTS = (
    "fine", "twice", "slow", "very_slow", "wrong", "nan", "untouched", "raise", "raise_lutcc",
    "build_abort", "build_llvm_error", "build_hang", "build_print", "run_strlen", "run_abort",
    "run_sleep", "crash_when_timed",
)  # fmt: skip
_WORK = {"twice": 2, "slow": 40, "very_slow": 20_000, "run_spin": 2**30}


def lengthened(x: np.ndarray) -> np.ndarray:
    """Return ``sqrt(x * x + 1)``, ``ROOTS`` times over, as the kernels compute it."""
    for _ in range(ROOTS):
        x = np.sqrt(x * x + np.float32(1))
    return x


@dataclass(frozen=True)
class Lengthen:
    """Takes roots of ``SIZE`` floats; ``act`` says what else happens.

    Roots keep the processor busy, so that its time does not hang on where the arrays lie: copying
    16 KiB took four times as long at some addresses, or after some other loops.
    """

    inputs_raise: bool = False
    reference_exits: bool = False

    def inputs(self, seed: int) -> list[np.ndarray]:
        if self.inputs_raise:
            raise ValueError("no inputs today")
        return [np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)]

    def reference(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self.reference_exits:
            print("giving up", file=sys.stderr, flush=True)
            os._exit(7)
        return [lengthened(inputs[0])]

    def candidate(
        self, config: Config, isa: str, mcpu: str | None, inputs: Sequence[np.ndarray]
    ) -> Candidate:
        act = str(config["act"])
        if act == "raise":
            raise RuntimeError("first line\nthe telling line")
        if act == "raise_lutcc":
            from lutcc.errors import CompileError

            raise CompileError("registers have run out", where="stage", fix="smaller tiles")
        if act == "build_abort":
            print("about to abort", file=sys.stderr, flush=True)
            os.abort()
        if act == "build_hang":
            time.sleep(1000)
        while act == "build_spin":  # holding the interpreter's lock
            pass
        if act == "build_print":
            os.write(1, b"x" * 300000)
        module = build(act)
        return Candidate(module, "main", [inputs[0], np.zeros(SIZE, np.float32)], (1,))

    def compare(self, got: Sequence[np.ndarray], want: Sequence[np.ndarray]) -> str | None:
        wrong = int((got[0] != want[0]).sum())
        return f"{wrong} of {SIZE} elements are wrong" if wrong else None


def build(act: str) -> object:
    """Return TVM's module of the kernel."""
    from lutcc.codegen.tvm_setup import import_tvm

    tvm = import_tvm()
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as T

    with IRBuilder() as ib:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            T.func_attr({"global_symbol": "main", "tirx.noalias": True})
            x = T.match_buffer(T.arg("x", T.handle()), (SIZE,), "float32", align=4)
            y = T.match_buffer(T.arg("y", T.handle()), (SIZE,), "float32", align=4)
            step = T.float32(2.0 if act == "wrong" else 1.0)
            if act == "nan":
                step = T.float32(float("nan"))

            def roots(value: Any) -> Any:
                for _ in range(ROOTS):
                    value = T.sqrt(value * value + step)
                return value

            if act == "crash_when_timed":  # that is, on the second call
                with T.If(y[0] == roots(x[0])), T.Then():
                    T.evaluate(T.call_extern("int32", "abort"))
            with T.serial(0, _WORK.get(act, 1)), T.serial(0, SIZE) as i:
                if act != "untouched":
                    T.buffer_store(y, roots(x[i]), [i])
            if act == "build_llvm_error":  # an instruction that the target lacks
                bytes64 = T.broadcast(T.int8(1), 64)
                shuffled = T.call_llvm_pure_intrin(
                    "int8x64",
                    "llvm.x86.avx512.pshuf.b.512",
                    bytes64,
                    T.reinterpret("int8x64", x[T.ramp(0, 1, 16)]),
                )
                T.buffer_store(y, T.reinterpret("float32x16", shuffled), [T.ramp(0, 1, 16)])
            for name, value in (("abort", None), ("sleep", T.int32(1000)), ("strlen", T.int64(8))):
                if act == f"run_{name}":
                    given = () if value is None else (value,)
                    T.evaluate(T.call_extern("int32", name, *given))
        function = ib.get()
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64"})
    return tvm.tirx.build(tvm.IRModule({"main": function}), target=target)


def task(subject: Lengthen | None = None, *, cache: str = "hot") -> Task:
    """Return a task whose space is what the kernel may do."""
    space = Space((Knob("act", ACTS),), {"act": "fine"})
    workload = Workload("stage", "lengthen", "lengthen", 0, cache=cache)
    return Task("lengthen", workload, space, subject or Lengthen(), "avx2")
