"""How products are sampled in training: layers, recipes and functions share these options."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lutcc.errors import InputError
from lutcc.ir.sampling import MODES, PROBABILITIES, sample_count
from lutcc.lookup_options import check_count, check_name

WHERE = ("forward_backward", "forward", "backward", "weight_gradient")
SCALINGS = ("both", "forward", "none")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """What is sampled, how many pairs of it, and by which rule.

    Parameters
    ----------
    mode
        "topk" takes the pairs of the largest norms (section 6), "crs" draws with replacement
        (equation 1), "bernoulli" each pair for itself (equation 15), "topk_weights" goes by the
        weights' norms alone, so that all workers take the same, "wta_crs" takes the likeliest for
        certain and draws the rest. crs, bernoulli and wta_crs are unbiased.
    sample_ratio
        The part of the pairs that is taken, in (0, 1]. 1 computes exactly.
    minimal_k
        Take at least so many pairs of each product.
    where
        "forward_backward": sample the forward product, over the input features or channels, and
        reuse its pairs for both gradients, as the paper's experiments do. "forward": sample it, but
        compute the gradients as if it had been exact (equation 12; the paper finds it worse).
        "backward": compute the forward pass exactly and sample both gradients' products, each over
        its own common dimension (section 5). "weight_gradient": sample the weights' gradient only,
        over rows or images.
    probabilities
        "optimal" (equations 4 and 16) or "uniform", for crs and bernoulli.
    scaling
        "both": pairs count 1 / (k p) or 1 / p, in the gradients too (equation 10). "forward": the
        gradients of the pairs taken are not scaled. "none": nothing is (section 6). For topk and
        topk_weights all are the same.
    group_size
        Take whole groups of so many adjacent features or rows, as GPUs like them (16). For
        convolutions a group is a channel or an image, and this must be 1.

    Raises
    ------
    InputError
        If a value is out of range, or two do not go together.

    Notes
    -----
    Source: Adelman et al., Faster neural network training with approximate tensor operations.

    Examples
    --------
    >>> SamplingOptions(mode="crs", sample_ratio=0.3).count(10)
    3
    """

    mode: str = "topk"
    sample_ratio: float = 0.5
    minimal_k: int = 1
    where: str = "forward_backward"
    probabilities: str = "optimal"
    scaling: str = "both"
    group_size: int = 1

    def __post_init__(self) -> None:
        """Check every value."""
        place = "sampling"
        check_name(place, "mode", self.mode, MODES)
        check_name(place, "where", self.where, WHERE)
        check_name(place, "probabilities", self.probabilities, PROBABILITIES)
        check_name(place, "scaling", self.scaling, SCALINGS)
        check_count(place, "minimal_k", self.minimal_k, 1)
        check_count(place, "group_size", self.group_size, 1)
        check_ratio(self.sample_ratio, place)
        if self.mode == "topk_weights" and self.where in ("backward", "weight_gradient"):
            raise InputError(
                f"mode='topk_weights' with where={self.where!r}: the gradients' products have no "
                "columns that belong to the weights alone",
                where=place,
                fix="use where='forward_backward', or mode='topk'",
            )
        if self.scaling == "forward" and self.where in ("backward", "weight_gradient"):
            raise InputError(
                f"scaling='forward' with where={self.where!r}, which samples no forward product",
                where=place,
                fix="use scaling='both' or 'none'",
            )
        if self.probabilities == "uniform" and self.mode not in ("crs", "bernoulli"):
            raise InputError(
                f"probabilities='uniform' with mode={self.mode!r}, which goes by the norms",
                where=place,
                fix="use mode='crs' or 'bernoulli', or probabilities='optimal'",
            )

    def count(self, pairs: int) -> int:
        """Return k for a product of so many pairs, or groups of them."""
        return sample_count(pairs, self.sample_ratio, self.minimal_k)

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name."""
        return dataclasses.asdict(self)


def check_ratio(value: Any, where: str = "sampling") -> None:
    """Raise InputError unless ``value`` is a number in (0, 1]."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0 < value <= 1:
        raise InputError(
            f"sample_ratio={value!r} is not a number above 0 and at most 1",
            where=where,
            fix="use 0.5 to take half of the pairs",
        )
