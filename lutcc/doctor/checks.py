"""The checks of ``lutcc doctor``: what was found and, where something is wrong, the fix."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lutcc.doctor.requirements import declared_requirements, installed_version
from lutcc.errors import LutccError

Status = Literal["ok", "warn", "fail"]
SELF_TEST_SECONDS = 120


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report; a ``fail`` is something that lutcc cannot work without."""

    name: str
    status: Status
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """All checks, in the order in which they ran."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing that is required failed."""
        return all(check.status != "fail" for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}


def run_checks(on_check: Callable[[Check], None] | None = None) -> Report:
    """Run every check; ``on_check`` sees each as it ends (the self-tests take some seconds)."""
    done: list[Check] = []
    for group in GROUPS:
        for check in group():
            done.append(check)
            if on_check is not None:
                on_check(check)
    return Report(tuple(done))


def check_system() -> Iterator[Check]:
    """Check Python's version, the operating system and the kind of processor."""
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Check(
        "python", "ok" if good else "fail", version, "" if good else "use Python 3.11 or newer"
    )
    system = f"{platform.system()} {platform.machine()}"
    good = system == "Linux x86_64"
    fix = "" if good else "lutcc's kernels are built and tested on Linux x86-64 only"
    yield Check("system", "ok" if good else "fail", system, fix)


def check_packages() -> Iterator[Check]:
    """Check every package that lutcc depends on, against the versions it asks for."""
    requirements = declared_requirements()
    if not requirements:
        yield Check(
            "packages",
            "fail",
            "lutcc is not installed, so its requirements are not known",
            "pip install lutcc, or pip install -c constraints.txt -e . in a checkout",
        )
    optional = {"gpu": "triton", "report": "matplotlib"}
    for wanted in requirements:
        if wanted.extra is not None and optional.get(wanted.extra) != wanted.name:
            continue
        version = installed_version(wanted.name)
        bad: Status = "fail" if wanted.extra is None else "warn"
        asked = (
            f'pip install "{wanted}"'
            if wanted.extra is None
            else f"pip install lutcc[{wanted.extra}]"
        )
        if version is None:
            purpose = {"triton": " (GPU kernels)", "matplotlib": " (pictures)"}.get(wanted.name, "")
            yield Check(wanted.name, bad, f"not installed{purpose}", asked)
        elif not wanted.satisfied_by(version):
            yield Check(wanted.name, bad, f"{version}, but lutcc needs {wanted}", asked)
        else:
            yield Check(wanted.name, "ok", version)


def check_ffi() -> Iterator[Check]:
    """Check that TIR can be saved to JSON: some versions of apache-tvm-ffi crash."""
    pin = next((r for r in declared_requirements() if r.name == "apache-tvm-ffi"), None)
    fix = f'pip install "{pin or "apache-tvm-ffi==0.1.14.post1"}" (later versions crash here)'
    yield _self_test("apache-tvm-ffi self-test", "json", fix)


def check_build() -> Iterator[Check]:
    """Check for a linker, and that a kernel can be built, loaded and run."""
    compilers = [tool for tool in ("gcc", "clang", "cc") if shutil.which(tool)]
    linkers = [tool for tool in ("ld", "ld.lld", "lld") if shutil.which(tool)]
    install = "apt-get install gcc, dnf install gcc, or clang with lld"
    if compilers:
        yield Check("compiler or linker", "ok", ", ".join(compilers + linkers))
    elif linkers:
        found = f"{linkers[0]}, no C compiler"
        yield Check("compiler or linker", "warn", found, f"{install} (to build C callers)")
    else:
        found = "none: lutcc compile cannot link (running artifacts needs none)"
        yield Check("compiler or linker", "fail", found, install)
        return
    fix = f"see the message; TMPDIR ({tempfile.gettempdir()}) must not be mounted noexec"
    yield _self_test("build self-test", "build", fix)


def check_cache() -> Iterator[Check]:
    """Check the folder that keeps what was compiled, and how full it is."""
    try:
        from lutcc.codegen.compile_cache import FOLDER_VARIABLE, SIZE_VARIABLE, default_cache

        cache = default_cache()
    except ImportError:  # told above
        return
    except LutccError as error:
        yield Check("compile cache", "fail", f"{error.where}: {error.what}", error.fix or "")
        return
    if cache is None:
        yield Check("compile cache", "ok", f"off ({FOLDER_VARIABLE} or {SIZE_VARIABLE})")
        return
    entries = cache.entries()
    nbytes = sum(about.st_size for about in entries.values())
    found = (
        f"{cache.folder}: {len(entries)} entries, {nbytes / 1e6:.1f} of {cache.limit / 1e6:.0f} MB"
    )
    problem = cache.problem()
    if problem is None:
        yield Check("compile cache", "ok", found)
    else:
        fix = f"mend that, or name another folder in {FOLDER_VARIABLE} ('off': no cache)"
        yield Check("compile cache", "warn", f"{found}; nothing can be kept: {problem}", fix)


