"""Compiles kernels for GPUs that are not there, through the launchers that would run them.

The launchers get tensors without data (``device="meta"``), a driver that only names its GPU, and
launches that end after compiling.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

#: Shared memory that a program may have, in bytes: what the launch would check.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 166912),
    "sm_90": (GPUTarget("cuda", 90, 32), 232448),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 65536),
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel takes.

    Attributes
    ----------
    registers
        Per thread (AMD: vector registers).
    spilled
        Bytes of stack per thread (AMD: registers spilled).
    shared
        Bytes of shared memory per program.
    wide_loads
        Loads of 16 bytes in the text of the kernel.
    """

    registers: int
    spilled: int
    shared: int
    wide_loads: int


class Driver:
    """A driver of one target, without a device."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> str:
        return f"no {self.target.arch}"  # kernels are kept per device: not those of a real one

    def get_current_stream(self, device: Any) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")


@contextlib.contextmanager
def compiling_for(name: str) -> Iterator[list[tuple[str, Resources]]]:
    """Make launches compile for the target, and collect what each kernel takes."""
    found: list[tuple[str, Resources]] = []
    config = triton.runtime.driver
    before, run = config._active, JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        assert len(grid) == 1, "launchers use one axis: it is the one that may be long"
        assert 0 < grid[0] < 2**31
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found.append((self.__name__, resources(kernel)))
        return kernel

    config._active = Driver(TARGETS[name][0])
    JITFunction.run = compile_only
    try:
        yield found
    finally:
        config._active, JITFunction.run = before, run


def resources(kernel: Any) -> Resources:
    """Read what a kernel takes from its binary (NVIDIA) or assembly (AMD)."""
    if "cubin" in kernel.asm:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            tool = Path(triton.backends.__file__).parent / "nvidia" / "bin" / "cuobjdump"
            ran = subprocess.run(
                [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
            )
        match = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", ran.stdout)
        assert match, ran.stdout
        registers, stack, local = map(int, match.groups())
        wide = len(re.findall(r"\b(?:ld\.global\S*\.v4\.b32|cp\.async\S*)", kernel.asm["ptx"]))
        return Resources(registers, stack + local, kernel.metadata.shared, wide)
    text = kernel.asm["amdgcn"]
    numbers = [
        int(re.search(rf"\.{field}:\s*(\d+)", text)[1])  # type: ignore[index]
        for field in ("vgpr_count", "vgpr_spill_count", "sgpr_spill_count")
    ]
    wide = len(re.findall(r"\b(?:global|buffer)_load_dwordx4\b", text))
    return Resources(numbers[0], numbers[1] + numbers[2], kernel.metadata.shared, wide)
