"""Trace a torch model with ``torch.export``, and bring its graph into the importers' form."""

from __future__ import annotations

import contextlib
import io
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

import lutcc.ops  # noqa: F401  registers torch.ops.lutcc
from lutcc.errors import FrontendError
from lutcc.frontend.checks import (
    refuse_dtypes_and_devices,
    refuse_mutation,
    refuse_training_and_random,
)

BATCH = "n"
"""Name of the symbolic batch size in every imported module."""

_KEEP_WHOLE = (
    torch.ops.aten.linear.default,
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
)


@dataclass(frozen=True, slots=True)
class Exported:
    """A traced, functional, decomposed program and what is worth telling the user about it."""

    program: ExportedProgram
    notes: tuple[str, ...] = ()


def export_program(
    model: torch.nn.Module | ExportedProgram,
    example_inputs: object = None,
    *,
    dynamic_batch: bool = True,
) -> Exported:
    """Trace ``model`` and decompose it to core ATen ops, whole linears and whole convolutions.

    Parameters
    ----------
    model
        A module in evaluation mode, or a program that ``torch.export.export`` made (then
        ``example_inputs`` is ignored).
    example_inputs
        A tensor, a sequence of tensors, or a mapping of keyword arguments.
    dynamic_batch
        Make dimension 0 of the inputs one shared symbol ``n >= 1``. A model that only works at the
        example's batch size is imported at that size, with a note.

    Raises
    ------
    FrontendError
        If the model cannot be traced, is in training mode where that matters, draws random numbers,
        changes its buffers, or uses a dtype or device that lutcc does not compile.

    Examples
    --------
    >>> exported = export_program(torch.nn.Linear(4, 2), torch.zeros(8, 4))
    >>> exported.notes
    ()
    """
    notes: tuple[str, ...] = ()
    if isinstance(model, ExportedProgram):
        program = model
    elif isinstance(model, torch.nn.Module):
        args, kwargs = _example_arguments(model, example_inputs)
        program, notes = _trace(model, args, kwargs, dynamic_batch)
    else:
        raise FrontendError(
            f"a {type(model).__name__} cannot be imported",
            where="import_torch",
            fix=(
                "pass a torch.nn.Module with example_inputs, or the result of "
                "torch.export.export(...)"
            ),
        )
    refuse_training_and_random(program)
    refuse_dtypes_and_devices(program)
    functional = _decompose(program)
    refuse_mutation(functional)
    return Exported(functional, notes)


def _example_arguments(
    model: torch.nn.Module, example_inputs: object
) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    where = f"example_inputs of {type(model).__name__}"
    fix = (
        "pass a tensor, a tuple of tensors, or a dict of keyword arguments, such as "
        "torch.zeros(1, 64)"
    )
    if example_inputs is None:
        raise FrontendError("none were given", where=where, fix=fix)
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        kwargs = {str(k): v for k, v in example_inputs.items()}
    elif isinstance(example_inputs, Sequence) and not isinstance(example_inputs, str):
        args = tuple(example_inputs)
    else:
        args = (example_inputs,)
    named = {
        **{f"[{i}]": a for i, a in enumerate(args)},
        **{f"[{k!r}]": v for k, v in kwargs.items()},
    }
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            if hasattr(value, "__array__") and getattr(value, "ndim", 0):
                continue
            raise FrontendError(
                f"{name} is a {type(value).__name__}, not a tensor", where=where, fix=fix
            )
    args = tuple(torch.as_tensor(a) for a in args)
    kwargs = {k: torch.as_tensor(v) for k, v in kwargs.items()}
    return args, kwargs