def check_cpu() -> Iterator[Check]:
    """Check the instruction sets that decide which kernels run."""
    try:
        from lutcc.runtime import cpu
    except ImportError as error:
        fix = "mend the packages above first"
        yield Check("cpu", "fail", f"lutcc.runtime cannot be imported: {error}", fix)
        return
    try:
        host = cpu.host()
    except LutccError as error:  # an unknown level in the environment
        yield Check(cpu.MAX_ISA_VARIABLE, "fail", error.what, error.fix or "")
        return
    found = f"{host.model}: {host.isa or 'no AVX2'}"
    if host.max_isa:
        fix = f"unset {cpu.MAX_ISA_VARIABLE} to use all that the CPU has"
        yield Check(cpu.MAX_ISA_VARIABLE, "warn", host.max_isa, fix)
    if host.isa is None:
        yield Check("cpu", "fail", found, "lutcc needs a CPU with AVX2 and FMA (2013 and newer)")
    else:
        above = cpu.ISA_LEVELS[cpu.ISA_LEVELS.index(host.isa) + 1 :]
        lacks = (
            f" (for {above[0]} it lacks {', '.join(cpu.missing(cpu.ISA_FEATURES[above[0]]))})"
            if above
            else ""
        )
        yield Check("cpu", "ok", found + lacks)
    amx = sorted(flag for flag in host.flags if flag.startswith("amx_"))
    if amx:
        found = f"{', '.join(amx)}: dense bf16 and int8 are fast here; compare before converting"
        yield Check("amx", "ok", found)


def check_threads() -> Iterator[Check]:
    """Check how many cores this process may use, and what would take them away."""
    usable, present = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    limit = [
        f"{name}={os.environ[name]}"
        for name in ("OMP_NUM_THREADS", "TVM_NUM_THREADS")
        if name in os.environ
    ]
    found = f"{usable} of {present} cores usable" + (f" ({', '.join(limit)})" if limit else "")
    yield Check("threads", "ok", found)
    if os.environ.get("TVM_BIND_THREADS", "0") != "0":
        yield Check(
            "TVM_BIND_THREADS",
            "warn",
            os.environ["TVM_BIND_THREADS"],
            "unset it: TVM's thread pool then changes the CPU affinity of the main thread",
        )


def check_gpu() -> Iterator[Check]:
    """Check for a GPU that torch can use (training kernels only; nothing else needs one)."""
    if importlib.util.find_spec("torch") is None:
        return
    script = (
        "import torch; n = torch.cuda.is_available() and torch.cuda.device_count(); "
        "print(', '.join(torch.cuda.get_device_name(i) for i in range(n)) if n else '')"
    )
    ran = _subprocess(["-c", script])
    names = ran.stdout.strip() if ran.returncode == 0 else ""
    if names:
        yield Check("gpu", "ok", names)
    else:
        fix = (
            "nothing to do for CPU use; training on a GPU needs a CUDA build of torch and a driver"
        )
        yield Check("gpu", "warn", "none that torch can use", fix)


GROUPS: tuple[Callable[[], Iterable[Check]], ...] = (
    check_system,
    check_packages,
    check_ffi,
    check_build,
    check_cache,
    check_cpu,
    check_threads,
    check_gpu,
)


def _self_test(name: str, which: str, fix: str) -> Check:
    if importlib.util.find_spec("tvm") is None or importlib.util.find_spec("tvm_ffi") is None:
        return Check(name, "fail", "TVM is not installed", fix)
    try:
        ran = _subprocess(["-m", "lutcc.doctor.selftest", which])
    except subprocess.TimeoutExpired:
        return Check(name, "fail", f"no answer within {SELF_TEST_SECONDS} s", fix)
    if ran.returncode == 0:
        return Check(name, "ok", ran.stdout.strip().splitlines()[-1])
    if ran.returncode < 0:
        return Check(name, "fail", f"the process died: {signal.Signals(-ran.returncode).name}", fix)
    lines = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
    return Check(name, "fail", lines[-1][:300], fix)


def _subprocess(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=SELF_TEST_SECONDS,
        check=False,
        env=os.environ | {"TVM_BIND_THREADS": "0"},
    )
