"""Trace a torch model with ``torch.export``, and bring its graph into the importers' form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from lutcc.errors import FrontendError
from lutcc.frontend.checks import (
    refuse_dtypes_and_devices,
    refuse_mutation,
    refuse_training_and_random,
)
from lutcc.frontend.decompositions import decompose
from lutcc.frontend.dynamic import Dynamic, as_called, trace_dynamic, two_of
from lutcc.frontend.exported_layers import ExportedLayers, exported_again
from lutcc.frontend.symbols import BATCH
from lutcc.frontend.tracing import first_line, trace


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
    dynamic: Dynamic | None = None,
    for_kernels: bool = True,
) -> Exported:
    """Trace ``model`` and decompose it to core ATen ops, whole linears and whole convolutions.

    Parameters
    ----------
    model
        A module in evaluation mode, or a program that ``torch.export.export`` made (then
        ``example_inputs`` is ignored).
    example_inputs
        A tensor, a sequence of tensors, or a mapping of keyword arguments. None for the layers of
        an exported program (:func:`lutcc.frontend.layers_of`): its own are taken, and its open
        sizes.
    dynamic_batch
        Make dimension 0 of the inputs one shared symbol ``n >= 1``. A model that only works at the
        example's batch size is imported at that size, with a note.
    dynamic
        Which sizes stay open instead, see :data:`lutcc.frontend.dynamic.Dynamic`.
    for_kernels
        See :func:`lutcc.frontend.decompositions.decompose`.

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
        if dynamic is not None:
            raise FrontendError(
                "an exported program has its open sizes already",
                where="dynamic",
                fix="leave it out, and name them in torch.export.export(..., dynamic_shapes=...)",
            )
        program = model
    elif example_inputs is None and dynamic is None and isinstance(model, ExportedLayers):
        program = exported_again(model)
    elif isinstance(model, torch.nn.Module):
        args, kwargs = _example_arguments(model, example_inputs)
        if dynamic is None:
            program, notes = _trace(model, args, kwargs, dynamic_batch)
        else:
            program, notes = trace_dynamic(model, args, kwargs, dynamic)
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
    functional = decompose(program, for_kernels=for_kernels)
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
        return trace(model, args, kwargs, None), ()
    ranked = [t for t in (*args, *kwargs.values()) if t.dim() >= 1]
    if not ranked:
        return trace(model, args, kwargs, None), ()
    batch = ranked[0].shape[0]
    reason: Exception | None = None
    for share in _sharings(ranked, batch):
        dynamic: list[Any] = [
            {0: Dim(BATCH, min=1)} if id(t) in share else None for t in (*args, *kwargs.values())
        ]
        # torch specialises a traced size of 0 or 1, so a single example row is doubled for the
        # trace
        wide = [
            two_of(t, 0) if id(t) in share and batch < 2 else t for t in (*args, *kwargs.values())
        ]
        try:
            program = trace(
                model,
                tuple(wide[: len(args)]),
                dict(zip(kwargs, wide[len(args) :], strict=True)),
                as_called(model, dynamic, list(kwargs)),
                wrap=False,
            )
        except Exception as error:  # torch.export raises a dozen unrelated classes
            reason = reason or error
            continue
        return program, ()
    program = trace(model, args, kwargs, None)
    return program, (
        f"the batch size is fixed at {batch}: the model specialises on it "
        f"({first_line(reason)}). To mend it: take the "
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
