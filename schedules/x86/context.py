"""Where the bytes of a kernel are: the blob of constants, the workspace, the values of a stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lutcc.errors import CompileError
from lutcc.ir.module import Value
from lutcc.schedules.x86 import pack
from lutcc.schedules.x86.config import KernelConfigs
from lutcc.schedules.x86.emit import ITEMSIZE, Expr, View, i64
from lutcc.schedules.x86.isa import Isa


@dataclass
class BlobLayout:
    """Assigns offsets in the blob and records how each entry is packed.

    Attributes
    ----------
    buffer
        TVM's byte buffer.
    constants
        The module's constants.
    entries
        JSON records, see :func:`lutcc.schedules.x86.pack.pack_blob`.
    nbytes
        Size so far.
    """

    buffer: Any
    constants: dict[str, Any]
    entries: list[dict[str, Any]] = field(default_factory=list)
    nbytes: int = 0
    _seen: dict[str, View] = field(default_factory=dict)

    def add(self, name: str, dtype: str, sources: Sequence[str], **params: Any) -> View:
        """Return a view of the constant that packer ``name`` makes from ``sources``."""
        key = repr((name, dtype, tuple(sources), params))
        if key in self._seen:
            return self._seen[key]
        entry = {"pack": name, "params": params, "sources": list(sources), "offset": self.nbytes}
        nbytes = pack.packed_nbytes(entry, self.constants)
        entry["nbytes"] = nbytes
        self.entries.append(entry)
        view = View(self.buffer, i64(self.nbytes), dtype)
        self.nbytes += pack.round_up(max(nbytes, 1), pack.ALIGNMENT)
        self._seen[key] = view
        return view


@dataclass(frozen=True)
class Constant:
    """A constant operand that a kernel reads from the blob in an order of its own."""

    blob: BlobLayout
    ref: str

    @property
    def array(self) -> Any:
        """The data."""
        return self.blob.constants[self.ref]

    @staticmethod
    def pack(name: str, dtype: str, sources: Sequence[Constant], **params: Any) -> View:
        """Return a view of what packer ``name`` makes from constants."""
        return sources[0].blob.add(name, dtype, [source.ref for source in sources], **params)


@dataclass
class Workspace:
    """Assigns offsets in the workspace, which the caller allocates.

    ``fixed`` holds nothing but alignment slack; values that live between stages take ``per_row``
    bytes for each unit of the batch dimension; block scratch takes ``per_thread`` bytes a thread.
    """

    buffer: Any
    batch: Expr
    base: Expr
    per_row: int = 0
    per_thread: int = 0

    def between_stages(self, bytes_per_row: int, dtype: str) -> View:
        """Return a view for a value that lives between two stages."""
        view = View(self.buffer, self.base + self.batch * self.per_row, dtype)
        self.per_row += pack.round_up(bytes_per_row, pack.ALIGNMENT)
        return view


@dataclass
class Scratch:
    """Block scratch of one thread: a bump allocator that each stage starts afresh."""

    buffer: Any
    base: Expr
    used: int = 0

    def take(self, count: int, dtype: str) -> View:
        """Return ``count`` elements at a multiple of 64 bytes."""
        view = View(self.buffer, self.base + self.used, dtype)
        self.used += pack.round_up(count * ITEMSIZE[dtype], pack.ALIGNMENT)
        return view


@dataclass(frozen=True)
class Tensor:
    """A value of any rank outside the block, its elements end to end.

    Attributes
    ----------
    view
        Its memory.
    sizes
        Its dimensions.
    """

    view: View
    sizes: tuple[Expr, ...]


@dataclass(frozen=True)
class External:
    """A rank-2 value outside the block: an input, an output, or a value between stages.

    Attributes
    ----------
    view
        Its memory.
    columns, dtype
        Shape (rows are the stage's) and element type.
    row_stride, column_stride
        In elements.
    stream
        For outputs: the condition under which stores bypass the caches.
    """

    view: View
    columns: int
    dtype: str
    row_stride: Expr
    column_stride: Expr
    stream: Expr | None = None

    def index(self, row: Expr, column: Expr | int) -> Expr:
        """Return the flat index of an element."""
        return i64(row) * self.row_stride + i64(column) * self.column_stride


@dataclass(frozen=True)
class Columns:
    """A value in block scratch, 16 rows of a column together: [row group][column][16].

    Row groups are an odd number of cache lines apart: at a power of two, the groups of one column
    would compete for one set of the L1 cache. ``sums``: of a look-up, far below 2**30.
    ``together``: 32 rows are, of two groups, in the order of ``vpackssdw``.
    """

    view: View
    columns: int
    dtype: str
    sums: bool = False
    together: int = 16

    @staticmethod
    def size(rows: int, columns: int) -> int:
        """Return how many elements ``rows`` rows take."""
        return rows * (columns | 1)

    def index(self, group: Expr, column: Expr | int) -> Expr:
        """Return the flat index of lane 0; ``group`` is the first of those that are together."""
        unit = i64(group) // (self.together // 16)
        return (unit * (self.columns | 1) + i64(column)) * self.together


@dataclass(frozen=True)
class Codes:
    """Codes in block scratch.

    ``dot``: [row group of 16][codebooks / 4][16 rows][4 codebooks], each code plus the offset of
    its table among the four. Otherwise [row group of ``rows``][codebooks][rows].
    """

    view: View
    codebooks: int
    rows: int
    dot: bool
    entries: int


@dataclass(frozen=True)
class Row:
    """A value of the rows being done, each contiguous in scratch, ``stride`` elements apart."""

    view: View
    columns: int
    dtype: str
    stride: int

    def at(self, row: Expr) -> Row:
        """Return the value of one of the rows."""
        return replace(self, view=self.view.at(i64(row) * self.stride))


@dataclass
class StageContext:
    """Everything that the operations of one stage share while code is emitted.

    Attributes
    ----------
    isa, configs
        The level and the chosen configs.
    blob, scratch
        Constants and block scratch.
    row_group
        Rows per group: 16, or the vector width where some scan of the stage needs it.
    first_row, groups, last_row
        Of the current block: its first row, its number of groups of 16 rows (a multiple of
        ``row_group / 16``), and the last valid row of the whole value. Rows past the end repeat
        the last row, so that they compute and store the same bytes once more.
    values
        Where each IR value of the stage is.
    refs
        The module constant behind each constant value.
    """

    isa: Isa
    configs: KernelConfigs
    blob: BlobLayout
    scratch: Scratch
    row_group: int
    first_row: Expr
    groups: Expr
    last_row: Expr
    values: dict[str, Any] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def ref(self, value: Value) -> str:
        """Return the name of the constant that ``value`` stands for.

        Raises
        ------
        CompileError
            If it is computed: tables and thresholds must be constants.
        """
        try:
            return self.refs[value.name]
        except KeyError:
            raise CompileError(
                f"%{value.name} must be a constant",
                where="lowering",
                fix="make tables, thresholds and weights constants of the module",
            ) from None

    def array(self, value: Value) -> Any:
        """Return the data of a constant operand."""
        return self.blob.constants[self.ref(value)]

    @property
    def block_rows(self) -> int:
        """Rows of scratch per block."""
        return self.configs.stage.row_block
