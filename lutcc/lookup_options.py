"""Checks of LookupFFN's options that need no torch: recipes and layers share them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from lutcc.errors import InputError, suggest

MAX_CODE_LENGTH = 16
VARIANTS = ("gelu", "softmax", "constant")
TABLE_DTYPES = ("float32", "bfloat16", "int8")
PROJECTION_DTYPES = ("float32", "bfloat16")
SCORE_DTYPES = ("float32", "bfloat16")
PROJECTION_COUNTS = {"bh": (1, 8), "acdc": (1, 64), "hadamard": (1, 64), "shuffle": (1, 8)}
"""Families of projections whose name ends in a number, with that number's range."""
PROJECTION_NAMES = ("bh1", "bh2", "bh4", "bh8", "dense", "shuffle1", "acdc8", "hadamard8")
"""Some of the names, for suggestions."""


def parse_projection(name: Any, where: str = "projection") -> tuple[str, int]:
    """Return the family and the number of layers that a projection's name stands for.

    Raises
    ------
    InputError
        If the name is unknown or its number out of range.

    Examples
    --------
    >>> parse_projection("bh4"), parse_projection("dense"), parse_projection("shuffle")
    (('bh', 4), ('dense', 1), ('shuffle', 1))
    """
    names = "'dense', 'bh1' to 'bh8', 'shuffle', 'acdc<k>' or 'hadamard<k>'"
    if name in ("dense", "shuffle"):
        return name, 1
    match = re.fullmatch(r"([a-z]+)([1-9][0-9]?)", name) if isinstance(name, str) else None
    if match is None or match[1] not in PROJECTION_COUNTS:
        fix = suggest(name, PROJECTION_NAMES) if isinstance(name, str) else f"use {names}"
        raise InputError(f"projection={name!r} is not one of {names}", where=where, fix=fix)
    family, count = match[1], int(match[2])
    low, high = PROJECTION_COUNTS[family]
    if not low <= count <= high:
        raise InputError(
            f"projection={name!r} asks for {count} layers, but {family} takes {low} to {high}",
            where=where,
            fix=f"use '{family}{min(max(count, low), high)}'",
        )
    return family, count


def check_lookup_options(where: str = "LookupFFN", **options: Any) -> None:
    """Check the given options of :class:`lutcc.nn.LookupFFN`.

    Raises
    ------
    InputError
        Naming the option, its value, and the values it may take.

    Examples
    --------
    >>> check_lookup_options(code_length=17)
    Traceback (most recent call last):
    ...
    lutcc.errors.InputError: LookupFFN: code_length=17 is not an integer in 1..16
    To mend it: a table has 2**code_length rows: use more tables of shorter codes
    """
    for name in ("d_in", "d_out", "num_tables", "block_size", "max_rows", "batch_size"):
        if name in options:
            check_count(where, name, options[name], 1)
    if "steps" in options:
        check_count(where, "steps", options["steps"], 0)
    if "code_length" in options:
        check_count(
            where,
            "code_length",
            options["code_length"],
            1,
            MAX_CODE_LENGTH,
            fix="a table has 2**code_length rows: use more tables of shorter codes",
        )
    if "neighbors" in options:
        _check_neighbors(where, options)
    if "block_size" in options and options["block_size"] & (options["block_size"] - 1):
        raise InputError(
            f"block_size={options['block_size']} is not a power of two",
            where=where,
            fix=f"use {1 << (options['block_size'].bit_length() - 1)}",
        )
    for name, known in (
        ("variant", VARIANTS),
        ("table_dtype", TABLE_DTYPES),
        ("projection_dtype", PROJECTION_DTYPES),
        ("score_dtype", SCORE_DTYPES),
    ):
        if name in options:
            check_name(where, name, options[name], known)
    if "projection" in options:
        family, _ = parse_projection(options["projection"], where)
        if family not in ("bh", "dense") and options.get("projection_dtype") == "bfloat16":
            raise InputError(
                f"projection={options['projection']!r} has no bfloat16 form",
                where=where,
                fix="use a 'bh' or 'dense' projection, or projection_dtype='float32'",
            )
    if options.get("score_dtype") == "bfloat16" and options.get("table_dtype") != "bfloat16":
        raise InputError(
            f"score_dtype='bfloat16' needs bfloat16 tables, not {options.get('table_dtype')!r}",
            where=where,
            fix="use table_dtype='bfloat16', or score_dtype='float32'",
        )
    rate = options.get("learning_rate", 1.0)
    number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not (number and 0 < rate < float("inf")):
        raise InputError(
            f"learning_rate={rate!r} is not a positive number", where=where, fix="use 0.1"
        )
    share = options.get("synthetic", 0.0)
    number = isinstance(share, int | float) and not isinstance(share, bool)
    if not (number and 0 <= share <= 1):
        raise InputError(
            f"synthetic={share!r} is no share between 0 and 1", where=where, fix="use 0.5"
        )


def _check_neighbors(where: str, options: dict[str, Any]) -> None:
    length = options.get("code_length", MAX_CODE_LENGTH)
    check_count(
        where,
        "neighbors",
        options["neighbors"],
        1,
        length + 1,
        fix=f"a code of {length} bits has {length} neighbours one bit away, and itself",
    )
    if options.get("variant") == "constant" and options["neighbors"] != 1:
        raise InputError(
            f"neighbors={options['neighbors']}, but variant='constant' looks up one row per table",
            where=where,
            fix="use neighbors=1, or variant='gelu'",
        )


def check_count(
    where: str, name: str, value: Any, low: int, high: int | None = None, fix: str | None = None
) -> None:
    """Raise :class:`InputError` unless ``value`` is an integer in ``low``..``high``."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if whole and value >= low and (high is None or value <= high):
        return
    bounds = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
    raise InputError(f"{name}={value!r} is not {bounds}", where=where, fix=fix or f"pass {bounds}")


def check_name(where: str, name: str, value: Any, known: Iterable[str]) -> None:
    """Raise :class:`InputError` unless ``value`` is one of the names in ``known``."""
    known = tuple(known)
    if isinstance(value, str) and value in known:
        return
    listed = ", ".join(map(repr, known))
    fix = suggest(value, known) if isinstance(value, str) else f"choose one of {listed}"
    raise InputError(f"{name}={value!r} is not one of {listed}", where=where, fix=fix)
