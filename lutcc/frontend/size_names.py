"""Names of open sizes; light, so that nothing but names is imported."""

from __future__ import annotations

BATCH = "n"
"""Name of the symbolic batch size in every imported module."""

PRODUCT = "."
"""Between the names of a product of open sizes: a region of (n, length, 64) has n.length rows."""
