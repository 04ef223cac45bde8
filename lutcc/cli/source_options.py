"""Options of commands that take whatever `lutcc compile` takes, and its import."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from lutcc.cli.console import Console

MAX_LENGTH = 2**20


def add_source_options(
    parser: argparse.ArgumentParser, length: Callable[[str], Any], length_help: str
) -> None:
    """Declare what makes and converts a model.

    Parameters
    ----------
    parser
        Of the command.
    length
        Reads the value of ``--length``; raises ``argparse.ArgumentTypeError``.
    length_help
        Says what that is.
    """
    torch = parser.add_argument_group(
        "of an exported program, a Hugging Face folder or package.module:factory"
    )
    torch.add_argument("-r", "--recipe", metavar="RECIPE.toml", help="convert layers first")
    torch.add_argument(
        "-c",
        "--calibration",
        metavar="X",
        help="typical inputs: .npy, .npz by name; for a folder also .txt, a sentence a line",
    )
    torch.add_argument("-w", "--weights", metavar="W.safetensors", help="state of a factory")
    torch.add_argument("--length", type=length, metavar="N", help=length_help)


def length_of(text: str) -> int | str:
    """Return a number of tokens, or the name of an open one.

    Raises
    ------
    argparse.ArgumentTypeError
        For anything else.
    """
    if text == "n":
        raise argparse.ArgumentTypeError("'n' is the name of the batch size: use another one")
    if text.isidentifier() and text.isascii():
        return text
    if not text.isdecimal() or not 1 <= int(text) <= MAX_LENGTH:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of tokens: use 1 to {MAX_LENGTH}, or a name for an open length"
        )
    return int(text)


def lengths_of(text: str) -> tuple[str | None, tuple[int, ...]]:
    """Return the name of an open length, if there is one, and lengths.

    Raises
    ------
    argparse.ArgumentTypeError
        For anything else than lengths, or a name before them.

    Examples
    --------
    >>> lengths_of("16,128"), lengths_of("tokens=16,128"), lengths_of("tokens")
    ((None, (16, 128)), ('tokens', (16, 128)), ('tokens', ()))
    """
    name, equals, numbers = text.rpartition("=")
    if not equals and text[:1].isalpha():
        name, numbers = text, ""
    if (name or equals) and not isinstance(length_of(name), str):
        raise argparse.ArgumentTypeError(f"{name!r} is no name for an open length")
    found: list[int] = []
    for part in filter(None, numbers.split(",")) if name else numbers.split(","):
        value = length_of(part)
        if not isinstance(value, int):
            raise argparse.ArgumentTypeError(
                f"{text!r} lists no lengths: write 16,128, or tokens=16,128 to leave it open"
            )
        found.append(value)
    return name or None, tuple(dict.fromkeys(found))


def import_source(args: argparse.Namespace, console: Console) -> Any:
    """Read or make the model of ``args.model``: an IR module, or an imported torch model.

    Raises
    ------
    LutccError
        When it cannot be read, made, converted or imported.
    """
    from lutcc.cli.compile_source import read_source
    from lutcc.ir.module import Module

    source = read_source(args, console)
    if isinstance(source.model, Module):
        return source.model
    from lutcc.frontend import import_torch

    with console.working(f"importing {args.model}"):
        return import_torch(source.model, source.examples, **source.options)