def _trace(
    model: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    dynamic_batch: bool,
) -> tuple[ExportedProgram, tuple[str, ...]]:
    if not dynamic_batch:
        return _export(model, args, kwargs, None), ()
    ranked = [t for t in (*args, *kwargs.values()) if t.dim() >= 1]
    if not ranked:
        return _export(model, args, kwargs, None), ()
    batch = ranked[0].shape[0]
    reason: Exception | None = None
    for share in _sharings(ranked, batch):
        dynamic: list[Any] = [
            {0: Dim(BATCH, min=1)} if id(t) in share else None for t in (*args, *kwargs.values())
        ]
        # torch specialises a traced size of 0 or 1, so a single example row is doubled for the
        # trace
        wide = [
            _two_rows(t) if id(t) in share and batch < 2 else t for t in (*args, *kwargs.values())
        ]
        names = list(kwargs)
        shapes = (
            {name: dynamic[len(args) + i] for i, name in enumerate(names)}
            if names and not args
            else tuple(dynamic)
        )
        try:
            program = _export(
                model,
                tuple(wide[: len(args)]),
                dict(zip(names, wide[len(args) :], strict=True)),
                shapes,
                wrap=False,
            )
        except Exception as error:  # torch.export raises a dozen unrelated classes
            reason = reason or error
            continue
        return program, ()
    program = _export(model, args, kwargs, None)
    return program, (
        f"the batch size is fixed at {batch}: the model specialises on it "
        f"({_first_line(reason)}). To mend it: take the "
        "batch size from x.shape[0] instead of a number, and keep it out of Python conditions.",
    )


def _sharings(ranked: list[torch.Tensor], batch: int) -> list[set[int]]:
    """Return the sets of inputs to try as sharing the batch dimension, the largest first."""
    tries = [
        {id(t) for t in ranked},
        {id(t) for t in ranked if t.shape[0] == batch},
        {id(ranked[0])},
    ]
    return [s for i, s in enumerate(tries) if s not in tries[:i] and not (i == 0 and s != tries[1])]


def _two_rows(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.shape[0] == 0:
        return tensor.new_zeros((2, *tensor.shape[1:]))
    return tensor[:1].repeat(2, *([1] * (tensor.dim() - 1)))


def _export(
    model: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    dynamic_shapes: Any,
    *,
    wrap: bool = True,
) -> ExportedProgram:
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # the fused transformer kernel is one opaque op; the plain path exports as the ops it is made of
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _quiet_torch():
            return torch.export.export(model, args, kwargs or None, dynamic_shapes=dynamic_shapes)
    except Exception as error:
        if not wrap:
            raise
        raise _explain(error, model) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextlib.contextmanager
def _quiet_torch() -> Iterator[None]:
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


def _explain(error: Exception, model: torch.nn.Module) -> FrontendError:
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
            f"the model does not run on the example inputs ({_first_line(error)})",
            where=where,
            fix=(
                "check that model(*example_inputs) works in plain torch, with tensors as "
                "the only arguments"
            ),
        )
    return FrontendError(
        f"torch.export cannot trace the model ({_first_line(error)})",
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


def _first_line(error: Exception | None) -> str:
    lines = [line.strip(" -") for line in str(error).splitlines() if line.strip()]
    lines.sort(key=lambda line: "specialized" not in line)
    return lines[0][:300] if lines else type(error).__name__


def _decompose(program: ExportedProgram) -> ExportedProgram:
    table: dict[Any, Callable[..., Any]] = dict(torch.export.default_decompositions())
    for op in _KEEP_WHOLE:
        table.pop(op, None)
    table[torch.ops.aten.scaled_dot_product_attention.default] = _attention
    table[torch.ops.lutcc.codebook_dequantize.default] = _narrow_rows
    with _quiet_torch():
        return program.run_decompositions(table)


def _narrow_rows(rows: torch.Tensor, *args: Any) -> Any:
    """Cast row numbers to int32, which the IR takes: it has no casts itself."""
    if rows.dtype is torch.int32:
        return NotImplemented  # stays as it is
    return torch.ops.lutcc.codebook_dequantize(rows.to(torch.int32), *args)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Attention as batched products around a softmax; unmasked rows need no guard against -inf."""
    if attn_mask is not None and attn_mask.dtype is torch.bool:  # the operator below would add 0, 1
        where_seen = torch.zeros((), dtype=query.dtype)
        attn_mask = torch.where(attn_mask, where_seen, -torch.inf)
    if attn_mask is not None or is_causal or enable_gqa or dropout_p:
        return torch.ops.aten._scaled_dot_product_attention_math.default(
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            None,
            scale=scale,
            enable_gqa=enable_gqa,
        )[0]
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    weights = torch.softmax(torch.matmul(query * factor, key.transpose(-2, -1)), dim=-1)
    return torch.matmul(weights, value)
