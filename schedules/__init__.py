"""How an IR operation becomes code: one package per backend, one file per operation."""

from __future__ import annotations

if __name__ != "lutcc.schedules":
    raise ImportError(
        f"this package is lutcc.schedules and must not be imported as {__name__!r}; "
        "write 'from lutcc import schedules'"
    )
