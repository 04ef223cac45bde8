"""Mixed models through a compile cache: regions lowered and executables built before are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from lutcc import ir
from lutcc.codegen.cached import functions_digest
from lutcc.codegen.compile_cache import CompileCache
from lutcc.codegen.lower import prepare
from lutcc.frontend.relax.kernels import RegionCompiler, RegionKernel, with_whole_rows
from lutcc.frontend.relax.pipeline import Choice
from lutcc.ir.module import Module
from lutcc.ir.types import Array
from lutcc.schedules.space import Config
from lutcc.schedules.x86.pack import pack_blob


@dataclass
class MixedCache:
    """Compiles regions and knows executables; what is in the cache is not made again.

    Attributes
    ----------
    cache
        See there.
    compile_region
        Makes the kernels of a region that is not in the cache.
    """

    cache: CompileCache
    compile_region: RegionCompiler
    _digests: dict[tuple[str, str], str] = field(default_factory=dict)

    def region(
        self, name: str, module: Module, isa: str, choice: Choice | None = None
    ) -> RegionKernel:
        """Return the kernels of a region; without their function if they were lowered before."""
        prepared = prepare(with_whole_rows(module))
        configs = {} if choice is None else choice.stage_configs(prepared, isa)
        text = ir.to_text(prepared, elide_constants=True)
        key = self.cache.key("region", name, text, isa, _plain(configs), choice is None)
        entry = self.cache.get(key)
        if entry is not None:
            data = entry.data
            self._digests[isa, name] = data["function"]
            rest = data["rest"] | {"kernels": tuple(data["rest"]["kernels"])}
            blob = pack_blob(rest["program"], dict(prepared.constants))
            return RegionKernel(None, np.ascontiguousarray(blob), **rest)
        kernel = self.compile_region(name, module, isa, choice)
        if kernel.program is not None:
            self._digests[isa, name] = functions_digest({name: kernel.function})
            others = [f.name for f in fields(kernel) if f.name not in ("function", "blob")]
            rest = {name: getattr(kernel, name) for name in others}
            self.cache.put(key, {"function": self._digests[isa, name], "rest": rest})
        return kernel

    def key(
        self, outline: str, isa: str, regions: Mapping[str, RegionKernel], *more: Any
    ) -> str | None:
        """Return the name of an executable's entry; None if not all that it is made of is known.

        Parameters
        ----------
        outline
            Of the graph, see :func:`lutcc.frontend.relax.program.outline`.
        isa
            Its level.
        regions
            The graph's regions.
        more
            What else it depends on.
        """
        digests = {name: self._digests.get((isa, name)) for name in regions}
        if None in digests.values():
            return None
        return self.cache.key("executable", outline, isa, digests, *more)

    def executable(
        self, key: str, isa: str, choice: Choice | None, path: Path
    ) -> list[Mapping[str, Any]] | None:
        """Write an executable from the cache; return the records of its exact layers' kernels.

        Returns None if it is not there, or its loop nests would get other configs today.
        """
        entry = self.cache.get(key)
        if entry is None:
            return None
        for kernel_id, *found in entry.data["asked"]:
            today = None if choice is None else choice.relax_config(kernel_id, isa)
            if _plain_answer(today) != found:
                self.cache.reject()
                return None
        path.write_bytes(entry.blob)
        return entry.data["kernels"]

    def keep(
        self,
        key: str,
        asked: Asked | None,
        kernels: tuple[Mapping[str, Any], ...],
        path: Path,
    ) -> None:
        """Keep the executable at ``path``, the configs that it was built with and its records."""
        answers = [] if asked is None else asked.answers
        self.cache.put(key, {"asked": answers, "kernels": list(kernels)}, path.read_bytes())


class Asked:
    """A choice that remembers what it was asked and what it said."""

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self.answers: list[list[Any]] = []

    def stage_configs(self, module: Module, isa: str) -> Mapping[str, Mapping[str, Any]]:
        """Return the configs of a prepared module's stages."""
        return self._choice.stage_configs(module, isa)

    def relax_config(self, kernel_id: str, isa: str) -> tuple[Config, str] | None:
        """Return the config of an exact layer's loop nest and where it was found, or None."""
        found = self._choice.relax_config(kernel_id, isa)
        self.answers.append([kernel_id, *_plain_answer(found)])
        return found


def _plain_answer(found: tuple[Config, str] | None) -> list[Any]:
    return [None, None] if found is None else [dict(found[0]), found[1]]


def _plain(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {name: dict(config) for name, config in configs.items()}


def shapes_of(arrays: Mapping[str, Array]) -> list[Any]:
    """Return names, shapes and dtypes of arrays as plain data."""
    return [[name, list(array.shape), str(array.dtype)] for name, array in arrays.items()]
