"""Compares a pass's printed result with what is expected."""

from __future__ import annotations

import textwrap

from lutcc import ir
from lutcc.ir.passes import Pass


def module(text: str) -> ir.Module:
    return ir.parse("lutcc.ir 1\n" + text)


def body(text: str) -> str:
    return textwrap.dedent(text).strip()


def check(step: Pass, before: str, after: str) -> ir.Module:
    """Compare the printed result without its header; the pass must be idempotent."""
    result = step(module(before))
    ir.verify(result)
    printed = ir.to_text(result).removeprefix("lutcc.ir 1\n\n").strip()
    assert printed == body(after)
    assert step(result) == result
    return result
