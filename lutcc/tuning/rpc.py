"""Measuring on another machine: TVM's RPC server made to last, and the way to it."""

from __future__ import annotations

import contextlib
import ctypes
import json
import multiprocessing
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lutcc.codegen.tvm_setup import import_tvm
from lutcc.errors import BackendError, UsageError
from lutcc.runtime.ffi import torch_hidden
from lutcc.tuning.device import choose_cores, facts, register_flush

DEFAULT_PORT = 9190
DEFAULT_KEY = "lutcc"
FACTS, PREPARE = "lutcc.tuning.facts", "lutcc.tuning.prepare"
_CONNECT_S = 5.0
_RETRY_S = 5.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Address:
    """Where a server or a tracker listens, and the key that it answers to."""

    host: str
    port: int
    key: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"rpc://{host}:{self.port}/{self.key}"


def parse_address(text: str) -> Address:
    """Read ``rpc://host:port/key``; the port and the key may be left out.

    Raises
    ------
    UsageError
        If it is something else.

    Examples
    --------
    >>> parse_address("rpc://localhost:9190/znver5").key
    'znver5'
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    key = parts.path.strip("/")
    if parts.scheme != "rpc" or not parts.hostname or parts.query or any(c in key for c in "/ :"):
        raise UsageError(
            f"{text!r} names no runner", where="runner", fix="write local, or rpc://host:port/key"
        )
    return Address(parts.hostname, port or DEFAULT_PORT, key or DEFAULT_KEY)


# -- the client --------------------------------------------------------------------------------


def connect(text: str, *, threads: int) -> tuple[Any, dict[str, Any]]:
    """Return a session with the server at an address, or one that its tracker gives, and its facts.

    TVM's servers and trackers greet differently, so the address is asked which of them it is. A
    server that is being restarted is waited for.

    Raises
    ------
    BackendError
        If nobody answers, the key is wrong, or the server is none of lutcc's.
    """
    import_tvm()
    import tvm.rpc

    address = parse_address(text)
    tracker = _is_tracker(address)
    try:
        if tracker:
            session = _from_tracker(address)
        else:
            session = tvm.rpc.connect(address.host, address.port, address.key)
    except BackendError:
        raise
    except (RuntimeError, OSError) as error:
        message = _last(error)
        if "key" in message:
            raise BackendError(
                f"the server does not answer to the key {address.key!r}",
                where=text,
                fix="write the key that 'lutcc serve-rpc --key' was given",
            ) from None
        raise BackendError(
            f"the server refuses a session: {message}", where=text, fix="look at its output"
        ) from None
    try:
        session.get_function(PREPARE)(threads)
        found = json.loads(session.get_function(FACTS)())
    except AttributeError:
        raise BackendError(
            "this is a server of TVM's own, which cannot tell what processor it runs on",
            where=text,
            fix="start 'lutcc serve-rpc' there in its place",
        ) from None
    except RuntimeError as error:
        raise BackendError(
            f"the server cannot measure with {threads} threads: {_last(error)}",
            where=text,
            fix="choose fewer threads",
        ) from None
    return session, found


def _last(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _is_tracker(address: Address) -> bool:
    """Tell trackers from servers by their answer to a tracker's greeting: servers hang up."""
    from tvm.rpc.base import RPC_TRACKER_MAGIC

    deadline = time.monotonic() + _RETRY_S
    while True:
        try:
            with socket.create_connection((address.host, address.port), _CONNECT_S) as probe:
                probe.sendall(struct.pack("<i", RPC_TRACKER_MAGIC))
                with contextlib.suppress(ConnectionResetError):
                    return probe.recv(4) == struct.pack("<i", RPC_TRACKER_MAGIC)
                return False
        except TimeoutError:
            raise BackendError(
                f"no answer within {_CONNECT_S:g} s",
                where=str(address),
                fix="it may be serving someone else: one session at a time; wait, or start another "
                "'lutcc serve-rpc' on another port",
            ) from None
        except OSError as error:
            refused = isinstance(error, ConnectionRefusedError)
            if not refused or time.monotonic() > deadline:
                raise BackendError(
                    f"there is no server: {error.strerror or error}",
                    where=str(address),
                    fix="start 'lutcc serve-rpc' there; over a network with --host, or better "
                    "through an SSH tunnel",
                ) from None
            time.sleep(0.5)


