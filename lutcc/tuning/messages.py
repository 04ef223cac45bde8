"""What the runner and its processes tell each other."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lutcc.tuning.rounds import Comparison

Key = TypeVar("Key")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Order:
    """Where the subject of a task is stored, and for which target it is built."""

    path: Path
    isa: str
    mcpu: str | None
    seed: int
    cold: bool


@dataclass(frozen=True)
class Memory:
    """An argument whose contents before the call do not matter."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Constant:
    """An argument that is stored in a file (``.npy``)."""

    path: Path
    digest: str


@dataclass(frozen=True)
class Input:
    """An argument that is one of the task's inputs."""

    index: int


@dataclass(frozen=True)
class Built:
    """A built candidate: a shared library and how to call it."""

    library: Path
    symbol: str
    arguments: tuple[Memory | Constant | Input | int, ...]
    outputs: tuple[int, ...]
    seconds: float

    @property
    def files(self) -> list[Path]:
        """What the candidate needs on disk."""
        return [self.library, *(a.path for a in self.arguments if isinstance(a, Constant))]


@dataclass(frozen=True)
class Measured:
    """What the measuring process says of kernels timed against each other."""

    comparisons: tuple[Comparison, ...]
    seconds: float


class Kept(Generic[Key, Item]):
    """The last so many things used.

    Examples
    --------
    >>> kept = Kept[str, int](1)
    >>> kept.keep("a", 1), kept.keep("b", 2), kept.used("a")
    (1, 2, None)
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._items: OrderedDict[Key, Item] = OrderedDict()

    def keep(self, key: Key, item: Item) -> Item:
        """Remember ``item`` and return it."""
        self._items[key] = item
        while len(self._items) > self._size:
            self._items.popitem(last=False)
        return item

    def used(self, key: Key) -> Item | None:
        """Return what is remembered, or None."""
        if key in self._items:
            self._items.move_to_end(key)
        return self._items.get(key)
