"""Recipes: which layers of a model become what.

A recipe maps patterns of module names (``fnmatch``: ``*``, ``?``, ``[...]``) to configs. Where
several patterns match a layer, the last one counts. In TOML every pattern is a table, quoted if it
has a dot or a star:

    ["*"]
    method = "maddness"
    ncodebooks = 16

    ["layers.*"]
    method = "lookup_ffn"
    num_tables = 128

    ["blocks.*"]
    method = "sampled"
    mode = "topk"
    sample_ratio = 0.5

    ["encoder.*"]
    method = "codebook"
    alpha = 5.33

    [head]
    method = "exact"
    compute = "int8"

MADDNESS replaces linear layers and convolutions one by one; LookupFFN whole feed-forward blocks,
which its patterns name (or the layer of a transformer that holds one). "codebook" compresses the
weights of linear layers, convolutions and embeddings. "sampled" changes how linear layers and
convolutions are trained, not what they compute. "exact" leaves layers as they are, or, with
``compute``, makes linear layers compute in float32, bfloat16 or int8.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from lutcc.codebook_options import CodebookOptions
from lutcc.errors import InputError, RecipeError, suggest
from lutcc.fit.options import TARGETS, check_choice, check_int, check_maddness_options
from lutcc.lookup_options import check_count, check_lookup_options, check_name
from lutcc.sampling_options import SamplingOptions


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Maddness:
    """Replace a linear layer or convolution by MADDNESS look-ups.

    The fields are the arguments of :class:`lutcc.fit.Maddness`, without ``activation``: the model
    keeps its own.

    Parameters
    ----------
    target
        What tables are fitted to. "layer": what the exact layer makes of the rows that come through
        the look-ups before it. "network": what it gives for the same rows in the network without
        look-ups, so that it mends what they have distorted (ITLUMM, equation 3, with the A of the
        exact network and the codes of the other).
    max_rows
        Fit each layer on at most this many rows or patches of the calibration data.
    random_state
        Seed of everything random in the fit.

    Raises
    ------
    InputError
        If a value is out of range.

    Examples
    --------
    >>> Maddness(ncodebooks=8).nprototypes
    16
    """

    method: ClassVar[str] = "maddness"

    ncodebooks: int = 16
    nprototypes: int = 16
    encoder: str = "tree"
    partition: str = "contiguous"
    prototypes: str = "ridge"
    lut_objective: str = "ridge"
    lut_activation: str | None = None
    lut_dtype: str = "uint8"
    accumulate: str = "exact"
    upcast_every: int = 16
    hash_objective: str = "product"
    ridge_lambda: float | str = "auto"
    split_candidates: int = 4
    kmeans_rows: int = 16384
    target: str = "layer"
    max_rows: int = 65536
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        check_int("random_state", self.random_state, 0, 2**32 - 1)
        check_int("max_rows", self.max_rows, 1)
        check_choice("target", self.target, TARGETS)
        check_maddness_options(**self.estimator_options())

    def estimator_options(self) -> dict[str, Any]:
        """Return the arguments of :class:`lutcc.fit.Maddness`."""
        options = dataclasses.asdict(self)
        del options["max_rows"], options["target"]
        return options


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LookupFFN:
    """Replace a feed-forward block by look-ups that are distilled from it, or trained afterwards.

    The fields are the arguments of :class:`lutcc.nn.LookupFFN` and of its ``from_ffn``. Without
    calibration data the layer starts afresh, to be trained.

    Parameters
    ----------
    steps, batch_size, learning_rate, synthetic
        Of the distillation.
    max_rows
        Distil each block on at most this many rows of what it receives.
    random_state
        Seed of everything random.

    Raises
    ------
    InputError
        If a value is out of range.

    Examples
    --------
    >>> LookupFFN(num_tables=64).code_length
    8
    """

    method: ClassVar[str] = "lookup_ffn"

    num_tables: int = 128
    code_length: int = 8
    projection: str = "bh4"
    block_size: int = 64
    table_dtype: str = "float32"
    variant: str = "gelu"
    neighbors: int = 1
    bias: bool = True
    projection_dtype: str = "float32"
    score_dtype: str = "float32"
    steps: int = 1000
    batch_size: int = 256
    learning_rate: float = 0.1
    synthetic: float = 0.5
    max_rows: int = 65536
    random_state: int = 0

    def __post_init__(self) -> None:
        """Check every value."""
        check_count("recipes.LookupFFN", "random_state", self.random_state, 0, 2**32 - 1)
        if not isinstance(self.bias, bool):
            raise InputError(
                f"bias={self.bias!r} is neither true nor false",
                where="recipes.LookupFFN",
                fix="use true or false",
            )
        check_lookup_options("recipes.LookupFFN", **dataclasses.asdict(self))

    def layer_options(self) -> dict[str, Any]:
        """Return the arguments of :class:`lutcc.nn.LookupFFN`, without the columns."""
        options = dataclasses.asdict(self)
        for name in (
            "steps",
            "batch_size",
            "learning_rate",
            "synthetic",
            "max_rows",
            "random_state",
        ):
            del options[name]
        return options

    def distillation_options(self) -> dict[str, Any]:
        """Return the arguments of ``LookupFFN.from_ffn`` that are not the layer's, but the seed."""
        names = ("steps", "batch_size", "learning_rate", "synthetic", "max_rows")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampled(SamplingOptions):
    """Train a linear layer or convolution on a sample of its column-row pairs.

    The fields are those of :class:`lutcc.sampling_options.SamplingOptions`: ``mode``,
    ``sample_ratio``, ``minimal_k``, ``where``, ``probabilities``, ``scaling`` and ``group_size``.

    Raises
    ------
    InputError
        If a value is out of range, or two do not go together.

    Examples
    --------
    >>> Sampled(mode="bernoulli", sample_ratio=0.25, where="backward").count(64)
    16
    """

    method: ClassVar[str] = "sampled"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Codebook(CodebookOptions):
    """Compress the weights of a linear layer, a convolution or an embedding with codebooks.

    The fields are those of :class:`lutcc.codebook_options.CodebookOptions`, and more.

    Parameters
    ----------
    mode
        "codebooks", "scales", or None: codebooks for linear layers and embeddings, scales for
        convolutions (section 4.1 of the paper).
    reorder
        "auto": rows are stored in another order if that pays for the order's bits. "fold": the
        model's channels are permuted first wherever that leaves what it computes as it is, which
        costs nothing; the rest as "auto". "never": neither.
    compute
        Arithmetic of the layers in eval mode: "int8", "bfloat16" or "float32".
    max_rows
        Learn from at most this many rows or patches of the calibration data.
    random_state
        Seed of everything random.

    Raises
    ------
    InputError
        If a value is out of range.

    Examples
    --------
    >>> Codebook(alpha=7.5).compute
    'int8'
    """

    method: ClassVar[str] = "codebook"

    alpha: float = 5.33
    mode: str | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    compute: str = "int8"
    max_rows: int = 16384
    random_state: int = 0  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        """Check every value."""
        where = "recipes.Codebook"
        check_count(where, "random_state", self.random_state, 0, 2**32 - 1)
        check_count(where, "max_rows", self.max_rows, 1)
        check_name(where, "compute", self.compute, ("float32", "bfloat16", "int8"))
        check_name(where, "reorder", self.reorder, ("auto", "fold", "never"))
        CodebookOptions(**self.estimator_options("codebooks"))

    def estimator_options(self, mode: str) -> dict[str, Any]:
        """Return the arguments of :class:`lutcc.fit.WeightCodebooks`; ``mode`` if there is none."""
        options = dataclasses.asdict(self)
        del options["compute"], options["max_rows"]
        if self.reorder == "fold":
            options["reorder"] = "auto"
        return {**options, "mode": self.mode or mode}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """Leave a layer or a block as it is, a sampled one too; or compute it exactly in fewer bits.

    Parameters
    ----------
    compute
        None leaves everything as it is. "float32", "bfloat16" or "int8" makes linear layers
        :class:`lutcc.nn.DenseLinear` and 2-D convolutions :class:`lutcc.nn.DenseConv2d`, which need
        no calibration; embeddings stay.

    Raises
    ------
    InputError
        If ``compute`` is none of these.

    Examples
    --------
    >>> recipe = {"*": Maddness(ncodebooks=16), "head": Exact(), "encoder.*": Exact(compute="int8")}
    """

    method: ClassVar[str] = "exact"

    compute: str | None = None

    def __post_init__(self) -> None:
        """Check the arithmetic."""
        if self.compute is not None:
            check_name("Exact", "compute", self.compute, ("float32", "bfloat16", "int8"))


