"""What a layer may become: the configs that a plan tries, and their short names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

from lutcc import recipes
from lutcc.errors import InputError

#: Rows or patches that look-ups are fitted on while a plan is made; the recipe says the same.
MAX_ROWS = 16384
_EVERY = ((8, 16), (4, 16), (2, 16), (8, 64))  # columns of a codebook, prototypes
_ALPHAS = (4.0, 5.33, 7.9)  # 2 bits and what goes with them: large layers just reach it
_ARITHMETIC = ("bfloat16", "int8")


def default_candidates(columns: int) -> list[recipes.Config]:
    """Return the configs that are tried on a layer of so many columns (D; of a patch).

    Exact arithmetic in bfloat16 and int8 where recipes have it, MADDNESS with a codebook for every
    2, 4 and 8 columns and 16 prototypes, and for every 8 with 64, and codebooks of about 4, 3 and 2
    bits whose indices are not learnt any further.

    Examples
    --------
    >>> [label(c) for c in default_candidates(64) if isinstance(c, recipes.Maddness)]
    ['maddness C=8', 'maddness C=16', 'maddness C=32', 'maddness C=8 K=64']
    """
    found = [*exact_candidates(), *dict.fromkeys(look_ups(columns))]
    return [*found, *(recipes.Codebook(alpha=alpha, learn="codebook") for alpha in _ALPHAS)]


def look_ups(columns: int) -> list[recipes.Config]:
    """Return MADDNESS with a codebook for every so many columns: those of a place in the list.

    Examples
    --------
    >>> [label(config) for config in look_ups(3)]
    ['maddness C=1', 'maddness C=1', 'maddness C=1', 'maddness C=1 K=64']
    """
    return [
        recipes.Maddness(
            ncodebooks=max(1, columns // each), nprototypes=prototypes, max_rows=MAX_ROWS
        )
        for each, prototypes in _EVERY
    ]


def look_ups_among(configs: Sequence[recipes.Config]) -> list[recipes.Config]:
    """Return the configs that look up."""
    return [config for config in configs if isinstance(config, recipes.Maddness)]


def has_exact_arithmetic() -> bool:
    """Tell whether recipes can ask for exact layers in another arithmetic than float32."""
    return any(field.name == "compute" for field in dataclasses.fields(recipes.Exact))


def exact_candidates() -> list[recipes.Config]:
    """Return exact layers in bfloat16 and int8; none where recipes do not have them."""
    if not has_exact_arithmetic():
        return []
    make = cast(Any, recipes.Exact)
    return [make(compute=name) for name in _ARITHMETIC]


def check_candidates(candidates: Sequence[Any] | None) -> list[recipes.Config] | None:
    """Return the configs a caller gave, each once; None for the defaults.

    Raises
    ------
    InputError
        If one is no config that a single layer can be converted with.
    """
    if candidates is None:
        return None
    kinds = (recipes.Maddness, recipes.Codebook, recipes.Exact)
    for config in candidates:
        if not isinstance(config, kinds):
            raise InputError(
                f"the candidate {config!r} is no config of single layers",
                where="plan(candidates)",
                fix="use lutcc.recipes.Maddness, Codebook or Exact",
            )
    plain = recipes.Exact()  # is always tried
    return [config for config in dict.fromkeys(candidates) if config != plain]


def label(config: recipes.Config) -> str:
    """Return a short name.

    Examples
    --------
    >>> label(recipes.Codebook(alpha=4)), label(recipes.Exact())
    ('codebook 4x', 'exact')
    """
    if isinstance(config, recipes.Maddness):
        more = f" K={config.nprototypes}" if config.nprototypes != 16 else ""
        return f"maddness C={config.ncodebooks}{more}"
    if isinstance(config, recipes.Codebook):
        return f"codebook {config.alpha:g}x"
    arithmetic = getattr(config, "compute", None)
    return config.method if arithmetic is None else f"{config.method} {arithmetic}"


def settings(config: recipes.Config) -> dict[str, Any]:
    """Return ``{"method": ..., option: value, ...}`` of the options that are not the defaults.

    Examples
    --------
    >>> settings(recipes.Codebook(alpha=4.0))
    {'method': 'codebook', 'alpha': 4.0}
    """
    plain = type(config)()
    return {"method": config.method} | {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != getattr(plain, field.name)
    }