def _from_tracker(address: Address) -> Any:
    from tvm.rpc import connect_tracker

    tracker = connect_tracker(address.host, address.port)
    deadline = time.monotonic() + _RETRY_S
    while True:  # a server that has just ended a session takes a moment to report
        summary: Mapping[str, Any] = tracker.summary()
        if summary["queue_info"].get(address.key, {}).get("free"):
            return tracker.request(address.key, max_retry=1)
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    keys = {info["key"].removeprefix("server:") for info in summary["server_info"]}
    if address.key in keys:
        raise BackendError(
            f"all servers of the key {address.key!r} are taken",
            where=str(address),
            fix="wait until one is free, or start another",
        )
    raise BackendError(
        f"the tracker has no server of the key {address.key!r}",
        where=str(address),
        fix=f"its keys are: {', '.join(sorted(keys)) or 'none yet'}",
    )


# -- the server --------------------------------------------------------------------------------


def serve(
    host: str,
    port: int,
    key: str,
    tracker: tuple[str, int] | None,
    on_ready: Callable[[int], None],
    on_event: Callable[[str], None],
) -> None:
    """Serve sessions, one at a time, until interrupted.

    Each session runs in a process of its own; when its client is gone it is ended, whatever it is
    doing, and when it crashes the next one is served.

    Parameters
    ----------
    host, port
        Where to listen; port 0 takes a free one.
    key
        What clients must ask for.
    tracker
        Host and port of a TVM tracker to report to, or None.
    on_ready, on_event
        Told the port once it listens; and what happens then.

    Raises
    ------
    BackendError
        If the address is taken or the tracker is not there.
    """
    with torch_hidden():
        import_tvm()
    from tvm.rpc import base, server

    server.logger.setLevel("ERROR")
    _register()
    family = base.get_addr_family((host, port))
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise BackendError(
                f"cannot listen: {error.strerror}",
                where=f"{host}:{port}",
                fix="choose another --port or --host",
            ) from None
        listener.listen(4)
        taken = listener.getsockname()[1]
        on_ready(taken)

        def serving(connection: socket.socket, peer: Any, options: Any, libraries: Any) -> None:
            on_event(f"session with {peer[0]}:{peer[1]}")
            on_event(f"session over: {_session(server, connection)}")

        server._serving = serving  # its own gives up after the first crash
        while True:
            try:
                server._listen_loop(listener, taken, key, tracker, None, None)
            except RuntimeError as error:
                raise BackendError(
                    _last(error), where="tracker", fix="start the tracker, or leave --tracker out"
                ) from None
            except (struct.error, UnicodeDecodeError, IndexError):  # no client of TVM
                on_event("refused a connection that does not speak TVM's protocol")


def _session(server: Any, connection: socket.socket) -> str:
    """Serve one session in a process, and return how it ended."""
    from tvm.support import utils

    with contextlib.closing(connection):
        folder = utils.tempdir()
        context = multiprocessing.get_context("fork")
        process = context.Process(
            target=_serve_loop, args=(server, connection, folder), daemon=True
        )
        process.start()
        watch = select.poll()
        watch.register(connection, select.POLLRDHUP)
        while process.is_alive():
            if watch.poll(200):  # the client is gone: whatever still runs is of no use
                process.join(1.0)
                process.kill()
                process.join()
                folder.remove()
                return "the client has left"
        process.join()
        folder.remove()
        code = process.exitcode or 0
        return signal.Signals(-code).name if code < 0 else "the client has left"


def _serve_loop(server: Any, connection: socket.socket, folder: Any) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir(folder.path)
    server._serve_loop(connection, None, folder)


def _register() -> None:
    """Register what clients ask of a server beyond TVM's own functions."""
    tvm = import_tvm()
    register_flush()

    def prepare(threads: int) -> None:
        os.sched_setaffinity(0, choose_cores(None, threads))
        os.environ["TVM_NUM_THREADS"] = str(threads)

    tvm.register_global_func(PREPARE, prepare, override=True)
    tvm.register_global_func(FACTS, lambda: json.dumps(facts()), override=True)
