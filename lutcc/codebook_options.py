"""How weights are written with codebooks: the estimator and recipes share these options."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lutcc.errors import InputError
from lutcc.lookup_options import check_count, check_name

MODES = ("codebooks", "scales")
CLUSTERINGS = ("hierarchical", "kmeans", "bisecting", "graph", "random")
LEARNING = ("joint", "codebook", "none")
REORDERINGS = ("auto", "free", "never")
ASSIGNMENTS = ("compensated", "nearest")
WEIGHTINGS = ("none", "activations")
#: sigma of equation 5: what follows the layer.
ACTIVATIONS = ("relu", "gelu", "gelu_tanh", "silu", "tanh", "sigmoid")
#: Beyond this share, outliers take more bits than the weights' indices.
MAX_OUTLIERS = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CodebookOptions:
    """How far weights are compressed, from which start, and what is learnt.

    Parameters
    ----------
    alpha
        The compression goal: bits at 16 a weight over bits as stored.
    mode
        "codebooks": regions of the matrix have codebooks of their own (equation 2). "scales": one
        codebook, and regions have factors of it (equation 1).
    clustering
        How neurons are ordered and weights clustered at first: "hierarchical", "kmeans",
        "bisecting" (k-means), "graph" (spectral cuts) or "random".
    learn
        "joint": codebooks and indices by gradients (equations 5 to 9), "codebook": the codebooks
        only, "none": neither.
    proximal
        Indices move to near codebook values first (equations 8 and 9); False: by the plain gradient
        (equation 7).
    assignment
        Where joint learning starts: "compensated": each column makes up for what those before it
        miss, then each weight in turn takes its best codeword. "nearest": each weight's nearest
        codeword, as the paper.
    outliers
        The share of the weights, those furthest from their codebook, whose residual is stored too.
    reorder
        "auto": rows are stored in the clustering's order if that pays for the order's bits. "free":
        in that order, which takes no bits, since the next layer's columns take it. "never": as
        they are.
    activation
        What follows the layer, which learning minimises the error behind (sigma of equation 5):
        None, "relu", "gelu", "gelu_tanh", "silu", "tanh" or "sigmoid".
    weighting
        What the first codebooks minimise: "none": the weights' squared error (the paper's, which
        needs no data). "activations": that times the mean square of the input that a weight meets.
    steps, batch_size, learning_rate
        Of gradients, which "nearest" indices are learnt by; "compensated" ones take none.
    sharpness
        lambda of equation 6: the weight of the term that makes soft indices hard.
    random_state
        Seed: an integer, a ``numpy.random.RandomState``, or None.

    Raises
    ------
    InputError
        If a value is out of range, or two do not go together.

    Notes
    -----
    Source: Yvinec et al., JLCM: joint learning of codebooks and mappings. Outliers: REx, as there.

    Examples
    --------
    >>> CodebookOptions(alpha=5.33).mode
    'codebooks'
    """

    alpha: float
    mode: str = "codebooks"
    clustering: str = "hierarchical"
    learn: str = "joint"
    proximal: bool = True
    assignment: str = "compensated"
    outliers: float = 0.0
    reorder: str = "auto"
    activation: str | None = None
    weighting: str = "none"
    steps: int = 150
    batch_size: int = 256
    learning_rate: float = 0.05
    sharpness: float = 1.0
    random_state: Any = None

    def __post_init__(self) -> None:
        """Check every value."""
        where = "WeightCodebooks"
        check_name(where, "mode", self.mode, MODES)
        check_name(where, "clustering", self.clustering, CLUSTERINGS)
        check_name(where, "learn", self.learn, LEARNING)
        check_name(where, "assignment", self.assignment, ASSIGNMENTS)
        check_name(where, "reorder", self.reorder, REORDERINGS)
        check_name(where, "weighting", self.weighting, WEIGHTINGS)
        if self.activation is not None:
            check_name(where, "activation", self.activation, ACTIVATIONS)
        check_count(where, "steps", self.steps, 0)
        check_count(where, "batch_size", self.batch_size, 1)
        if not isinstance(self.proximal, bool):
            raise InputError(
                f"proximal={self.proximal!r} is not True or False", where=where, fix="pass True"
            )
        _check_number(where, "alpha", self.alpha, above=0, fix="use 5.33 for 3 bits a weight")
        _check_number(where, "learning_rate", self.learning_rate, above=0, fix="use 0.05")
        _check_number(where, "sharpness", self.sharpness, at_least=0, fix="use 1.0")
        _check_number(where, "outliers", self.outliers, at_least=0, fix="use 0.005 for half a %")
        if self.outliers > MAX_OUTLIERS:
            raise InputError(
                f"outliers={self.outliers} is above {MAX_OUTLIERS}: each takes 48 bits",
                where=where,
                fix="use 0.005 for half a %, or a smaller alpha",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


def _check_number(
    where: str,
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    fix: str,
) -> None:
    """Raise InputError unless ``value`` is a finite number beyond its bound."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    good = number and math.isfinite(value)
    bound = f"above {above}" if above is not None else f"of at least {at_least}"
    if above is not None:
        good = good and value > above
    elif at_least is not None:
        good = good and value >= at_least
    if not good:
        raise InputError(f"{name}={value!r} is not a number {bound}", where=where, fix=fix)
