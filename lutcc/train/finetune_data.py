"""What fine-tuning learns from: rows that are drawn anew each epoch, or batches made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lutcc.errors import InputError

Inputs: TypeAlias = Any
"""A tensor, a tuple of tensors (positional arguments) or a dictionary of them (keywords)."""

_FIX = (
    "pass (inputs, targets), inputs alone (a tensor, or a dictionary of tensors), or batches of "
    "these: a list or a DataLoader"
)


@dataclass(frozen=True)
class Rows:
    """Rows in memory, drawn in a new order each epoch.

    Attributes
    ----------
    inputs, targets
        Tensors of as many rows; targets None with a teacher.
    count, batch_size
        Rows, and those of a step.
    """

    inputs: Inputs
    targets: Tensor | None
    count: int
    batch_size: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return -(-self.count // self.batch_size)

    def need_targets(self) -> None:
        """Raise :class:`InputError` if there are none."""
        if self.targets is None:
            raise nothing_to_learn()

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Any, int]]:
        """Yield inputs, targets and rows of each step."""
        order = torch.randperm(self.count, generator=generator)
        for picked in order.split(self.batch_size):
            inputs = on_tensors(self.inputs, lambda part, rows=picked: part[rows])
            yield inputs, None if self.targets is None else self.targets[picked], len(picked)


@dataclass(frozen=True)
class Listed:
    """Batches made elsewhere: a list is shuffled each epoch, anything else is run through again.

    Attributes
    ----------
    batches
        Each is inputs, or (inputs, targets).
    count
        How many.
    """

    batches: Iterable[Any]
    count: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.count

    def epoch(self, generator: torch.Generator) -> Iterator[tuple[Inputs, Any, int]]:
        """Yield inputs, targets and rows of each step."""
        if isinstance(self.batches, Sequence):
            order = torch.randperm(self.count, generator=generator).tolist()
            batches: Iterable[Any] = (self.batches[i] for i in order)
        else:
            batches = self.batches
        seen = 0
        for seen, batch in enumerate(batches, 1):
            inputs, targets = _split(batch)
            where = f"finetune, batch {seen - 1}"
            inputs, targets = _tensors(inputs, where), _target(targets, where)
            yield inputs, targets, _rows(inputs, targets, where)
        if seen != self.count:
            raise InputError(
                f"the data gave {seen} batches, but has {self.count} by its length",
                where="finetune",
                fix="pass a list, or a DataLoader: what can be run through once per epoch",
            )


def rows_or_batches(data: Any, batch_size: int) -> Rows | Listed:
    """Return the steps that ``data`` makes.

    Raises
    ------
    InputError
        If it is nothing to learn from, or shapes disagree.

    Examples
    --------
    >>> rows_or_batches((torch.zeros(10, 3), torch.zeros(10)), 4).steps
    3
    >>> rows_or_batches([{"input_ids": torch.zeros(4, 3)}] * 5, 4).steps
    5
    """
    alone = isinstance(data, Mapping | Tensor) or _is_array(data)
    if alone or (isinstance(data, tuple) and len(data) == 2):
        inputs, targets = (data, None) if alone else data
        inputs, targets = _tensors(inputs, "finetune"), _target(targets, "finetune")
        return Rows(inputs, targets, _rows(inputs, targets, "finetune"), batch_size)
    if isinstance(data, tuple | str) or not isinstance(data, Iterable):
        many = f" of {len(data)}" if isinstance(data, tuple) else ""
        raise InputError(f"data is a {type(data).__name__}{many}", where="finetune", fix=_FIX)
    if not isinstance(data, Sized) or not len(data):
        what = "is empty" if isinstance(data, Sized) else "has no length"
        raise InputError(
            f"data, a {type(data).__name__}, {what}",
            where="finetune",
            fix="pass a list, or what can be run through once per epoch and has a length",
        )
    return Listed(data, len(data))


def one_tensor(data: Any, batch_size: int, teacher: nn.Module | None) -> Rows:
    """Return rows of one tensor, with something to learn from: targets, or a teacher.

    Raises
    ------
    InputError
        If they are anything else.
    """
    rows = rows_or_batches(data, batch_size)
    if not isinstance(rows, Rows) or not isinstance(rows.inputs, Tensor):
        raise InputError(
            f"data is a {type(data).__name__} that holds more than one tensor of inputs",
            where="finetune",
            fix="pass a pair (inputs, targets) of tensors or arrays",
        )
    if teacher is None:
        rows.need_targets()
    return rows


def nothing_to_learn() -> InputError:
    """Return the error that there are neither targets nor a teacher."""
    return InputError(
        "there is nothing to learn from",
        where="finetune",
        fix="pass (inputs, targets), or a teacher",
    )


def on_tensors(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return inputs whose tensors are changed.

    Examples
    --------
    >>> on_tensors({"a": torch.ones(1)}, lambda part: part + 1)
    {'a': tensor([2.])}
    """
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, Mapping):
        return {name: change(part) for name, part in inputs.items()}
    return tuple(change(part) for part in inputs)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """Return what a model makes of inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def first_tensor(result: Any) -> Tensor:
    """Return the first tensor of what a model returned.

    Raises
    ------
    InputError
        If there is none.

    Examples
    --------
    >>> first_tensor({"a": (torch.ones(1), None)})
    tensor([1.])
    """
    if isinstance(result, Tensor):
        return result
    values = result.values() if isinstance(result, Mapping) else result
    if not isinstance(values, Iterable) or isinstance(values, str):
        raise InputError(
            f"the model returns a {type(result).__name__}",
            where="finetune",
            fix="pass output=, which takes the result and the inputs and returns tensors",
        )
    for value in values:
        return first_tensor(value)
    raise InputError(
        "the model returns nothing", where="finetune", fix="pass a model that returns tensors"
    )


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array_interface__") and not isinstance(value, Tensor)


def _split(batch: Any) -> tuple[Any, Any]:
    """Return inputs and targets of a batch."""
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        return batch[0], batch[1] if len(batch) == 2 else None
    return batch, None


def _target(targets: Any, where: str) -> Tensor | None:
    return None if targets is None else _tensor(targets, where)


def _tensors(inputs: Any, where: str) -> Inputs:
    """Return inputs whose parts are tensors."""
    if isinstance(inputs, Mapping):
        return {str(name): _tensor(part, where) for name, part in inputs.items()}
    parts = isinstance(inputs, tuple | list) and not all(isinstance(p, float | int) for p in inputs)
    return tuple(_tensor(part, where) for part in inputs) if parts else _tensor(inputs, where)


def _tensor(part: Any, where: str) -> Tensor:
    try:
        found = torch.as_tensor(part)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"inputs or targets are no tensor: {error}", where=where, fix=_FIX
        ) from error
    return found


def _rows(inputs: Inputs, targets: Tensor | None, where: str) -> int:
    """Return how many rows there are, the same in all."""
    named = {"inputs": inputs} if isinstance(inputs, Tensor) else inputs
    if not isinstance(named, Mapping):
        named = {f"inputs[{place}]": part for place, part in enumerate(named)}
    counts = {name: len(part) if part.dim() else 0 for name, part in named.items()}
    if targets is not None:
        counts["targets"] = len(targets) if targets.dim() else 0
    if len(set(counts.values())) != 1 or not next(iter(counts.values())):
        told = ", ".join(f"{count} {name}" for name, count in counts.items()) or "no inputs"
        raise InputError(
            told, where=where, fix="pass as many rows in all, at least one; targets may be None"
        )
    return next(iter(counts.values()))
