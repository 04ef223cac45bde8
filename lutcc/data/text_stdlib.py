"""The text that every machine with Python has: the standard library and its documentation."""

from __future__ import annotations

import ast
import sysconfig
import tokenize
from collections.abc import Callable
from functools import partial
from pathlib import Path

from lutcc.data.text import TextSplit, split
from lutcc.errors import InputError

#: Folders that are not the library itself, or are tables rather than text.
SKIPPED = frozenset(
    {"__pycache__", "dist-packages", "encodings", "idle_test", "pydoc_data", "site-packages"}
    | {"test", "tests"}
)


def load_standard_library(
    folder: str | Path | None = None,
    *,
    documentation_only: bool = False,
    validation_share: float = 0.05,
    max_bytes: int | None = None,
) -> TextSplit:
    """Return the standard library's sources and the language reference that ``help()`` shows.

    The text differs between releases of Python; :meth:`TextSplit.digest` tells which it was.

    Parameters
    ----------
    folder
        The library; by default the one of the Python that runs.
    documentation_only
        Of each module, take the documentation strings only.
    validation_share, max_bytes
        See :func:`lutcc.data.text.split`.

    Raises
    ------
    InputError
        If the folder holds no sources (some installations have compiled modules only).

    Examples
    --------
    >>> text = load_standard_library(max_bytes=200_000)
    >>> len(text.train) > len(text.validation) > 0
    True
    """
    root = Path(sysconfig.get_path("stdlib") if folder is None else folder)
    documents: dict[str, str | Callable[[], str]] = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        # _sysconfigdata_x86... and config-3... hold this machine's settings.
        private = parts[-1].startswith("_sysconfigdata") or parts[0].startswith("config-")
        if not private and not SKIPPED.intersection(parts):
            documents["/".join(parts)] = partial(_read, path, documentation_only)
    if not documents:
        raise InputError(
            "there are no sources of the standard library",
            where=str(root),
            fix="this Python came without them: name a text file or folder of your own",
        )
    documents |= _language_reference(root)
    kind = "documentation" if documentation_only else "sources and documentation"
    return split(
        documents,
        f"Python's standard library, {kind}",
        validation_share=validation_share,
        max_bytes=max_bytes,
    )


def documentation(source: str) -> str:
    r"""Return the documentation strings of a module in the order in which they stand there.

    Examples
    --------
    >>> documentation('"A module."\ndef f():\n    "A function."')
    'A module.\n\nA function.'
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:  # templates that only look like modules
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, kinds) and (text := ast.get_docstring(node)):
            found.append((getattr(node, "lineno", 0), text))
    return "\n\n".join(text for _, text in sorted(found))


def _read(path: Path, documentation_only: bool) -> str:
    """Return a module's text; none for the few files that are broken on purpose."""
    try:
        with tokenize.open(path) as file:
            text = file.read()
    except (OSError, SyntaxError, UnicodeDecodeError):
        return ""
    return documentation(text) if documentation_only else text


def _language_reference(root: Path) -> dict[str, str]:
    """Return the topics of ``help()``, read as data: the values of the module's dictionary."""
    text = _read(root / "pydoc_data" / "topics.py", documentation_only=False)
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                    name, topic = key.value, value.value
                    if isinstance(topic, str):
                        found[f"topic {name}"] = topic
    return found
