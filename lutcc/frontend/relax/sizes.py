"""Symbolic sizes with numbers put in."""

from __future__ import annotations

from typing import Any

OTHER_SIZE = 64
"""Stands for every open size but the batch (a sequence length) where kernels are tuned."""


def size_of(expr: Any, symbol: str | None, rows: int, *, other: int = OTHER_SIZE) -> int:
    """Return the value of a size when the symbol ``symbol`` is ``rows`` and any other ``other``.

    Examples
    --------
    >>> size_of(buffer.shape[0], "n", 8)       # n * 12
    96
    """
    from tvm import tirx
    from tvm.sym import Analyzer
    from tvm.tirx.analysis import undefined_vars

    analyzer = Analyzer()
    for variable in undefined_vars(expr):
        value = rows if variable.name == symbol else other
        analyzer.bind(variable, tirx.IntImm("int64", value))
    return int(analyzer.simplify(expr).value)
