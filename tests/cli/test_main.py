"""Exit codes, streams, interruption, help."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lutcc.cli import main as cli
from lutcc.errors import LutccError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_help_names_every_command(lutcc_command):
    done = lutcc_command("--help")
    assert done.code == 0
    for name in cli.COMMANDS:
        assert re.search(rf"^\s+{name}\s", done.out, re.MULTILINE)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_and_the_shared_options(lutcc_command, name):
    done = lutcc_command(name, "--help")
    assert done.code == 0
    for option in ("--json", "--quiet", "--verbose", "--seed"):
        assert option in done.out


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_documented(name):
    assert f"`lutcc {name}" in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_version(lutcc_command):
    import lutcc

    assert lutcc_command("--version").out == f"lutcc {lutcc.__version__}\n"


def test_the_package_is_the_command_too():
    command = [sys.executable, "-m", "lutcc", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.startswith("lutcc ")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (LutccError("went wrong", where="here", fix="do that"), 1, "here: went wrong\nTo mend it"),
        (UsageError("not so"), 2, "lutcc: not so"),
        (UsageError("no model", where="nets:x:boom:"), 2, "lutcc: nets:x:boom:: no model"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (FileNotFoundError(2, "No such file or directory", "f"), 1, "f: No such file"),
    ],
)
def test_errors_become_exit_codes(lutcc_command, monkeypatch, error, code, message):
    from lutcc.cli import doctor

    def fail(args, console):
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    done = lutcc_command("doctor")
    assert done.code == code
    assert message in done.err
    assert done.out == ""


def test_a_bug_is_not_hidden(lutcc_command, monkeypatch):
    from lutcc.cli import doctor

    def fail(args, console):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(doctor, "run", fail)
    with pytest.raises(ZeroDivisionError):
        lutcc_command("doctor")


def test_starting_is_quick_and_loads_neither_torch_nor_tvm():
    script = (
        "import sys; from lutcc.cli.main import main; code = main(['--version']); "
        "sys.exit(code or ('torch' in sys.modules or 'tvm' in sys.modules))"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL, cwd=ROOT)


def test_ctrl_c_exits_130(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-m", "lutcc.cli.main", "demo", "-o", str(tmp_path), "--no-picture"],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # a shell's background job hands down an ignored SIGINT, which Python would respect
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    process.stderr.readline()  # the first line of progress: it is at work
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    # Either way a shell reports 130: CPython ends itself by SIGINT where exec() was interrupted.
    assert process.returncode in (130, -signal.SIGINT), err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert out == ""


def test_a_closed_pipe_is_no_error(files):
    command = f'"{sys.executable}" -m lutcc.cli.main inspect {files.module} -n 7 | head -n 1'
    ran = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    assert ran.stdout == "lutcc.ir 1\n"
