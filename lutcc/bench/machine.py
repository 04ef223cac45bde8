"""Describes the machine and the versions that a result was measured with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from typing import Any

from lutcc.runtime import cpu

_TELLING_FLAGS = (
    "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vbmi", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip
_PACKAGES = ("lutcc", "torch", "apache-tvm", "apache-tvm-ffi", "numpy")


def has_amx() -> bool:
    """Tell whether the CPU multiplies int8 and bfloat16 in tiles, which speeds oneDNN up a lot."""
    return {"amx_tile", "amx_int8", "amx_bf16"} <= cpu.flags()


def has_bfloat16() -> bool:
    """Tell whether the CPU multiplies bfloat16; emulated, it is far slower than float32."""
    return bool({"avx512_bf16", "amx_bf16"} & cpu.flags())


def describe(core: int | None = None) -> dict[str, Any]:
    """Return CPU model, telling flags, caches, cores, the core measured on, and versions."""
    flags = cpu.flags()
    return {
        "cpu": cpu.model_name(),
        "flags": [flag for flag in _TELLING_FLAGS if flag in flags],
        "caches": caches(),
        "cores": os.cpu_count(),
        "core": core,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Return the versions of lutcc and of what decides its speed."""
    from lutcc import __version__

    found = {"lutcc": __version__}
    for name in _PACKAGES[1:]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def caches() -> dict[str, str]:
    """Return the data caches of core 0, such as ``{"L1": "48K", "L2": "2048K"}``."""
    found: dict[str, str] = {}
    base = "/sys/devices/system/cpu/cpu0/cache"
    try:
        indexes = sorted(entry for entry in os.listdir(base) if entry.startswith("index"))
    except OSError:
        return found
    for index in indexes:
        read = {}
        for name in ("type", "level", "size"):
            try:
                with open(f"{base}/{index}/{name}", encoding="ascii") as file:
                    read[name] = file.read().strip()
            except OSError:
                break
        if len(read) == 3 and read["type"] != "Instruction":
            found[f"L{read['level']}"] = read["size"]
    return found


def one_line(machine: dict[str, Any]) -> str:
    """Return the description as one line for a caption."""
    versions = machine["versions"]
    amx = ", AMX" if "amx_int8" in machine["flags"] else ""
    told = ("avx512_bf16", "avx512vbmi", "avx512bw", "avx2")
    level = next((f for f in told if f in machine["flags"]), "no AVX2")
    return (
        f"{machine['cpu']} ({level}{amx}), one core, lutcc {versions['lutcc']}, "
        f"torch {versions['torch']}, TVM {versions['apache-tvm']}"
    )
