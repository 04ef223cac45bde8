"""Lend this machine to `lutcc tune --runner rpc://host:port/key` on another one.

Whoever can connect can run any code here under your name: there is no password, and the key is
none. Leave it on loopback and forward the port (`ssh -L 9190:localhost:9190 this-machine`), or
use a network that you trust in full.
"""

from __future__ import annotations

import argparse
import ipaddress

from lutcc.cli.console import Console
from lutcc.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where to listen."""
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="H", help="address to listen on (127.0.0.1)"
    )
    parser.add_argument(
        "--port", type=int, default=9190, metavar="P", help="port; 0 takes a free one (9190)"
    )
    parser.add_argument(
        "--key", default="lutcc", metavar="K", help="name that clients ask for (lutcc)"
    )
    parser.add_argument(
        "--tracker", metavar="HOST:PORT", help="TVM tracker to report to, which hands out sessions"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Serve until Ctrl-C."""
    from lutcc.tuning.rpc import serve

    if not 0 <= args.port < 65536:
        raise UsageError(f"there is no port {args.port}", where="--port", fix="use 0 to 65535")
    if not args.key or any(c in args.key for c in "/ :"):
        raise UsageError(
            f"{args.key!r} is no key", where="--key", fix="use letters, digits, '-' and '_'"
        )
    tracker = None
    if args.tracker:
        name, colon, port = args.tracker.rpartition(":")
        if not (name and colon and port.isdigit()):
            raise UsageError(
                f"{args.tracker!r} is no address", where="--tracker", fix="write HOST:PORT"
            )
        tracker = (name, int(port))
    if is_loopback(args.host):
        console.error(
            "WARNING: every user and program of this machine can now run any code as you, through "
            f"port {args.port or '(see below)'}; stop with Ctrl-C when you are done"
        )
    else:
        console.error(
            f"WARNING: ANYBODY who reaches {args.host}:{args.port} over the network can now run "
            "ANY CODE on this machine as you, read and delete your files. There is no password. "
            "Stop (Ctrl-C) unless the network is yours alone; safe is --host 127.0.0.1 with an SSH "
            "tunnel"
        )

    def ready(port: int) -> None:
        address = f"rpc://{args.host}:{port}/{args.key}"
        console.result({"address": address, "port": port}, f"serving {address}")

    serve(args.host, args.port, args.key, tracker, ready, console.progress)
    return 0


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach an address.

    Examples
    --------
    >>> is_loopback("127.0.0.1"), is_loopback("0.0.0.0")
    (True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
