"""Options that every command takes."""

from __future__ import annotations

import argparse
from typing import Any


def shared_options(*, nested: bool = False) -> argparse.ArgumentParser:
    """Return a parser of the options that every command takes, for ``parents``.

    Parameters
    ----------
    nested
        For a sub-command of a command: what was given before its name is kept.
    """

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if nested else value

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--json",
        action="store_true",
        default=default(False),
        help="print the result as one JSON document",
    )
    parser.add_argument(
        "-q", "--quiet", action="store_true", default=default(False), help="no progress"
    )
    parser.add_argument(
        "-v", "--verbose", action="count", default=default(0), help="more; -vv: tracebacks"
    )
    parser.add_argument(
        "--seed", type=int, default=default(0), metavar="S", help="of all random choices (0)"
    )
    return parser
