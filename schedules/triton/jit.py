"""``triton.jit`` as type checkers can take it: Triton has no types for what launching needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

jit: Callable[..., Any] = triton.jit
