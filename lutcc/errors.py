"""Every error that lutcc raises on purpose.

Each message says what went wrong, where, and how to mend it. Catch :class:`LutccError` to catch
them all; the classes that also derive from a built-in (``ValueError``, ``TypeError``, ...) are
caught by code that knows nothing of lutcc.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class LutccError(Exception):
    """Base of all lutcc errors.

    Parameters
    ----------
    what
        What went wrong, one sentence, with the offending values.
    where
        The place: a file, a layer, an operation, an argument.
    fix
        What the user can do about it.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        parts = [f"{where}: {what}" if where else what]
        if fix:
            parts.append(f"To mend it: {fix}")
        super().__init__("\n".join(parts))


class ParseError(LutccError, ValueError):
    """The text form of a module cannot be read; ``where`` is ``line:column``."""


class VerifyError(LutccError, ValueError):
    """A module breaks a rule of the IR; the message names both sides and the place."""


class InputError(LutccError, ValueError):
    """An argument has a wrong shape, dtype, device, or value (NaN, infinity)."""


class NotFittedError(LutccError, ValueError, AttributeError):
    """An estimator or layer is used before ``fit``."""


class ConvertError(LutccError, ValueError):
    """A recipe does not fit the model (unknown layer, wrong config)."""


class RecipeError(ConvertError):
    """A recipe file or dictionary is malformed."""


class FrontendError(LutccError):
    """A torch model cannot be imported."""


class CompileError(LutccError):
    """Lowering or building failed."""


class TargetError(LutccError, ValueError):
    """A target name is unknown, or asks for what this build cannot make."""


class ArtifactError(LutccError):
    """An artifact cannot be read: missing, truncated, tampered with, or of another version."""


class CpuMismatchError(ArtifactError):
    """No variant in the artifact runs on this CPU."""


class LogError(LutccError, ValueError):
    """A tuning log cannot be read or written, or has records of another version."""


class DependencyError(LutccError, ImportError):
    """A package, tool or library is missing or has a version known to fail."""


class BackendError(LutccError, RuntimeError):
    """A kernel reported an error at run time."""


class CommunicationError(LutccError, RuntimeError):
    """Workers that train together lost one of them, or do not do the same."""


class UsageError(LutccError, ValueError):
    """The command line was called in a wrong way (exit code 2)."""


def suggest(name: str, known: Iterable[str], *, limit: int = 3) -> str:
    """Return ``"did you mean 'a', 'b'?"`` for the names nearest to ``name``, or a short list.

    Examples
    --------
    >>> suggest("treee_encode", ["tree_encode", "linear"])
    "did you mean 'tree_encode'?"
    """
    names = sorted(set(known))
    close = get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return "did you mean " + ", ".join(repr(c) for c in close) + "?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"known names are: {shown}" if names else "there are none"
