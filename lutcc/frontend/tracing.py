"""Run ``torch.export`` quietly, and say what is wrong with a model that it refuses."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from lutcc.errors import FrontendError


def trace(
    model: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    dynamic_shapes: Any,
    *,
    wrap: bool = True,
) -> ExportedProgram:
    """Return ``torch.export.export`` of a model.

    Parameters
    ----------
    model, args, kwargs, dynamic_shapes
        As ``torch.export.export`` takes them.
    wrap
        Raise :class:`FrontendError` instead of whatever torch raises.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # the fused transformer kernel is one opaque op; the plain path exports as the ops it is made of
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet_torch():
            return torch.export.export(model, args, kwargs or None, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        if not wrap:
            raise
        raise explained(error, model) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextlib.contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep torch from printing tracebacks and graphs of failures: lutcc reports them with a fix."""
    loggers = [
        logging.getLogger(n)
        for n in ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            # the tracer prints the whole graph before it raises
            with (
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def explained(error: Exception, model: torch.nn.Module) -> FrontendError:
    """Return what torch's exception means for the user, with the line of the model to look at."""
    place = _user_frame(error)
    where = type(model).__name__ + (f", {place}" if place else "")
    text = f"{type(error).__name__}: {error}"
    if "data-dependent" in text.lower() or "DataDependent" in text:
        return FrontendError(
            "the control flow depends on the values of a tensor, so there is no one graph to "
            "compile",
            where=where,
            fix="replace the Python `if`/`while` by torch.where, torch.clamp or torch.cond, or "
            "compile the branches as two models",
        )
    if isinstance(error, TypeError) or "mat1 and mat2" in text or "shape" in text.lower():
        return FrontendError(
            f"the model does not run on the example inputs ({first_line(error)})",
            where=where,
            fix=(
                "check that model(*example_inputs) works in plain torch, with tensors as "
                "the only arguments"
            ),
        )
    return FrontendError(
        f"torch.export cannot trace the model ({first_line(error)})",
        where=where,
        fix=(
            "make torch.export.export(model, example_inputs) work, or pass the "
            "ExportedProgram itself"
        ),
    )


def _user_frame(error: Exception) -> str | None:
    torch_root = str(Path(torch.__file__).parent)
    here = str(Path(__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((torch_root, here, "<")):
            return f"{Path(frame.filename).name}:{frame.lineno} `{frame.line}`"
    return None


def first_line(error: Exception | None) -> str:
    """Return the line of a message that says most: what was specialised, else the first."""
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    lines.sort(key=lambda line: "specialized" not in line)
    return lines[0][:300] if lines else type(error).__name__
