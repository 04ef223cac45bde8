"""Which variant of an artifact runs on this processor, and why."""

from __future__ import annotations

from dataclasses import dataclass

from lutcc.errors import CpuMismatchError, TargetError, suggest
from lutcc.runtime import cpu
from lutcc.runtime.manifest import Variant


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """One ISA variant of an artifact and what was decided about it."""

    isa: str
    file: str
    features: tuple[str, ...]
    missing: tuple[str, ...]
    chosen: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Variants:
    """The variants of an artifact.

    Attributes
    ----------
    every
        One per ISA level, the lowest first.
    forced
        The level that was asked for by name: no other runs. None: the best that can.
    """

    every: tuple[Variant, ...]
    forced: str | None = None

    def find(self) -> Variant | None:
        """Return the one that runs here, or None when none does."""
        return next((v for v in reversed(self._allowed()) if cpu.supports(v.features)), None)

    def choose(self) -> Variant:
        """Return the one that runs here.

        Raises
        ------
        TargetError
            When there is none of the level that was asked for.
        CpuMismatchError
            When this processor runs none.
        """
        if (found := self.find()) is not None:
            return found
        allowed = self._allowed()
        if self.forced is not None and not allowed:
            raise TargetError(
                f"the artifact has no variant {self.forced!r}",
                fix=suggest(self.forced, (variant.isa for variant in self.every)),
            )
        host = cpu.host()
        lacks = "; ".join(f"{v.isa} needs {', '.join(cpu.missing(v.features))}" for v in allowed)
        capped = f", capped at {host.max_isa} by LUTCC_MAX_ISA" if host.max_isa else ""
        raise CpuMismatchError(
            f"no kernels in it run on this processor ({host.model}, best level "
            f"{host.isa or 'none'}{capped}): {lacks}",
            fix=f"compile the model with target={host.isa or 'host'!r}"
            + (", or unset LUTCC_MAX_ISA" if host.max_isa else ""),
        )

    def choices(self) -> tuple[VariantChoice, ...]:
        """Return what was decided about each, in their order."""
        found = self.find()
        return tuple(self._choice(variant, found) for variant in self.every)

    def _choice(self, variant: Variant, found: Variant | None) -> VariantChoice:
        missing, chosen = cpu.missing(variant.features), variant is found
        if missing:
            reason = f"not possible: the processor lacks {', '.join(missing)}"
        elif chosen and self.forced:
            reason = "runs: asked for by name"
        elif chosen:
            reason = "runs: the best level that the processor supports"
        else:
            reason = f"possible, but {self.forced or (found and found.isa)} was preferred"
        return VariantChoice(variant.isa, variant.file, variant.features, missing, chosen, reason)

    def _allowed(self) -> list[Variant]:
        return [variant for variant in self.every if self.forced in (None, variant.isa)]