Config: TypeAlias = Maddness | LookupFFN | Sampled | Codebook | Exact
RECIPES: dict[str, type[Config]] = {
    config.method: config for config in (Maddness, LookupFFN, Sampled, Codebook, Exact)
}


def config_from_dict(settings: Mapping[str, Any], where: str = "recipe") -> Config:
    """Return the config that ``settings`` (``{"method": ..., option: value, ...}``) describes.

    Raises
    ------
    RecipeError
        If the method or an option is unknown, or a value is out of range; the nearest names are
        suggested.

    Examples
    --------
    >>> config_from_dict({"method": "maddness", "ncodebooks": 4}).ncodebooks
    4
    """
    options = dict(settings)
    method = options.pop("method", None)
    if method is None:
        nested = [key for key, value in options.items() if isinstance(value, Mapping)]
        fix = f"add method = one of {sorted(RECIPES)}"
        if nested:
            fix = f'quote a name that has dots: ["{where.split("[")[-1].strip("]")}.{nested[0]}"]'
        raise RecipeError("there is no 'method'", where=where, fix=fix)
    if not isinstance(method, str) or method not in RECIPES:
        raise RecipeError(
            f"unknown method {method!r}", where=where, fix=suggest(str(method), RECIPES)
        )
    config = RECIPES[method]
    known = [field.name for field in dataclasses.fields(config)]
    for name in options:
        if name not in known:
            raise RecipeError(
                f"method {method!r} has no option {name!r}", where=where, fix=suggest(name, known)
            )
    try:
        return config(**options)
    except InputError as error:
        raise RecipeError(error.what, where=where, fix=error.fix) from error


