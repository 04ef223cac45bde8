"""Parses the command line, runs one sub-command and turns its outcome into an exit code."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Protocol, cast

from lutcc import __version__
from lutcc.cli.console import Console
from lutcc.cli.options import shared_options
from lutcc.errors import LutccError, UsageError

COMMANDS = (
    "demo",
    "fit",
    "plan",
    "convert",
    "compress",
    "compile",
    "run",
    "serve-check",
    "tune",
    "logs",
    "report",
    "serve-rpc",
    "bench",
    "inspect",
    "doctor",
)
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130


class Command(Protocol):
    """What each module of ``lutcc.cli`` named in ``COMMANDS`` provides."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""
        ...

    def run(self, args: argparse.Namespace, console: Console) -> int:
        """Do the work and return the exit code."""
        ...


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="lutcc", description="Compiles neural networks into look-ups and runs them."
    )
    parser.add_argument("--version", action="version", version=f"lutcc {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = _command(name)
        lines = (module.__doc__ or "").strip().splitlines()
        sub = commands.add_parser(
            name,
            parents=[shared_options()],
            help=lines[0].rstrip(".").lower() if lines else None,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        cast(Command, module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lutcc`` with ``argv`` (default: the process's own) and return its exit code.

    0: done; 1: failed, with a message on stderr; 2: called in a wrong way; 130: interrupted.

    Examples
    --------
    >>> from lutcc.cli.main import main
    >>> main(["doctor", "--json"])  # doctest: +SKIP
    0
    """
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as stop:  # argparse: 0 after --help, 2 after a wrong option
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    console = Console(json=args.json, quiet=args.quiet, verbose=args.verbose)
    try:
        code = cast(Command, _command(args.command)).run(args, console)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        console.error("interrupted")
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader (head, less) went away: not an error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except LutccError as error:
        if args.verbose >= 2:
            traceback.print_exc()
        else:
            console.error(str(error))
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except OSError as error:  # a file that cannot be read or written; anything else is a bug
        if args.verbose >= 2:
            traceback.print_exc()
        else:
            console.error(f"{error.filename or 'input/output'}: {error.strerror or error}")
        return EXIT_FAILED


def _command(name: str) -> object:
    return importlib.import_module(f"lutcc.cli.{name.replace('-', '_')}")


if __name__ == "__main__":
    sys.exit(main())
