"""What this core can do at best: loops of the instructions that kernels are made of.

A register-only loop is the instruction mix of one kind of scan, or of a matrix product, with
nothing else in it: no loads, no stores, independent accumulators. A reading loop has nothing but
loads. A kernel cannot be faster; its share of the limit says what is left.
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
    work
        Table look-ups per body; of products, floating-point operations.
    """

    name: str
    isa: str
    body: tuple[str, ...]
    chains: int
    work: int


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

#: The mix of products of bfloat16: four operations for each lane of 32 bits.
BF16_PRODUCT = Mix("vdpbf16ps zmm", "avx512_bf16", ("vdpbf16ps %zmm30, %zmm31, %zmm{a}",), 16, 64)

#: Bytes that one turn of a reading loop's body loads.
READ_BLOCK = 512

#: Level -> the mix of a float32 matrix product, two operations for each multiply-add.
PRODUCTS: dict[str, Mix] = {
    "avx2": Mix("vfmadd231ps ymm", "avx2", ("vfmadd231ps %ymm14, %ymm15, %ymm{a}",), 12, 16),
    "avx512": Mix("vfmadd231ps zmm", "avx512", ("vfmadd231ps %zmm30, %zmm31, %zmm{a}",), 16, 32),
}
PRODUCTS["avx512_vbmi_vnni"] = PRODUCTS["avx512_bf16"] = PRODUCTS["avx512"]


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


def product_limit(isa: str, *, bfloat16: bool = False) -> Mix:
    """Return the mix that bounds a matrix product, of bfloat16 if so and the level has it."""
    if bfloat16 and isa_by_name(isa).has_bf16:
        return BF16_PRODUCT
    return PRODUCTS[isa_by_name(isa).name]


def _zeroed(isa: Isa) -> list[str]:
    """Return instructions that clear every vector register: denormals would slow arithmetic."""
    if isa.has_avx512:
        return [f"vpxord %zmm{i}, %zmm{i}, %zmm{i}" for i in range(32)]
    return [f"vpxor %ymm{i}, %ymm{i}, %ymm{i}" for i in range(16)]


def _clobbers(isa: Isa) -> str:
    return ",".join(f"~{{xmm{i}}}" for i in range(32 if isa.has_avx512 else 16))


def _loop_source(mix: Mix, isa: Isa) -> str:
    second = mix.chains if any("{b}" in line for line in mix.body) else 0
    lines = [
        line.replace("{a}", str(k)).replace("{b}", str(k + second))
        for k in range(mix.chains)
        for line in mix.body
    ]
    text = r"\0A".join([*_zeroed(isa), ".p2align 6", "1:", *lines, "dec $0", "jnz 1b"])
    return (
        "define i64 @lutcc_limit(i64 %n) {\n"
        f'  %r = call i64 asm sideeffect "{text}", "=r,0,{_clobbers(isa)},~{{flags}}"(i64 %n)\n'
        "  ret i64 %r\n}\n"
    )


def _read_source(isa: Isa) -> str:
    """Return a function of an address, the blocks of :data:`READ_BLOCK` bytes there, and turns."""
    register, width = ("zmm", 64) if isa.has_avx512 else ("ymm", 32)
    loads = [
        f"vmovups {offset}(%r8), %{register}{offset // width % 8}"
        for offset in range(0, READ_BLOCK, width)
    ]
    lines = [
        "1:", "movq %rdi, %r8", "movq %rsi, %r9", ".p2align 6", "2:", *loads,
        f"addq $${READ_BLOCK}, %r8", "decq %r9", "jnz 2b", "decq %rdx", "jnz 1b",
    ]  # fmt: skip
    text = r"\0A".join(lines)
    words = "{i64, i64, i64}"
    return (
        "define i64 @lutcc_limit(i64 %base, i64 %blocks, i64 %turns) {\n"
        f'  %r = call {words} asm sideeffect "{text}", '
        f'"=&{{rdx}},=&{{r8}},=&{{r9}},{{rdi}},{{rsi}},0,~{{memory}},{_clobbers(isa)},~{{flags}}"'
        "(i64 %base, i64 %blocks, i64 %turns)\n"
        f"  %t = extractvalue {words} %r, 0\n  ret i64 %t\n}}\n"
    )


