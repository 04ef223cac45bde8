"""doctor: what it checks, and that it finds what it looks for."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from lutcc.doctor import checks, requirements
from lutcc.doctor.checks import Check, Report
from lutcc.doctor.requirements import parse_requirement


def by_name(found) -> dict[str, Check]:
    return {check.name: check for check in found}


def test_this_machine_is_ready(lutcc_command):
    done = lutcc_command("doctor", "--json", "-q")
    assert done.code == 0
    assert done.json["ok"] is True
    names = {check["name"]: check for check in done.json["checks"]}
    assert {"python", "torch", "apache-tvm", "apache-tvm-ffi self-test", "build self-test"} < set(
        names
    )
    assert {"cpu", "threads", "triton", "gpu"} < set(names)
    for check in names.values():
        assert check["status"] in ("ok", "warn", "fail")
        assert check["status"] == "ok" or check["fix"], f"{check['name']} names no fix"


def test_a_failure_exits_1_and_is_named(lutcc_command, monkeypatch):
    def broken():
        yield Check("thing", "fail", "broken", "mend it so")

    monkeypatch.setattr(checks, "GROUPS", (broken,))
    done = lutcc_command("doctor")
    assert done.code == 1
    assert "not ready: thing" in done.out
    assert "fix: mend it so" in done.out


def test_a_warning_does_not_fail():
    assert Report((Check("a", "ok", ""), Check("b", "warn", "", "x"))).ok
    assert not Report((Check("a", "fail", "", "x"),)).ok


@pytest.mark.parametrize(
    ("line", "version", "good"),
    [
        ("torch>=2.11", "2.13.0+cpu", True),
        ("torch>=2.11", "2.9.1", False),
        ("apache-tvm-ffi==0.1.14.post1", "0.1.14.post1", True),
        ("apache-tvm-ffi==0.1.14.post1", "0.1.15.post2", False),
        ("apache-tvm-ffi==0.1.14.post1", "0.1.14", False),
        ("numpy>=2.0", "2", True),
        ("x>1,<2,!=1.5", "1.5", False),
        ("x>1,<2,!=1.5", "1.6", True),
        ("x", "0.0.1", True),
    ],
)
def test_versions(line, version, good):
    assert parse_requirement(line).satisfied_by(version) is good


def test_requirements_as_pip_writes_them():
    found = parse_requirement('triton>=3.6; extra == "gpu"')
    assert (found.name, found.clauses, found.extra) == ("triton", ((">=", "3.6"),), "gpu")
    assert parse_requirement("pyright[nodejs]>=1.1").name == "pyright"


def test_a_wrong_version_is_named_with_the_fix(monkeypatch):
    versions = {"torch": "2.4.0", "numpy": None}
    real = requirements.installed_version
    monkeypatch.setattr(
        checks, "installed_version", lambda n: versions[n] if n in versions else real(n)
    )
    found = by_name(checks.check_packages())
    assert found["torch"].status == "fail"
    assert "2.4.0, but lutcc needs torch>=2.11" in found["torch"].found
    assert found["torch"].fix == 'pip install "torch>=2.11"'
    assert found["numpy"].status == "fail"
    assert found["numpy"].found == "not installed"


def test_a_process_that_dies_is_a_failure(monkeypatch):
    """With a bad ffi version the self-test ends in a segmentation fault."""

    def crash(arguments):
        script = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        return subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=False
        )

    monkeypatch.setattr(checks, "_subprocess", crash)
    (check,) = checks.check_ffi()
    assert check.status == "fail"
    assert "SIGSEGV" in check.found
    assert "apache-tvm-ffi==0.1.14.post1" in check.fix


def test_no_linker(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    (check,) = checks.check_build()
    assert check.status == "fail"
    assert "install gcc" in check.fix


def test_no_avx2(monkeypatch):
    monkeypatch.setenv("LUTCC_MAX_ISA", "none")
    found = by_name(checks.check_cpu())
    assert found["cpu"].status == "fail"
    assert found["LUTCC_MAX_ISA"].fix


def test_an_unknown_level_is_a_failed_check(lutcc_command, monkeypatch):
    monkeypatch.setenv("LUTCC_MAX_ISA", "bogus")
    monkeypatch.setattr(checks, "GROUPS", (checks.check_cpu, checks.check_threads))
    done = lutcc_command("doctor", "-q")
    assert done.code == 1
    assert "not ready: LUTCC_MAX_ISA" in done.out
    assert "'bogus' is no instruction-set level" in done.out
    assert "cores usable" in done.out


def test_tvm_would_bind_threads(monkeypatch):
    monkeypatch.setenv("TVM_BIND_THREADS", "1")
    assert by_name(checks.check_threads())["TVM_BIND_THREADS"].status == "warn"


def test_the_compile_cache(tmp_path, monkeypatch):
    from lutcc.codegen.compile_cache import CompileCache

    folder = tmp_path / "cache"
    monkeypatch.setenv("LUTCC_CACHE_DIR", str(folder))
    monkeypatch.setenv("LUTCC_CACHE_MB", "10")
    CompileCache(folder, 1 << 20).put("one", {}, bytes(100_000))
    (check,) = checks.check_cache()
    assert check.status == "ok"
    assert check.found == f"{folder}: 1 entries, 0.1 of 10 MB"
    monkeypatch.setenv("LUTCC_CACHE_DIR", str(folder / "one.entry"))
    (check,) = checks.check_cache()
    assert check.status == "warn"
    assert "one.entry is no folder" in check.found
    monkeypatch.setenv("LUTCC_CACHE_DIR", "off")
    (check,) = checks.check_cache()
    assert (check.status, check.found) == ("ok", "off (LUTCC_CACHE_DIR or LUTCC_CACHE_MB)")
    monkeypatch.setenv("LUTCC_CACHE_MB", "much")
    (check,) = checks.check_cache()
    assert check.status == "fail"
    assert "LUTCC_CACHE_MB" in check.found
