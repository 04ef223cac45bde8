"""Registries of ops: opcode to definition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lutcc.errors import VerifyError, suggest
from lutcc.ir.spec import OpDef


class Registry(Mapping[str, OpDef]):
    """An immutable set of op definitions by name.

    Builder, verifier, parser, interpreter and cost all take a registry, so a family of ops can be
    added, or tried in a test, without touching the core.

    Raises
    ------
    VerifyError
        If two definitions have the same name.

    Examples
    --------
    >>> from lutcc.ir import OPS
    >>> len(OPS.extended()) == len(OPS)
    True
    """

    __slots__ = ("_ops",)

    def __init__(self, *opdefs: OpDef) -> None:
        self._ops: dict[str, OpDef] = {}
        for opdef in opdefs:
            if opdef.name in self._ops:
                raise VerifyError(f"op {opdef.name!r} is defined twice")
            self._ops[opdef.name] = opdef

    def extended(self, *opdefs: OpDef) -> Registry:
        """Return a registry with these ops as well."""
        return Registry(*self._ops.values(), *opdefs)

    def __getitem__(self, name: str) -> OpDef:
        return self._ops[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._ops)

    def __len__(self) -> int:
        return len(self._ops)

    def lookup(self, name: str, where: str) -> OpDef:
        """Return a definition.

        Raises
        ------
        VerifyError
            If there is no such op; the message suggests the nearest names.
        """
        if name not in self._ops:
            raise VerifyError(f"unknown op {name!r}; {suggest(name, self._ops)}", where=where)
        return self._ops[name]
