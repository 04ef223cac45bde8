"""Options of a layer, whose ratio may change without ``torch.compile`` compiling anew each time."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import torch

from lutcc.sampling_options import SamplingOptions

_WHOLE = 2**32


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TracedOptions(SamplingOptions):
    """Options that say under ``torch.compile`` how many pairs to take by a size, not by a number.

    Numbers that a module holds are constants of the compiled code, which is made anew for each
    value (and given up on after a few). Sizes of tensors become variables once they change.

    Parameters
    ----------
    parts
        A tensor of one number that is seen ``sample_ratio * 2**32`` times, so that it takes no
        memory.
    """

    parts: torch.Tensor = dataclasses.field(
        default_factory=lambda: torch.zeros(1), compare=False, repr=False
    )

    @classmethod
    def of(cls, options: SamplingOptions) -> Self:
        """Return the same options with their tensor."""
        # rounded up, so that a third of 3 is 1
        size = math.ceil(options.sample_ratio * _WHOLE)
        return cls(**options.to_dict(), parts=torch.zeros(1).expand(size))

    def count(self, pairs: int) -> int:
        """Return k for a product of so many pairs, or groups of them."""
        if not torch.compiler.is_compiling():
            # a slotted dataclass is made twice, so that super() without arguments fails
            return SamplingOptions.count(self, pairs)
        return min(pairs, max(self.minimal_k, pairs * self.parts.shape[0] // _WHOLE))

    def to_dict(self) -> dict[str, Any]:
        """Return the options by name, without the tensor."""
        fields = dataclasses.fields(SamplingOptions)
        return {field.name: getattr(self, field.name) for field in fields}
