"""What a command prints: results to stdout, progress and errors to stderr."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.markup import escape


class _Out(RichConsole):
    """Standard output; when its reader has gone away, ``main`` decides what that means."""

    def on_broken_pipe(self) -> None:
        """Let the error through (rich would end the process with code 1)."""
        raise BrokenPipeError


class Console:
    """Prints either for a person or, with ``json``, one JSON document."""

    def __init__(self, *, json: bool = False, quiet: bool = False, verbose: int = 0) -> None:
        self.json, self.quiet, self.verbose = json, quiet, verbose
        wide = None if sys.stdout.isatty() else 160  # a file or a pipe has no width of its own
        self._out = _Out(highlight=False, emoji=False, width=wide)  # models:x: is no emoji
        self._err = RichConsole(stderr=True, highlight=False, emoji=False)

    @property
    def on_terminal(self) -> bool:
        """Whether progress goes to a terminal."""
        return self._err.is_terminal

    @property
    def progress_console(self) -> RichConsole:
        """Where bars and spinners are drawn."""
        return self._err

    def result(self, data: Any, *renderables: RenderableType) -> None:
        """Print the outcome of the command: ``data`` under ``--json``, else the renderables."""
        if self.json:
            json_text.dump(data, sys.stdout, indent=2, default=_plain)
            sys.stdout.write("\n")
            return
        for renderable in renderables:
            if isinstance(renderable, str):
                self._out.print(renderable, markup=False)
            else:
                self._out.print(renderable, crop=False)

    def document(self, data: Any, text: str) -> None:
        """Print ``text`` as it is, for other programs to read; ``data`` under ``--json``."""
        if self.json:
            self.result(data)
        else:
            sys.stdout.write(text)

    def progress(self, message: str) -> None:
        """Tell on stderr what is being done (not with ``-q``)."""
        if not self.quiet:
            self._err.print(message, markup=False, style="dim", soft_wrap=True)

    def detail(self, message: str) -> None:
        """Tell more, under ``-v`` only."""
        if self.verbose and not self.quiet:
            self._err.print(message, markup=False, style="dim")

    def warning(self, message: str) -> None:
        """Print a warning on stderr, also under ``-q``."""
        self._err.print(f"lutcc: warning: {message}", markup=False, soft_wrap=True, style="yellow")

    def error(self, message: str) -> None:
        """Print an error on stderr, whatever the other options say."""
        self._err.print(f"lutcc: {message}", markup=False, soft_wrap=True)

    @contextmanager
    def working(self, message: str) -> Iterator[None]:
        """Show that a step is running: a spinner on a terminal, one line elsewhere."""
        if self.quiet:
            yield
        elif self._err.is_terminal:
            with self._err.status(escape(message), spinner="dots"):
                yield
        else:
            self.progress(message)
            yield


def _plain(value: Any) -> Any:
    """Turn NumPy scalars, arrays, paths and the like into what JSON knows."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (set, frozenset, tuple)):
        return sorted(value) if isinstance(value, (set, frozenset)) else list(value)
    return str(value)
