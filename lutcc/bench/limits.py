"""What this core can do at best: register-only loops of the instructions that kernels are made of.

Each loop is the instruction mix of one kind of scan with nothing else in it: no loads, no stores,
independent accumulators. A kernel cannot be faster; its share of the limit says what is left.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import TargetError, suggest
from lutcc.schedules.x86.isa import Isa, isa_by_name


@dataclass(frozen=True, slots=True)
class Mix:
    """Instructions of a loop body.

    Attributes
    ----------
    name
        As printed.
    isa
        The level that has the instructions.
    body
        Assembly (AT&T), ``{a}`` and ``{b}`` standing for accumulators.
    chains
        Independent accumulators, so that latency does not show.
    lookups
        Table look-ups per body.
    """

    name: str
    isa: str
    body: tuple[str, ...]
    chains: int
    lookups: int


MIXES: dict[str, Mix] = {
    mix.name: mix
    for mix in (
        Mix(
            "vpermb+vpdpbusd zmm",
            "avx512_vbmi_vnni",
            ("vpermb %zmm30, %zmm31, %zmm28", "vpdpbusd %zmm29, %zmm28, %zmm{a}"),
            16,
            64,
        ),
        Mix(
            "vpermb zmm, 16-bit sums",
            "avx512_vbmi_vnni",
            (
                "vpermb %zmm30, %zmm31, %zmm28",
                "vpaddw %zmm28, %zmm{a}, %zmm{a}",
                "vpsrlw $$8, %zmm28, %zmm29",
                "vpaddw %zmm29, %zmm{b}, %zmm{b}",
            ),
            8,
            64,
        ),
        Mix(
            "vpshufb+vpavgb zmm",
            "avx512",
            ("vpshufb %zmm30, %zmm31, %zmm28", "vpavgb %zmm28, %zmm{a}, %zmm{a}"),
            16,
            64,
        ),
        Mix(
            "vpshufb zmm, 16-bit sums",
            "avx512",
            (
                "vpshufb %zmm30, %zmm31, %zmm28",
                "vpaddw %zmm28, %zmm{a}, %zmm{a}",
                "vpsrlw $$8, %zmm28, %zmm29",
                "vpaddw %zmm29, %zmm{b}, %zmm{b}",
            ),
            8,
            64,
        ),
        Mix(
            "vpshufb+vpavgb ymm",
            "avx2",
            ("vpshufb %ymm12, %ymm13, %ymm14", "vpavgb %ymm14, %ymm{a}, %ymm{a}"),
            8,
            32,
        ),
        Mix(
            "vpshufb ymm, 16-bit sums",
            "avx2",
            (
                "vpshufb %ymm12, %ymm13, %ymm14",
                "vpaddw %ymm14, %ymm{a}, %ymm{a}",
                "vpsrlw $$8, %ymm14, %ymm15",
                "vpaddw %ymm15, %ymm{b}, %ymm{b}",
            ),
            4,
            32,
        ),
    )
}


def scan_limit(isa: str, *, mean: bool, entries: int = 16) -> Mix:
    """Return the mix that bounds a scan.

    Raises
    ------
    TargetError
        For an unknown level.
    """
    level = isa_by_name(isa)
    if mean:
        return MIXES["vpshufb+vpavgb zmm" if level.has_avx512 else "vpshufb+vpavgb ymm"]
    if level.has_vbmi_vnni:
        return MIXES["vpermb+vpdpbusd zmm" if entries <= 32 else "vpermb zmm, 16-bit sums"]
    return MIXES["vpshufb zmm, 16-bit sums" if level.has_avx512 else "vpshufb ymm, 16-bit sums"]


def _loop_source(mix: Mix, isa: Isa) -> str:
    second = mix.chains if any("{b}" in line for line in mix.body) else 0
    lines = [
        line.replace("{a}", str(k)).replace("{b}", str(k + second))
        for k in range(mix.chains)
        for line in mix.body
    ]
    text = r"\0A".join([".p2align 6", "1:", *lines, "dec $0", "jnz 1b"])
    count = 32 if isa.has_avx512 else 16
    clobbers = ",".join(f"~{{xmm{i}}}" for i in range(count))
    return (
        "define i64 @lutcc_limit(i64 %n) {\n"
        f'  %r = call i64 asm sideeffect "{text}", "=r,0,{clobbers},~{{flags}}"(i64 %n)\n'
        "  ret i64 %r\n}\n"
    )


@functools.cache
def limit_loop(name: str) -> tuple[Callable[[], None], int]:
    """Return a function that runs the loop of a mix once, and how many look-ups that is.

    Raises
    ------
    TargetError
        If there is no mix of that name.
    """
    if name not in MIXES:
        raise TargetError(f"there is no limit {name!r}", fix=suggest(name, MIXES))
    mix = MIXES[name]
    isa = isa_by_name(mix.isa)
    tvm = import_tvm()
    import tvm.tirx as tir
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder

    from lutcc.codegen.build import kernel_pipeline

    with IRBuilder() as ib:
        with builder.prim_func(s_tir=True):
            builder.func_name("limit")
            builder.func_attr({"global_symbol": "limit"})
            turns = builder.arg("turns", tir.Var("turns", "int64"))
            with builder.attr(tir.const(0, "int64"), "pragma_import_llvm", _loop_source(mix, isa)):
                builder.evaluate(tir.call_extern("int64", "lutcc_limit", turns))
        function = ib.get()
    target = tvm.target.Target(isa.llvm_target())
    module = tvm.tirx.build(
        tvm.IRModule({"limit": function}), target=target, pipeline=kernel_pipeline()
    )
    run = module["limit"]
    turns_each = 20_000

    def once() -> None:
        run(turns_each)

    return once, turns_each * mix.chains * mix.lookups


def memcpy(nbytes: int) -> Callable[[], None]:
    """Return a function that copies ``nbytes`` from one array to another.

    Examples
    --------
    >>> memcpy(1 << 20)()
    """
    source = np.ones(nbytes, np.uint8)
    target = np.empty_like(source)

    def once() -> None:
        np.copyto(target, source)

    return once
