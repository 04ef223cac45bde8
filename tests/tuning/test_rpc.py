"""Measuring through RPC, with a server in a second process on loopback."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lutcc.bench.layers import random_lookup_layer
from lutcc.cli import serve_rpc
from lutcc.cli.console import Console
from lutcc.errors import BackendError, TargetError, UsageError
from lutcc.runtime import cpu
from lutcc.tuning.rpc import Address, parse_address
from lutcc.tuning.runner import RpcRunner, make_runner
from lutcc.tuning.stages import stage_tasks
from tests.tuning import subjects

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 10.0  # a busy machine takes its time to build
_SERVE = """
import argparse, sys
from lutcc.cli import serve_rpc
from lutcc.cli.console import Console
parser = argparse.ArgumentParser()
serve_rpc.add_arguments(parser)
sys.exit(serve_rpc.run(parser.parse_args(), Console()))
"""


class Server:
    """``lutcc serve-rpc`` in a process of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, "--port", "0", "--key", "here", *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline().strip()
        self.address = self.line.removeprefix("serving ")
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join(5)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    started = Server()
    yield started
    started.kill()


@pytest.fixture(scope="module")
def runner(server: Server) -> Iterator[RpcRunner]:
    with RpcRunner(server.address, seconds=0.04, timeout_s=TIMEOUT_S) as remote:
        yield remote


def test_the_server_warns_and_says_where_it_is(server: Server) -> None:
    address = parse_address(server.address)
    assert (address.host, address.key) == ("127.0.0.1", "here")
    assert address.port > 0


def test_stages_are_measured_over_there(server: Server, runner: RpcRunner) -> None:
    isa = cpu.best_isa() or "avx2"
    assert runner.place(isa, None).model == cpu.model_name()
    (stage,) = stage_tasks(random_lookup_layer(64, 48, 8), isa, rows=(33,))
    opened = runner.open(stage)
    assert (opened.status, opened.ratio) == ("ok", 1.0)
    config = list(stage.space.configs())[1]
    outcome = runner.measure(stage, config, stage.space.default)
    assert outcome.status == "ok", outcome.message
    assert outcome.timing is not None
    assert outcome.timing.best > 0
    assert "any code as you" in server.said.replace("\n", " ")


def test_cold_caches_over_there(runner: RpcRunner) -> None:
    outcome = runner.open(subjects.task(cache="cold"))
    assert outcome.status == "ok", outcome.message
    hot = runner.open(subjects.task())
    assert outcome.timing is not None
    assert hot.timing is not None
    assert outcome.timing.median > hot.timing.median > 0


@pytest.mark.parametrize(
    ("name", "status", "message"),
    [
        ("wrong", "wrong_result", "elements are wrong"),
        ("raise", "compile_error", "the telling line"),
        ("run_strlen", "crash", "the process over there ended"),
        ("run_sleep", "timeout", f"no answer within {TIMEOUT_S:g} s"),
    ],
)
def test_failures_over_there_are_survived(
    runner: RpcRunner, name: str, status: str, message: str
) -> None:
    task = subjects.task()
    assert runner.open(task).status == "ok"
    outcome = runner.measure(task, {"act": name}, task.space.default)
    assert (outcome.status, outcome.ratio) == (status, None)
    assert message in outcome.message
    assert runner.measure(task, {"act": "twice"}, task.space.default).status == "ok"


def test_a_server_that_is_killed_is_reported() -> None:
    own = Server()
    with make_runner(own.address, seconds=0.04, timeout_s=TIMEOUT_S) as remote:
        task = subjects.task()
        assert remote.open(task).status == "ok"
        own.kill()
        with pytest.raises(BackendError, match="cannot be made again") as caught:
            remote.measure(task, {"act": "twice"}, task.space.default)
        assert "lutcc serve-rpc" in str(caught.value)


def test_wrong_keys_and_levels_and_silence_are_told() -> None:
    own = Server(LUTCC_MAX_ISA="avx2")
    try:
        wrong = own.address.replace("/here", "/there")
        with make_runner(wrong) as remote, pytest.raises(BackendError, match="key 'there'"):
            remote.place("avx2", None)
        with make_runner(own.address) as remote:
            assert remote.place("avx2", None).isa == "avx2"
            with pytest.raises(TargetError, match="cannot run kernels of level avx512"):
                remote.place("avx512", None)
    finally:
        own.kill()


@pytest.mark.thorough
def test_a_tracker_hands_out_servers() -> None:
    pytest.importorskip("tornado")
    pytest.importorskip("cloudpickle")
    pytest.importorskip("psutil")
    from lutcc.codegen.tvm_setup import import_tvm

    import_tvm()
    from tvm.rpc.tracker import Tracker

    tracker = Tracker(host="127.0.0.1", port=19190, port_end=19290, silent=True)
    own = Server("--tracker", f"127.0.0.1:{tracker.port}")
    try:
        address = f"rpc://127.0.0.1:{tracker.port}"
        with make_runner(f"{address}/nobody") as remote:
            with pytest.raises(BackendError, match="no server of the key") as caught:
                remote.place("avx2", None)
            assert "here" in str(caught.value)
        with make_runner(f"{address}/here", seconds=0.04) as remote:
            assert remote.open(subjects.task()).status == "ok"
    finally:
        own.kill()
        tracker.terminate()


def test_addresses() -> None:
    assert parse_address("rpc://box:9/k") == Address("box", 9, "k")
    assert parse_address("rpc://box") == Address("box", 9190, "lutcc")
    assert str(parse_address("rpc://[::1]:9/k")) == "rpc://[::1]:9/k"
    for bad in ("", "rpc://", "http://a:1/k", "rpc://a:x/k", "rpc://a:1/b/c", "rpc://a:99999/k"):
        with pytest.raises(UsageError, match="names no runner"):
            parse_address(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "70000"], "no port 70000"),
        (["--key", "a b"], "'a b' is no key"),
        (["--tracker", "nowhere"], "'nowhere' is no address"),
        (["--host", "203.0.113.1", "--port", "0"], "cannot listen"),
    ],
)
def test_the_command_checks_its_options(arguments: list[str], message: str) -> None:
    parser = argparse.ArgumentParser()
    serve_rpc.add_arguments(parser)
    with pytest.raises((UsageError, BackendError), match=message):
        serve_rpc.run(parser.parse_args(arguments), Console())


def test_the_warning_is_louder_on_a_network(capsys: pytest.CaptureFixture[str]) -> None:
    assert serve_rpc.is_loopback("localhost")
    assert serve_rpc.is_loopback("::1")
    assert not serve_rpc.is_loopback("0.0.0.0")
    parser = argparse.ArgumentParser()
    serve_rpc.add_arguments(parser)
    with pytest.raises(BackendError):
        serve_rpc.run(parser.parse_args(["--host", "203.0.113.1"]), Console())
    assert "ANYBODY" in capsys.readouterr().err
