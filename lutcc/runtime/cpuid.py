"""Feature flags as the processor itself reports them, by the instruction ``cpuid``.

``/proc/cpuinfo`` is what the kernel saw at boot. Under user-mode emulation (``qemu-x86_64``) it is
that of the machine outside, whose instructions the emulated processor need not have.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
from functools import lru_cache

# void cpuid(uint32 leaf, uint32 subleaf, uint32 out[4]): push rbx; mov r8,rdx; mov eax,edi;
# mov ecx,esi; cpuid; mov [r8],eax; mov [r8+4],ebx; mov [r8+8],ecx; mov [r8+12],edx; pop rbx; ret
_CPUID = bytes.fromhex("53 4989d0 89f8 89f1 0fa2 418900 41895804 41894808 4189500c 5b c3")
# uint64 enabled(): xor ecx,ecx; xgetbv; shl rdx,32; or rax,rdx; ret
_XGETBV = bytes.fromhex("31c9 0f01d0 48c1e220 4809d0 c3")

_EAX, _EBX, _ECX, _EDX = range(4)
#: Flag of Linux -> leaf, subleaf, register, bit.
_BITS: dict[str, tuple[int, int, int, int]] = {
    "fma": (1, 0, _ECX, 12),
    "movbe": (1, 0, _ECX, 22),
    "avx": (1, 0, _ECX, 28),
    "f16c": (1, 0, _ECX, 29),
    "bmi1": (7, 0, _EBX, 3),
    "avx2": (7, 0, _EBX, 5),
    "bmi2": (7, 0, _EBX, 8),
    "avx512f": (7, 0, _EBX, 16),
    "avx512dq": (7, 0, _EBX, 17),
    "avx512cd": (7, 0, _EBX, 28),
    "avx512bw": (7, 0, _EBX, 30),
    "avx512vl": (7, 0, _EBX, 31),
    "avx512vbmi": (7, 0, _ECX, 1),
    "avx512_vbmi2": (7, 0, _ECX, 6),
    "avx512_vnni": (7, 0, _ECX, 11),
    "amx_bf16": (7, 0, _EDX, 22),
    "avx512_fp16": (7, 0, _EDX, 23),
    "amx_tile": (7, 0, _EDX, 24),
    "amx_int8": (7, 0, _EDX, 25),
    "avx_vnni": (7, 1, _EAX, 4),
    "avx512_bf16": (7, 1, _EAX, 5),
    "abm": (0x80000001, 0, _ECX, 5),
}
_OSXSAVE = (1, 0, _ECX, 27)
# Registers that the operating system must keep for a program: XMM and YMM; masks and ZMM; tiles.
_YMM, _ZMM, _TILES = 0x6, 0xE6, 0x60006

#: The flags that :func:`flags` knows of.
KNOWN = frozenset(_BITS)


@lru_cache(maxsize=1)
def flags() -> frozenset[str] | None:
    """Return those of :data:`KNOWN` that the processor has and the operating system lets one use.

    None where it cannot be asked: on another architecture, or where memory must not be made
    executable.

    Examples
    --------
    >>> from lutcc.runtime import cpuid
    >>> found = cpuid.flags()
    >>> found is None or found <= cpuid.KNOWN
    True
    """
    if platform.machine() not in ("x86_64", "AMD64") or ctypes.sizeof(ctypes.c_void_p) != 8:
        return None
    if not hasattr(mmap, "PROT_EXEC"):  # Windows, whose calling convention differs, too
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    try:
        code.write(_CPUID.ljust(64, b"\xcc") + _XGETBV)
        start = ctypes.addressof(anchor := ctypes.c_char.from_buffer(code))
        found = _read(start, start + 64)
        del anchor
        return found
    finally:
        code.close()


def _read(cpuid: int, xgetbv: int) -> frozenset[str]:
    registers = (ctypes.c_uint32 * 4)()
    words = (ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
    ask = ctypes.CFUNCTYPE(None, *words)(cpuid)

    def has(leaf: int, subleaf: int, register: int, bit: int) -> bool:
        ask(leaf & 0x80000000, 0, registers)
        if registers[_EAX] < leaf:
            return False
        if subleaf:
            ask(leaf, 0, registers)
            if registers[_EAX] < subleaf:
                return False
        ask(leaf, subleaf, registers)
        return bool(registers[register] >> bit & 1)

    kept = ctypes.CFUNCTYPE(ctypes.c_uint64)(xgetbv)() if has(*_OSXSAVE) else 0
    return frozenset(
        flag for flag, place in _BITS.items() if has(*place) and kept & (m := _mask(flag)) == m
    )


def _mask(flag: str) -> int:
    """Return the bits of XCR0 that a flag needs."""
    if flag.startswith("avx512"):
        return _ZMM
    if flag.startswith("amx"):
        return _TILES
    return _YMM if flag.startswith(("avx", "fma", "f16c")) else 0