def _native(source: str, isa: Isa, arguments: int) -> Callable[..., None]:
    """Build ``lutcc_limit`` of LLVM text into a function of so many integers."""
    tvm = import_tvm()
    import tvm.tirx as tir
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder import tirx as builder

    from lutcc.codegen.build import kernel_pipeline

    with IRBuilder() as ib:
        with builder.prim_func(s_tir=True):
            builder.func_name("limit")
            builder.func_attr({"global_symbol": "limit"})
            given = [builder.arg(f"arg{i}", tir.Var(f"arg{i}", "int64")) for i in range(arguments)]
            with builder.attr(tir.const(0, "int64"), "pragma_import_llvm", source):
                builder.evaluate(tir.call_extern("int64", "lutcc_limit", *given))
        function = ib.get()
    target = tvm.target.Target(isa.llvm_target())
    module = tvm.tirx.build(
        tvm.IRModule({"limit": function}), target=target, pipeline=kernel_pipeline()
    )
    return module["limit"]


@functools.cache
def limit_loop(name: str) -> tuple[Callable[[], None], int]:
    """Return a function that runs the loop of a mix once, and how much work that is.

    Work is look-ups, or floating-point operations of a mix of products.

    Raises
    ------
    TargetError
        If there is no mix of that name.
    """
    mixes = MIXES | {mix.name: mix for mix in (*PRODUCTS.values(), BF16_PRODUCT)}
    if name not in mixes:
        raise TargetError(f"there is no limit {name!r}", fix=suggest(name, mixes))
    mix = mixes[name]
    isa = isa_by_name(mix.isa)
    run = _native(_loop_source(mix, isa), isa, 1)
    turns_each = 20_000

    def once() -> None:
        run(turns_each)

    return once, turns_each * mix.chains * mix.work


@functools.cache
def _reader(isa: str) -> Callable[..., None]:
    level = isa_by_name(isa)
    return _native(_read_source(level), level, 3)


def read_loop(isa: str, nbytes: int) -> tuple[Callable[[], None], int]:
    """Return a function that reads ``nbytes`` again and again, and the bytes it reads in a call.

    Parameters
    ----------
    isa
        Level; decides how wide the loads are.
    nbytes
        Rounded up to 512.

    Examples
    --------
    >>> once, read = read_loop("avx2", 4096)
    >>> once(), read >= 4096
    (None, True)
    """
    run = _reader(isa)
    blocks = max(1, -(-nbytes // READ_BLOCK))
    memory = np.ones(blocks * READ_BLOCK + 64, np.uint8)
    aligned = memory[-memory.ctypes.data % 64 :]
    turns = max(1, (1 << 22) // (blocks * READ_BLOCK))

    def once() -> None:
        run(aligned.ctypes.data, blocks, turns)

    return once, blocks * READ_BLOCK * turns


def read_once(isa: str, nbytes: int, memory: np.ndarray | None = None) -> Callable[[], None]:
    """Return a function that reads ``nbytes`` once, by whole 512.

    From ``memory`` (bytes), where it is given: where memory lies makes a difference of half when it
    is read with empty caches.

    Examples
    --------
    >>> read_once("avx2", 4096)()
    """
    run = _reader(isa)
    blocks = max(1, -(-nbytes // READ_BLOCK))
    if memory is None:
        memory = np.ones(blocks * READ_BLOCK + 64, np.uint8)
    aligned = memory[-memory.ctypes.data % 64 :]
    blocks = min(blocks, len(aligned) // READ_BLOCK)

    def once() -> None:
        run(aligned.ctypes.data, blocks, 1)

    return once


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
