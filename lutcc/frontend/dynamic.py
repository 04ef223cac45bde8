"""Sizes of a model's inputs that stay open, as the caller names them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch.export import Dim, ExportedProgram

from lutcc.errors import FrontendError
from lutcc.frontend.tracing import explained, first_line, trace

Dynamic: TypeAlias = Mapping[Any, Any] | Sequence[Any]
"""``{0: "n", 1: "length"}`` for every input that has these dimensions; ``{"x": {0: "n"}}`` by name;
``[{0: "n"}, None]`` by position. A size is a name or a ``torch.export.Dim``."""

_FIX = (
    'pass {0: "n", 1: "length"} for all inputs, or {"input": {0: "n", 1: "length"}} by name, with '
    "names or torch.export.Dim as sizes"
)
_SUGGESTED = re.compile(r"^\s*(\w+) = Dim\('\w+'(?:, min=(\d+))?(?:, max=(\d+))?\)\s*$", re.M)
_TRIES = 4


def trace_dynamic(
    model: torch.nn.Module,
    args: tuple[torch.Tensor, ...],
    kwargs: dict[str, torch.Tensor],
    dynamic: Dynamic,
) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Trace a model with the sizes open that ``dynamic`` names; return it and notes for the user.

    Where the model itself bounds a size (a table of 512 positions), the bound is taken over.

    Raises
    ------
    FrontendError
        If ``dynamic`` does not fit the inputs, or the model works at the example's size only.
    """
    names = _input_names(model, args, kwargs)
    inputs = dict(zip(names, (*args, *kwargs.values()), strict=True))
    axes = _open_axes(dynamic, inputs)
    inputs = _widened(inputs, axes)
    bounds: dict[str, Any] = {}
    for _ in range(_TRIES):
        shapes = {
            name: {axis: bounds.get(size.__name__, size) for axis, size in axes[name].items()}
            or None
            for name in names
        }
        try:
            program = trace(
                model,
                tuple(inputs[name] for name in names[: len(args)]),
                {name: inputs[name] for name in names[len(args) :]},
                as_called(model, list(shapes.values()), list(kwargs)),
                wrap=False,
            )
        except Exception as error:  # torch.export raises a dozen unrelated classes
            narrower = _suggested(error, bounds)
            if narrower is None:
                raise _refused(error, model, axes) from error
            bounds = narrower
            continue
        return program, tuple(_note(size) for size in bounds.values())
    raise FrontendError(
        f"torch.export finds no bounds for the open sizes {', '.join(sorted(bounds))}",
        where=type(model).__name__,
        fix="pass torch.export.Dim(name, min=..., max=...) in `dynamic`",
    )


def as_called(model: torch.nn.Module, of_input: Sequence[Any], keywords: Sequence[str]) -> Any:
    """Return what belongs to each input in the structure of forward's parameters.

    ``torch.export`` wants dynamic shapes so: those of ``*args`` are a tuple under that name.
    """
    positional = of_input[: len(of_input) - len(keywords)]
    named = dict(zip(keywords, of_input[len(positional) :], strict=True))
    return dict(inspect.signature(model.forward).bind(*positional, **named).arguments)


def _input_names(
    model: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: Mapping[str, torch.Tensor]
) -> list[str]:
    """Return the inputs' names in the order of the call: those of forward's parameters."""
    parameters = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    positional = [*parameters, *(f"input{i}" for i in range(len(parameters), len(args)))]
    return [*positional[: len(args)], *kwargs]


def _open_axes(dynamic: Dynamic, inputs: Mapping[str, torch.Tensor]) -> dict[str, dict[int, Any]]:
    """Return the open dimensions of each input, by axis."""
    known: dict[str, Any] = {}
    if isinstance(dynamic, Mapping) and all(isinstance(key, int) for key in dynamic):
        of_input: dict[str, Any] = {
            name: {axis: size for axis, size in dynamic.items() if axis < tensor.dim()}
            for name, tensor in inputs.items()
        }
    elif isinstance(dynamic, Mapping):
        unknown = [name for name in dynamic if name not in inputs]
        if unknown:
            raise FrontendError(
                f"there is no input {unknown[0]!r} among {', '.join(inputs)}",
                where="dynamic",
                fix=_FIX,
            )
        of_input = {name: dynamic.get(name) for name in inputs}
    elif isinstance(dynamic, Sequence) and not isinstance(dynamic, str):
        if len(dynamic) != len(inputs):
            raise FrontendError(
                f"it lists {len(dynamic)} inputs, and the model has {len(inputs)}",
                where="dynamic",
                fix=_FIX,
            )
        of_input = dict(zip(inputs, dynamic, strict=True))
    else:
        raise FrontendError(f"it is a {type(dynamic).__name__}", where="dynamic", fix=_FIX)
    return {name: _axes(name, tensor, of_input[name], known) for name, tensor in inputs.items()}