def config_to_dict(config: Config) -> dict[str, Any]:
    """Return ``{"method": ..., option: value, ...}``, which :func:`config_from_dict` takes back.

    Examples
    --------
    >>> config_to_dict(Exact())
    {'method': 'exact'}
    """
    if config == Exact():
        return {"method": config.method}
    return {"method": config.method, **dataclasses.asdict(config)}


def read_recipe(recipe: Mapping[str, Any] | str | Path) -> dict[str, Config]:
    """Return ``{pattern: config}`` from a mapping, or the path of a TOML or JSON file.

    Raises
    ------
    RecipeError
        If the file cannot be read, is empty, or an entry is malformed.

    Examples
    --------
    >>> read_recipe({"fc*": {"method": "exact"}})
    {'fc*': Exact(compute=None)}
    """
    origin = "recipe"
    if isinstance(recipe, str | Path):
        origin = str(recipe)
        recipe = _read_file(Path(recipe))
    if not isinstance(recipe, Mapping):
        raise RecipeError(
            f"a recipe is a mapping or a path, not {type(recipe).__name__}",
            where=origin,
            fix="pass {'layer name pattern': lutcc.recipes.Maddness(...)}",
        )
    if not recipe:
        raise RecipeError(
            "the recipe is empty", where=origin, fix="name at least one layer or pattern"
        )
    configs: dict[str, Config] = {}
    for pattern, entry in recipe.items():
        where = f"{origin}[{pattern}]"
        if not isinstance(pattern, str):
            raise RecipeError(
                f"{pattern!r} is not a module name pattern", where=origin, fix="use strings as keys"
            )
        if isinstance(entry, tuple(RECIPES.values())):
            configs[pattern] = entry
        elif isinstance(entry, Mapping):
            configs[pattern] = config_from_dict(entry, where)
        else:
            raise RecipeError(
                f"the config is {entry!r}",
                where=where,
                fix="use lutcc.recipes.Maddness(...) or {'method': ...}",
            )
    return configs


def _read_file(path: Path) -> Any:
    """Return the contents of a TOML or JSON file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read the recipe: {error}", where=str(path), fix="give the path of a TOML file"
        ) from error
    try:
        return json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except ValueError as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise RecipeError(
            f"not valid {kind}: {error}", where=str(path), fix="see the example in lutcc.recipes"
        ) from error
