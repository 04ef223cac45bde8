"""Exported programs (.pt2) as models: their layers, and typical inputs in batches for them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lutcc.cli.console import Console
from lutcc.cli.models import read_exported
from lutcc.cli.typical import as_tensor, read_typical
from lutcc.errors import InputError, suggest

if TYPE_CHECKING:
    import torch

    from lutcc.frontend.exported_layers import ExportedLayers
    from lutcc.frontend.open_inputs import OpenInputs

BATCH = 64
"""Rows of a batch, where the program leaves that open."""


def read_layers(path: Path, console: Console, *, functional: bool = True) -> ExportedLayers:
    """Load a .pt2 file and find its layers again.

    Raises
    ------
    FrontendError
        When torch cannot read it, or it keeps state.
    """
    with console.working(f"reading {path}"):
        from lutcc.frontend import layers_of

        return layers_of(read_exported(path), functional=functional)


def program_typical(
    model: ExportedLayers, text: str, rows: int | None = None
) -> dict[str, torch.Tensor] | list[dict[str, torch.Tensor]]:
    """Read typical inputs of a program, as ``lutcc.convert`` and ``lutcc.plan`` take them.

    Parameters
    ----------
    model
        What :func:`read_layers` gave.
    text
        A .npy file for a program of one input, else .npz or .safetensors with the inputs by name.
    rows
        The batch that is to be timed, if any: must be one that the program takes.

    Returns
    -------
    All rows at once, by name of forward's parameters; batches that the program takes, if it does
    not take any number of rows, or not all of its inputs have them. What does not fill the smallest
    batch at the end is left out.

    Raises
    ------
    InputError
        When names, types or sizes are not the program's, or the rows do not fill one batch.
    """
    inputs = model.open_inputs
    if not inputs.flat:
        raise InputError(
            f"the program's inputs are nested ({', '.join(inputs.names)})",
            where=text,
            fix="export a model that takes tensors only; or call lutcc.plan and lutcc.convert in "
            "Python, which take such inputs",
        )
    read = read_typical(text)
    if not isinstance(read, dict):
        read = {inputs.names[0]: read}
    _check_names(inputs, read, text)
    tensors = [as_tensor(read[name]) for name in inputs.names]
    tensors = [_as_taken(inputs, i, tensor, text) for i, tensor in enumerate(tensors)]
    _check_sizes(inputs, tensors, text)
    named = dict(zip(inspect.signature(model.forward).parameters, tensors, strict=True))
    batch = next((sizes[0] for sizes in inputs.sizes if sizes), None)
    if batch is None:
        return [named]
    by_row = {
        name
        for (name, value), sizes in zip(named.items(), inputs.sizes, strict=True)
        if sizes[:1] == (batch,) and (isinstance(batch, str) or len(value) != batch)
    }
    least, most = inputs.limits[batch] if isinstance(batch, str) else (batch, batch)
    total = min((len(named[name]) for name in by_row), default=least)
    if total < least or (rows is not None and not least <= rows <= (most or rows)):
        wanted = f"{least}" if least == most else f"{least} {f'to {most}' if most else 'or more'}"
        opened = least <= 1 and most is None
        raise InputError(
            f"the program takes {wanted} rows at a time, not {total if rows is None else rows}",
            where=text if rows is None else "--rows",
            fix="pass at least one row, better some hundred"
            if opened
            else "export it with an open batch: dynamic_shapes={'x': {0: torch.export.Dim('n')}}",
        )
    if len(by_row) == len(named) and least <= 1 and most is None:
        return named
    size = min(BATCH, most or BATCH) if least <= BATCH else least
    starts = [start for start in range(0, total, size) if total - start >= least]
    return [
        {n: value[s : s + size] if n in by_row else value for n, value in named.items()}
        for s in starts
    ]


def _check_names(inputs: OpenInputs, read: dict[str, np.ndarray], where: str) -> None:
    for name in read:
        if name not in inputs.names:
            raise InputError(
                f"the program takes no {name!r}", where=where, fix=suggest(name, inputs.names)
            )
    missing = [name for name in inputs.names if name not in read]
    if missing:
        raise InputError(
            f"the program also takes {', '.join(missing)}",
            where=where,
            fix="write all of them: numpy.savez(path, "
            + ", ".join(f"{name}=..." for name in inputs.names)
            + ")",
        )


def _as_taken(inputs: OpenInputs, place: int, given: torch.Tensor, where: str) -> torch.Tensor:
    """Return an input in the program's type; refuse what that cannot hold."""
    name, example = inputs.names[place], inputs.examples[place]
    if given.dtype == example.dtype:
        return given
    whole = not given.is_floating_point() and not example.is_floating_point()
    if not whole or example.dtype.itemsize < given.dtype.itemsize:
        raise InputError(
            f"{name!r} is {_type(given)}, the program takes {_type(example)}",
            where=where,
            fix=f"save it as {_type(example)}",
        )
    return given.to(example.dtype)


def _check_sizes(inputs: OpenInputs, tensors: list[torch.Tensor], where: str) -> None:
    """Refuse sizes that the program does not take, but for the number of rows."""
    batch = next((sizes[0] for sizes in inputs.sizes if sizes), None)
    seen: dict[str, int] = {}
    for name, given, of in zip(inputs.names, tensors, inputs.sizes, strict=True):
        fits = given.dim() == len(of)
        for axis, (size, count) in enumerate(zip(of, given.shape, strict=False)):
            if isinstance(size, str):
                least, most = inputs.limits[size]
                agrees = seen.setdefault(size, count) == count
                fits &= agrees and (size == batch or least <= count <= (most or count))
            elif size is not None:
                fits &= size == count or (axis == 0 and size == batch)
        if not fits:
            bounds = "".join(
                f", {size} from {least}{f' to {most}' if most else ''}"
                for size, (least, most) in inputs.limits.items()
                if size in of
            )
            raise InputError(
                f"{name!r} has shape {tuple(given.shape)}, the program takes "
                f"({', '.join('?' if size is None else str(size) for size in of)}){bounds}; "
                f"sizes of one name are equal",
                where=where,
                fix="pass such arrays, or export the model with other sizes open",
            )


def _type(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
