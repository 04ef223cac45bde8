"""A compiled model as files: what its manifest says, and what is in them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.errors import ArtifactError, LutccError, suggest
from lutcc.runtime import constants as stored
from lutcc.runtime.container import write
from lutcc.runtime.files import cannot_write
from lutcc.runtime.manifest import CONSTANTS, MODULE, Manifest
from lutcc.runtime.signature import TensorSpec

if TYPE_CHECKING:
    from lutcc.ir import Module


class StoredModel:
    """The files of a compiled model; nothing in them is run, so any processor will do.

    Parameters
    ----------
    manifest
        What describes the others.
    contents
        These, by name.
    """

    def __init__(self, manifest: Manifest, contents: Mapping[str, bytes]) -> None:
        self._manifest = manifest
        self._contents = dict(contents)

    @property
    def manifest(self) -> Manifest:
        """What ``manifest.json`` says."""
        return self._manifest

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every input."""
        return self._manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of every output."""
        return self._manifest.outputs

    @property
    def kind(self) -> str:
        """``"ir"`` (look-up kernels alone) or ``"relax"`` (with exact layers)."""
        return self._manifest.kind

    def file(self, name: str) -> bytes:
        """Return the contents of one of the artifact's files.

        Raises
        ------
        ArtifactError
            When there is none of that name.
        """
        if name not in self._contents:
            raise ArtifactError(f"there is no file {name!r}", fix=suggest(name, self._contents))
        return self._contents[name]

    @property
    def extra(self) -> Mapping[str, Any]:
        """What was given as ``extra`` when the artifact was made."""
        return self._manifest.extra

    @property
    def nbytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(len(data) for data in self._contents.values())

    def constants(self) -> dict[str, np.ndarray]:
        """Return the constants by name (read-only arrays)."""
        return stored.load(self._contents[CONSTANTS])

    def module_text(self, name: str = MODULE) -> str:
        """Return the text of the module (in a mixed model, of a region), constants elided.

        Raises
        ------
        ArtifactError
            When there is no module of that name.
        """
        for file in (name, f"{name}.ir"):
            if file in self._manifest.modules:
                return self._contents[file].decode()
        raise ArtifactError(
            f"there is no module {name!r}", fix=suggest(name, self._manifest.modules)
        )

    @property
    def module(self) -> Module:
        """The IR module with its constants.

        Raises
        ------
        ArtifactError
            For a mixed model, or when the text does not parse.
        """
        from lutcc import ir

        regions = [name for name in self._manifest.modules if name != MODULE]
        if regions and MODULE not in self._manifest.modules:
            raise ArtifactError(
                f"this model has a module for each of its regions ({', '.join(regions)}), and none "
                "for the layers between them, which Relax compiles",
                fix=f"artifact.module_text({regions[0]!r}) is the text of one, "
                "artifact.constants() all constants",
            )
        try:
            return ir.parse(self.module_text(), constants=self.constants())
        except ArtifactError:
            raise
        except LutccError as error:
            raise ArtifactError(
                f"{MODULE} cannot be read: {error}", fix="compile the model again"
            ) from error

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        container: str | None = None,
        packed: bool = False,
    ) -> Path:
        """Write the artifact: a zip for ``*.lutcc`` and ``*.zip``, else a folder.

        Parameters
        ----------
        path
            Where; what is there now stays whole until the new artifact has been written.
        container
            "zip" or "folder", whatever the suffix.
        packed
            Add the tables as each variant's kernels read them, which takes space: the C library
            needs that of look-up kernels, and Python then loads without packing. What an artifact
            has is kept either way.

        Raises
        ------
        ArtifactError
            When the path cannot be written (no permission, no space, no memory) or holds something
            that is no artifact; what was there is still there then.
        """
        bundle: tuple[Manifest, Mapping[str, bytes]] = self._manifest, self._contents
        if packed:
            from lutcc.runtime.bundle import with_packed

            try:
                bundle = with_packed(*bundle)
            except MemoryError as error:
                raise cannot_write(Path(path), error, ArtifactError) from error
        write(path, *bundle, container=container)
        return Path(path)
