"""A wheel built from the checkout works in a fresh environment outside it."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from tests.packaging.project import DATA, PROJECT, ROOT, packages_on_disk


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel, without network, from a copy of the tracked kinds of files."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "lutcc", "ir", "schedules", *DATA):
        # cp -a keeps the links; building in the checkout itself would leave a build folder there.
        subprocess.run(["cp", "-a", str(ROOT / name), str(source)], check=True)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--no-index", "-w", str(folder), str(source)], check=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment that sees the dependencies, not the checkout."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False)
    executable = folder / "bin" / "python"
    target = Path(
        sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    )
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    dependencies = {
        p for p in (*site.getsitepackages(), sysconfig.get_path("purelib")) if Path(p).is_dir()
    }
    # A path added by a .pth file: its own .pth files (the editable install of lutcc) are not read.
    (target / "dependencies.pth").write_text("\n".join(sorted(dependencies)) + "\n")
    return executable


def run(python: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        [str(python), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=clean,
        check=False,
        timeout=300,
    )


def test_contents(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [name for name, count in Counter(names).items() if count > 1]
    expected = {
        f"{package.replace('.', '/')}/{path.name}"
        for package, folder in packages_on_disk().items()
        for path in folder.glob("*.py")
    }
    got = {name for name in names if name.endswith(".py")}
    assert got == expected
    assert "lutcc/py.typed" in names
    data = {
        f"lutcc/{path.relative_to(ROOT / 'lutcc')}"
        for kind in ("h", "cpp", "hpp", "css", "html", "schema.json")
        for path in (ROOT / "lutcc").rglob(f"*.{kind}")
    }
    assert "lutcc/tuning/record.schema.json" in data
    assert "lutcc/runtime/native/lutcc.cpp" in data
    assert "lutcc/runtime/native/CMakeLists.txt" in names
    assert data <= set(names)
    logs = {f"lutcc/{p.relative_to(ROOT)}" for p in (ROOT / "tuning_logs").rglob("*.*")}
    shipped = {name for name in logs if name.endswith((".md", ".jsonl")) and "/." not in name}
    assert shipped == {name for name in names if name.startswith("lutcc/tuning_logs/")}
    assert "lutcc/tuning_logs/README.md" in shipped
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [
        n for n in names if n.split("/")[0] not in ("lutcc", f"lutcc-{version()}.dist-info")
    ]


def version() -> str:
    import lutcc

    return lutcc.__version__


def test_import_from_outside_the_repository(python: Path, tmp_path: Path):
    script = (
        "import lutcc, sys; lazy = 'torch' not in sys.modules and 'tvm' not in sys.modules; "
        "x = lutcc.ir.TensorType((lutcc.ir.Sym('n'), 4), 'float32'); b = lutcc.ir.Builder('main'); "
        "b.returns(b.op('relu', b.param('x', x))); m = b.module(); "
        "assert lutcc.ir.parse(lutcc.ir.to_text(m)) == m; "
        "import lutcc.schedules, lutcc.fit; print(lazy, lutcc.__file__)"
    )
    ran = run(python, "-c", script, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    lazy, place = ran.stdout.split()
    assert lazy == "True"
    assert str(ROOT) not in place


def test_every_module_imports(python: Path, tmp_path: Path):
    script = (
        "import importlib, pkgutil, lutcc\n"
        "for found in pkgutil.walk_packages(lutcc.__path__, 'lutcc.'):\n"
        "    importlib.import_module(found.name)\n"
        "    print(found.name)\n"
    )
    ran = run(python, "-c", script, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    packages = set(PROJECT["tool"]["setuptools"]["packages"]) - {"lutcc", *DATA.values()}
    assert packages <= set(ran.stdout.split())


def test_shipped_logs_and_schema_are_found(python: Path, tmp_path: Path):
    script = (
        "from lutcc.tuning.choose import SHIPPED_LOGS; from lutcc.tuning.schema import schema; "
        "print(schema()['title']); print((SHIPPED_LOGS / 'README.md').read_text())"
    )
    ran = run(python, "-c", script, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("One line of a lutcc tuning log\n# Tuning logs")


@pytest.mark.thorough
def test_doctor(python: Path, tmp_path: Path):
    ran = run(python, "-m", "lutcc.cli.main", "doctor", "--json", "-q", cwd=tmp_path)
    report = json.loads(ran.stdout)
    assert ran.returncode == 0, report
    found = {check["name"]: check["status"] for check in report["checks"]}
    assert (
        found["apache-tvm-ffi"]
        == found["apache-tvm-ffi self-test"]
        == found["build self-test"]
        == "ok"
    )


def test_fit_compile_run(python: Path, tmp_path: Path):
    import numpy as np

    random = np.random.default_rng(0)
    np.save(tmp_path / "a.npy", random.normal(size=(300, 12)).astype(np.float32))
    np.save(tmp_path / "b.npy", random.normal(size=(12, 5)).astype(np.float32))
    for command in (
        ["fit", "a.npy", "b.npy", "-C", "3", "-o", "k.ir"],
        ["compile", "k.ir", "-o", "k.lutcc"],
        ["run", "k.lutcc", "a.npy", "-o", "y.npy"],
    ):
        ran = run(python, "-m", "lutcc.cli.main", *command, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
    assert np.load(tmp_path / "y.npy").shape == (300, 5)