def _axes(name: str, tensor: torch.Tensor, wanted: Any, known: dict[str, Any]) -> dict[int, Any]:
    where = f"dynamic[{name!r}]"
    if wanted is None:
        return {}
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        wanted = dict(enumerate(wanted))
    if not isinstance(wanted, Mapping):
        raise FrontendError(f"is a {type(wanted).__name__}", where=where, fix=_FIX)
    axes: dict[int, Any] = {}
    for axis, size in wanted.items():
        if size is None:
            continue
        if not isinstance(axis, int) or not -tensor.dim() <= axis < tensor.dim():
            raise FrontendError(
                f"the input has no dimension {axis!r}: its shape is {tuple(tensor.shape)}",
                where=where,
                fix=_FIX,
            )
        if isinstance(size, str) and size.isidentifier():
            size = known.get(size) or Dim(size, min=1)
        label = getattr(size, "__name__", None)
        if label is None:
            raise FrontendError(f"size {size!r} is no name", where=where, fix=_FIX)
        axes[axis % tensor.dim()] = known.setdefault(label, size)
    return axes


def _widened(
    inputs: Mapping[str, torch.Tensor], axes: Mapping[str, Mapping[int, Any]]
) -> dict[str, torch.Tensor]:
    """Return the examples with open sizes of at least 2: torch specialises on 0 and 1."""
    shown: dict[str, tuple[str, int]] = {}
    for name, of_input in axes.items():
        for axis, size in of_input.items():
            count = inputs[name].shape[axis]
            first, before = shown.setdefault(size.__name__, (name, count))
            if before != count:
                raise FrontendError(
                    f"{size.__name__} is {before} in example input {first!r} and {count} in "
                    f"{name!r}",
                    where="dynamic",
                    fix="pass example inputs that agree, or name the two sizes differently",
                )
    wide = dict(inputs)
    for name, of_input in axes.items():
        for axis in of_input:
            wide[name] = two_of(wide[name], axis) if wide[name].shape[axis] < 2 else wide[name]
    return wide


def two_of(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Return an example with its first slice along ``axis`` twice (zeros if it has none)."""
    shape = list(tensor.shape)
    shape[axis] = 2
    if tensor.shape[axis] == 0:
        return tensor.new_zeros(shape)
    return tensor.narrow(axis, 0, 1).expand(shape).clone()


def _suggested(error: Exception, bounds: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the bounds that torch asks for, or None if there are none or they are in place."""
    fixes = str(error).split("Suggested fixes:")
    if len(fixes) < 2 or re.search(r"^\s*\w+ = (?!Dim\()", fixes[1], re.M):
        return None
    found = dict(bounds)
    for name, least, most in _SUGGESTED.findall(fixes[1]):
        found[name] = Dim(name, min=int(least) if least else 1, max=int(most) if most else None)
    return found if found and str(found) != str(dict(bounds)) else None


def _refused(
    error: Exception, model: torch.nn.Module, axes: Mapping[str, Mapping[int, Any]]
) -> FrontendError:
    """Say which open size the model does not take, with what torch proposes."""
    _, found, proposals = str(error).partition("Suggested fixes:")
    if not found:
        return explained(error, model)
    open_sizes = {size.__name__ for of_input in axes.values() for size in of_input.values()}
    lines = [line.strip() for line in proposals.splitlines() if " = " in line]
    return FrontendError(
        f"the model does not take every {' and '.join(sorted(open_sizes))} ({first_line(error)})",
        where=type(model).__name__,
        fix=(
            f"torch proposes: {'; '.join(lines)}. Leave that size out of `dynamic`, pass a "
            "torch.export.Dim with these bounds, or take sizes from x.shape and keep them out of "
            "Python conditions"
        ),
    )


def _note(size: Any) -> str:
    most = "" if size.max > 2**31 else f" and at most {size.max}"
    return f"{size.__name__} is at least {size.min}{most}: the model itself bounds it"
