"""The artifact: a compiled model that is made or loaded, called and explained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.errors import ArtifactError, TargetError
from lutcc.runtime import container
from lutcc.runtime.kernel import LookupKernel, ThreadChoice
from lutcc.runtime.manifest import Manifest
from lutcc.runtime.opening import open_kernel
from lutcc.runtime.stored_model import StoredModel
from lutcc.runtime.threads import checked
from lutcc.runtime.variants import Variants

if TYPE_CHECKING:
    from lutcc.ir import Module
    from lutcc.runtime.explain import Explanation
    from lutcc.runtime.relax import RelaxKernel


class Artifact(StoredModel):
    """A compiled model: NumPy arrays or torch CPU tensors in, the same kind out.

    Made by :func:`lutcc.compile` or :func:`lutcc.load`. Calls are safe from several threads.

    Raises
    ------
    InputError
        From a call, when an argument has a wrong shape, dtype, device or layout.
    CpuMismatchError
        From a call, when no variant runs on this processor.

    Examples
    --------
    >>> artifact = lutcc.load("model.lutcc")  # doctest: +SKIP
    >>> y = artifact(x)  # doctest: +SKIP
    >>> print(artifact.explain())  # doctest: +SKIP
    """

    def __init__(
        self, manifest: Manifest, contents: Mapping[str, bytes], *, isa: str | None = None
    ) -> None:
        super().__init__(manifest, contents)
        self._variants = Variants(manifest.variants, isa)
        self._choice = ThreadChoice()
        self._kernel: LookupKernel | RelaxKernel | None = None
        self._call: Any = self._first_call

    # Making one ------------------------------------------------------------------------------

    @classmethod
    def from_programs(
        cls,
        module: Module,
        programs: Sequence[Any],
        so_paths: Mapping[str, str | os.PathLike[str]],
        extra: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Bundle compiled look-up programs.

        Parameters
        ----------
        module
            The module that was compiled; its text and constants go into the artifact.
        programs
            One :class:`lutcc.codegen.Program` (or its JSON) per ISA level.
        so_paths
            Shared library of each level.
        extra
            Anything JSON can say that should travel along.

        Raises
        ------
        ArtifactError
            When the parts do not fit together.
        """
        from lutcc.runtime.bundle import bundle_programs

        return cls._made(bundle_programs(module, programs, so_paths, extra))

    @classmethod
    def from_relax(
        cls,
        module_texts: Mapping[str, str],
        so_paths: Mapping[str, str | os.PathLike[str]],
        inputs: Sequence[Any],
        outputs: Sequence[Any],
        constants: Mapping[str, np.ndarray],
        param_order: Sequence[str] | Mapping[str, Sequence[str]],
        extra: Mapping[str, Any] | None = None,
    ) -> Artifact:
        """Bundle a model that runs on Relax's virtual machine.

        Parameters
        ----------
        module_texts
            Text of each look-up region (or of anything worth reading), by name.
        so_paths
            Relax executable of each ISA level; its function ``main`` takes (inputs..., params...).
        inputs, outputs
            TensorSpec, or mappings with name, shape (sizes, symbol names or [symbol, factor]) and
            dtype.
        constants
            Arrays by name.
        param_order
            Names of the constants to pass after the inputs, in order; a mapping gives each ISA
            level its own (packed tables differ between levels).
        extra
            Anything JSON can say that should travel along; ``kernels``, if there, lists kernel
            records by ISA level for :meth:`explain`.

        Raises
        ------
        ArtifactError
            When the parts do not fit together.
        """
        from lutcc.runtime.bundle import bundle_relax

        return cls._made(
            bundle_relax(module_texts, so_paths, inputs, outputs, constants, param_order, extra)
        )

    @classmethod
    def _made(cls, bundle: tuple[Manifest, dict[str, bytes]]) -> Artifact:
        artifact = cls(*bundle)
        if artifact._variants.find() is not None:
            artifact._open()
        return artifact

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Artifact:
        """Read and check an artifact without opening kernels: it may be for another processor.

        Raises
        ------
        ArtifactError
            When it is missing, truncated, tampered with, or of another version.
        """
        return cls(*container.read(path))

    # Running ---------------------------------------------------------------------------------

    def __call__(self, *tensors: Any) -> Any:
        """Run the model; several outputs come as a tuple."""
        return self._call(*tensors)

    def _first_call(self, *tensors: Any) -> Any:
        self._open()
        return self._call(*tensors)

    def _open(self) -> None:
        """Choose a variant and open its kernels."""
        self._kernel = open_kernel(self, self._variants.choose(), self._choice)
        self._call = self._kernel.call

    @property
    def kernel(self) -> LookupKernel | RelaxKernel:
        """The opened variant; opens it if need be.

        Raises
        ------
        CpuMismatchError
            When no variant runs on this processor.
        """
        if self._kernel is None:
            self._open()
        assert self._kernel is not None
        return self._kernel

    @property
    def num_threads(self) -> int:
        """How many threads a large enough call uses; None given restores the global number.

        Models of both kinds follow it, and their numbers do not depend on it.

        Raises
        ------
        InputError
            When set to something else than None or a whole number from 1 to 1024.
        """
        return self._choice.count()

    @num_threads.setter
    def num_threads(self, count: int | None) -> None:
        self._choice.own = None if count is None else checked(count, "artifact.num_threads")

    # What runs -------------------------------------------------------------------------------

    @property
    def isa(self) -> str | None:
        """Level of the variant that runs here, or None when none does."""
        found = self._variants.find()
        return None if found is None else found.isa

    def explain(self) -> Explanation:
        """Return which variant runs here and why, its kernels, tables, work per row and threads.

        Of look-ups it says which stay in integers up to the next, how many of their outputs are
        computed, and where and why a chain is cut.
        """
        from lutcc.runtime.explain import Explanation

        kernel = self._kernel
        return Explanation.of(
            self,
            self._variants,
            threads=self.num_threads,
            parallel_from_rows=kernel.parallel_rows if isinstance(kernel, LookupKernel) else None,
        )

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"<lutcc.Artifact {inputs} -> {outputs}, {self.isa or 'no variant for this CPU'}>"

    def export_c(self, folder: str | os.PathLike[str]) -> Path:
        """Write what a C or C++ program needs to run the model.

        Parameters
        ----------
        folder
            Where; it is made when it does not exist.

        Returns
        -------
        Path
            The folder: ``model.lutcc``, the sources of the C library, ``example.cpp`` and a
            ``CMakeLists.txt`` that builds both.

        Raises
        ------
        ArtifactError
            When the folder cannot be written.
        """
        from lutcc.runtime.export import export_c

        return export_c(self, folder)


def load(path: str | os.PathLike[str], *, isa: str | None = None) -> Artifact:
    """Load an artifact and open the best variant for this processor.

    Format version, sizes, hashes and CPU features are checked before anything in it is opened.
    Neither TVM's compiler nor torch is imported.

    Parameters
    ----------
    path
        A ``.lutcc`` file or an artifact folder.
    isa
        Take this variant ("avx2", "avx512", "avx512_vbmi_vnni", "avx512_bf16") instead of the
        best.

    Raises
    ------
    ArtifactError
        When it is missing, truncated, tampered with, or of another version.
    CpuMismatchError
        When no variant in it (or not the named one) runs on this processor.
    TargetError
        When it has no variant ``isa``.

    Examples
    --------
    >>> artifact = lutcc.load("model.lutcc")  # doctest: +SKIP
    >>> artifact.inputs  # doctest: +SKIP
    """
    artifact = Artifact(*container.read(path), isa=isa)
    try:
        artifact._open()
    except (ArtifactError, TargetError) as error:
        if error.where is None or error.where in artifact.manifest.files:
            where = str(path) if error.where is None else f"{path}/{error.where}"
            raise type(error)(error.what, where=where, fix=error.fix) from error
        raise
    return artifact
