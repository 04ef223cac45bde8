"""``interval_encode``: as ``tree_encode``, with one more permute and a subtraction a level."""

from __future__ import annotations

from lutcc.schedules.x86.tree_encode import emit_block

__all__ = ["emit_block"]
