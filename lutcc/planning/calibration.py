"""Calibration data of a plan: checked, cut into parts for fitting, choosing and checking."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from lutcc.convert_model import Batch, _batches
from lutcc.errors import InputError

#: Rows of a piece where the calibration is one array, and the batch that is timed then.
PIECE = 64
_PIECES = 8  # at least, where the calibration is cut


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """Some batches, and the labels of their rows, joined; None without labels."""

    batches: list[Batch]
    labels: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """Rows of all batches together."""
        return sum(_rows_of(batch) or 1 for batch in self.batches)


@dataclasses.dataclass(frozen=True, slots=True)
class Calibration:
    """Half of the batches to fit layers on, a quarter to choose by, a quarter to check the choice.

    Parameters
    ----------
    fit, choose, check
        No row is in two of them.
    example
        A batch of the size that is timed.
    rows
        That size.
    """

    fit: Part
    choose: Part
    check: Part
    example: Batch
    rows: int

    @property
    def given(self) -> Any:
        """The part to fit on, as :func:`lutcc.convert` takes it."""
        return [kwargs or args for args, kwargs in self.fit.batches]


def read_calibration(
    model: torch.nn.Module, calibration: Any, labels: Any = None, rows: int | None = None
) -> Calibration:
    """Check the calibration and cut it.

    Parameters
    ----------
    model
        What it is for.
    calibration
        As for :func:`lutcc.convert`. Rows of a single array are shuffled (always in the same way)
        and cut into batches of at most 64; fewer than four batches are cut as well.
    labels
        (rows,) integers in the order of the rows, or None.
    rows
        The batch to time; by default that of the first batch given, of a single array at most 64.

    Raises
    ------
    InputError
        If there are fewer than 8 rows in fewer than 4 batches, a value is NaN or infinite, labels
        do not fit, or ``rows`` is not above 0.
    ConvertError
        If it is missing or of a type that models cannot be given.
    """
    where = "plan(calibration)"
    if calibration is None:
        raise InputError("it is missing", where=where, fix="pass typical inputs of the model")
    whole = _batches(model, calibration)
    for args, kwargs in whole:
        for value in (*args, *kwargs.values()):
            if _is_float(value) and not bool(torch.isfinite(value).all()):
                raise InputError(
                    f"an input of shape {tuple(value.shape)} has values that are NaN or infinite",
                    where=where,
                    fix="drop or replace those values first",
                )
    parted = [Part([batch]) for batch in whole]
    if labels is not None:
        parted = _labelled(whole, labels)
    single = isinstance(calibration, torch.Tensor | np.ndarray | Mapping)
    size = _rows_of(whole[0])
    if single and size is not None:
        size = min(size, PIECE)
    if single or len(whole) < 4:
        parted = _cut(parted, single)
    counted = _checked_rows(rows, size)
    example = whole[0] if counted == _rows_of(whole[0]) else _resized(whole[0], counted)
    groups = [_joined([p for i, p in enumerate(parted) if i % 4 in turn]) for turn in _TURNS]
    return Calibration(*groups, example=example, rows=counted)


_TURNS = ((0, 1), (2,), (3,))


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _rows_of(batch: Batch) -> int | None:
    """Return the size of dimension 0, if all tensors have the same."""
    args, kwargs = batch
    sizes = {v.shape[0] if v.dim() else None for v in (*args, *kwargs.values()) if _tensor(v)}
    return sizes.pop() if len(sizes) == 1 else None


def _tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _mapped(batch: Batch, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
    args, kwargs = batch
    made = {key: change(v) if _tensor(v) else v for key, v in kwargs.items()}
    return tuple(change(v) if _tensor(v) else v for v in args), made


def _checked_rows(rows: Any, default: int | None) -> int:
    where = "plan(rows)"
    if rows is None:
        return default or 1
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise InputError(f"rows={rows!r} is not a number above 0", where=where, fix="use 64")
    if default is None:
        raise InputError(
            "inputs differ in dimension 0, so that other batches cannot be made",
            where=where,
            fix="leave it out: the first calibration batch is timed",
        )
    return rows


def _resized(batch: Batch, rows: int) -> Batch:
    def take(value: torch.Tensor) -> torch.Tensor:
        return value[torch.arange(rows, device=value.device) % len(value)]

    return _mapped(batch, take)


def _labelled(batches: list[Batch], labels: Any) -> list[Part]:
    where = "plan(labels)"
    values = np.asarray(labels)
    sizes = [_rows_of(batch) for batch in batches]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        raise InputError(
            "inputs differ in dimension 0, so that rows have no labels",
            where=where,
            fix="leave labels out",
        )
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer) or len(values) != sum(known):
        raise InputError(
            f"labels have shape {values.shape} and dtype {values.dtype}, not ({sum(known)},) "
            "integers",
            where=where,
            fix="pass the class of every calibration row",
        )
    ends = np.cumsum(known)
    return [
        Part([batch], part)
        for batch, part in zip(batches, np.split(values, ends[:-1]), strict=True)
    ]


def _cut(parts: list[Part], shuffled: bool) -> list[Part]:
    """Cut batches into pieces, at least eight in all."""
    sizes = [_rows_of(part.batches[0]) for part in parts]
    total = sum(size or 1 for size in sizes)
    if None in sizes or total < _PIECES:
        of = f"{total} rows" if None not in sizes else "inputs that differ in dimension 0"
        raise InputError(
            f"{of} cannot be cut into parts to fit, choose and check",
            where="plan(calibration)",
            fix=f"pass at least {_PIECES} rows, better some hundred; or at least 4 batches",
        )
    size = min(PIECE, total // _PIECES)
    pieces: list[Part] = []
    for part in parts:
        [batch] = part.batches
        rows = torch.arange(_rows_of(batch) or 0)
        if shuffled:
            rows = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
        for some in rows.split(size):
            made = _mapped(batch, lambda value, some=some: value[some.to(value.device)])
            pieces.append(Part([made], None if part.labels is None else part.labels[some.numpy()]))
    return pieces


def _joined(parts: list[Part]) -> Part:
    labels = [part.labels for part in parts if part.labels is not None]
    batches = [batch for part in parts for batch in part.batches]
    return Part(batches, np.concatenate(labels) if labels else None)
