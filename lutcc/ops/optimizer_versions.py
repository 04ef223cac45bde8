"""Makes fused optimizers count tensor versions up, which torch leaves out.

Kernels and rounded copies are kept for as long as a table's version stays the same
(``tensor._version``, which every in-place change counts up). The fused forms of torch's optimizers
change parameters without doing so: what was compiled before a step would be used after it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


def count_versions_up(optimizer: Optimizer, args: Any = (), kwargs: Any = None) -> None:
    """Count up the versions of a fused optimizer's parameters; runs after each of its steps."""
    for group in optimizer.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                if parameter.grad is not None and not parameter.is_inference():
                    torch.autograd.graph.increment_version(parameter)


HOOK = register_optimizer_step_post_hook(count_versions_up)
