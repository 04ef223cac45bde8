"""Checks of the estimator's options, with messages that name the mistake and the way out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from lutcc.errors import InputError, suggest

ENCODERS = ("tree", "nearest")
#: Of which "auto" takes one.
PARTITIONS = ("contiguous", "opq", "r2")
PROTOTYPES = ("ridge", "kmeans")
LUT_OBJECTIVES = ("ridge", "mse", "kld")
LUT_ACTIVATIONS = (None, "relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid", "softmax")
HASH_OBJECTIVES = ("product", "input")
#: Of recipes: what tables are fitted to.
TARGETS = ("layer", "network")
ACTIVATIONS = (None, "relu")
LUT_DTYPES = ("uint8", "float32")
ACCUMULATIONS = ("exact", "mean")


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise :class:`InputError` unless ``value`` is one of ``choices``."""
    choices = tuple(choices)
    if any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        return
    listed = ", ".join(repr(choice) for choice in choices)
    raise InputError(
        f"{name}={value!r} is not one of {listed}",
        where="Maddness",
        fix=f"{suggest(value, [c for c in choices if c])}"
        if isinstance(value, str)
        else f"choose one of {listed}",
    )


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raise :class:`InputError` unless ``value`` is an integer in ``low``..``high``."""
    ok = (
        isinstance(value, int | np.integer)
        and not isinstance(value, bool)
        and value >= low
        and (high is None or value <= high)
    )
    if not ok:
        bounds = f"an integer of at least {low}" if high is None else f"an integer in {low}..{high}"
        raise InputError(
            f"{name}={value!r} is not {bounds}", where="Maddness", fix=f"pass {bounds}"
        )


def check_power_of_two(name: str, value: Any, low: int, high: int) -> None:
    """Raise :class:`InputError` unless ``value`` is a power of two in ``low``..``high``."""
    check_int(name, value, low, high)
    if value & (value - 1):
        powers = [2**p for p in range(low.bit_length() - 1, high.bit_length())]
        raise InputError(
            f"{name}={value} is not a power of two", where="Maddness", fix=f"choose one of {powers}"
        )


def check_lambda(name: str, value: Any) -> None:
    """Raise :class:`InputError` unless ``value`` is "auto" or a positive number."""
    number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(
        value, bool
    )
    if not (value == "auto" or (number and math.isfinite(value) and value > 0)):
        raise InputError(
            f"{name}={value!r} is not 'auto' or a positive number",
            where="Maddness",
            fix="use 'auto' (chosen on held-out rows) or a number such as 1.0",
        )


_CHOICES: dict[str, tuple[Any, ...]] = {
    "encoder": ENCODERS,
    "partition": (*PARTITIONS, "auto"),
    "prototypes": PROTOTYPES,
    "lut_objective": LUT_OBJECTIVES,
    "lut_activation": LUT_ACTIVATIONS,
    "hash_objective": HASH_OBJECTIVES,
    "activation": ACTIVATIONS,
    "lut_dtype": LUT_DTYPES,
    "accumulate": ACCUMULATIONS,
}


def check_maddness_options(**options: Any) -> None:
    """Check the given options of :class:`lutcc.fit.Maddness`, as far as that needs no data.

    Raises
    ------
    InputError
        Naming the option, its value, and the values it may take.

    Examples
    --------
    >>> check_maddness_options(nprototypes=24)
    Traceback (most recent call last):
    ...
    lutcc.errors.InputError: Maddness: nprototypes=24 is not a power of two
    To mend it: choose one of [2, 4, 8, 16, 32, 64, 128]
    """
    for name, choices in _CHOICES.items():
        if name in options:
            check_choice(name, options[name], choices)
    for name in ("ncodebooks", "split_candidates", "kmeans_rows"):
        if name in options:
            check_int(name, options[name], 1)
    if "nprototypes" in options:
        if options.get("encoder", "tree") == "tree":
            check_power_of_two("nprototypes", options["nprototypes"], 2, 128)
        else:
            check_int("nprototypes", options["nprototypes"], 2, 256)
    if "upcast_every" in options:
        check_power_of_two("upcast_every", options["upcast_every"], 2, 256)
    if "ridge_lambda" in options:
        check_lambda("ridge_lambda", options["ridge_lambda"])
    if options.get("lut_objective") == "kld" and options.get("lut_activation") != "softmax":
        raise InputError(
            f"lut_objective='kld' compares the rows of a softmax, but lut_activation="
            f"{options.get('lut_activation')!r}",
            where="Maddness",
            fix="use lut_activation='softmax', or lut_objective='mse'",
        )
    if options.get("accumulate") == "mean" and options.get("lut_dtype", "uint8") != "uint8":
        raise InputError(
            f"accumulate='mean' needs 8-bit tables, but lut_dtype={options['lut_dtype']!r}",
            where="Maddness",
            fix="use lut_dtype='uint8', or accumulate='exact'",
        )
