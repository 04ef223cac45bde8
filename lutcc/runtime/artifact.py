"""The artifact: a compiled model that is called, saved, loaded and explained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lutcc.errors import ArtifactError, CpuMismatchError, TargetError, suggest
from lutcc.runtime import constants as stored
from lutcc.runtime import container, cpu
from lutcc.runtime.files import cannot_write
from lutcc.runtime.kernel import LookupKernel, ThreadChoice
from lutcc.runtime.manifest import CONSTANTS, MODULE, Manifest, Variant
from lutcc.runtime.signature import TensorSpec, bounds_from, open_sizes
from lutcc.runtime.threads import checked

if TYPE_CHECKING:
    from lutcc.ir import Module
    from lutcc.runtime.explain import Explanation, KernelNote
    from lutcc.runtime.relax import RelaxKernel


class Artifact:
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
        self._manifest = manifest
        self._contents = dict(contents)
        self._choice = ThreadChoice()
        self._forced = isa
        self._kernel: LookupKernel | RelaxKernel | None = None
        self._call: Any = self._unbound

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
        if artifact._candidates():
            artifact._bind()
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

    def _unbound(self, *tensors: Any) -> Any:
        self._bind()
        return self._call(*tensors)

    def _candidates(self) -> list[Variant]:
        """Return the variants that run here, best first."""
        return [v for v in reversed(self._manifest.variants) if cpu.supports(v.features)]

    def _select(self) -> Variant:
        variants = self._manifest.variants
        if self._forced is not None:
            named = [variant for variant in variants if variant.isa == self._forced]
            if not named:
                raise TargetError(
                    f"the artifact has no variant {self._forced!r}",
                    fix=suggest(self._forced, (variant.isa for variant in variants)),
                )
            candidates = [variant for variant in named if cpu.supports(variant.features)]
        else:
            named, candidates = list(variants), self._candidates()
        if candidates:
            return candidates[0]
        host = cpu.host()
        lacks = "; ".join(f"{v.isa} needs {', '.join(cpu.missing(v.features))}" for v in named)
        capped = f", capped at {host.max_isa} by LUTCC_MAX_ISA" if host.max_isa else ""
        raise CpuMismatchError(
            f"no kernels in it run on this processor ({host.model}, best level "
            f"{host.isa or 'none'}{capped}): {lacks}",
            fix=f"compile the model with target={host.isa or 'host'!r}"
            + (", or unset LUTCC_MAX_ISA" if host.max_isa else ""),
        )

    def _bind(self) -> None:
        """Choose a variant and open its kernels."""
        variant = self._select()
        manifest = self._manifest
        packed = None if variant.packed is None else self._contents[variant.packed]
        constants = {} if packed is not None else stored.load(self._contents[CONSTANTS])
        library = self._contents[variant.file]
        if manifest.kind == "relax":
            from lutcc.runtime.relax import RelaxKernel

            self._kernel = RelaxKernel(
                library,
                variant.file,
                constants,
                variant.params,
                manifest.inputs,
                manifest.outputs,
                choice=self._choice,
                bounds=bounds_from(manifest.extra),
            )
        else:
            assert variant.program is not None
            self._kernel = LookupKernel(
                variant.program,
                library,
                variant.file,
                constants,
                manifest.inputs,
                manifest.outputs,
                choice=self._choice,
                work_per_row=manifest.work_per_row,
                packed=packed,
            )
        self._call = self._kernel.call

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

    # Facts -----------------------------------------------------------------------------------

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

    @property
    def isa(self) -> str | None:
        """Level of the variant that runs here, or None when none does."""
        candidates = [v.isa for v in self._candidates() if self._forced in (None, v.isa)]
        return candidates[0] if candidates else None

    @property
    def manifest(self) -> Manifest:
        """What ``manifest.json`` says."""
        return self._manifest

    @property
    def kernel(self) -> LookupKernel | RelaxKernel:
        """The opened variant; opens it if need be.

        Raises
        ------
        CpuMismatchError
            When no variant runs on this processor.
        """
        if self._kernel is None:
            self._bind()
        assert self._kernel is not None
        return self._kernel

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
        from lutcc.errors import LutccError

        try:
            return ir.parse(self.module_text(), constants=self.constants())
        except ArtifactError:
            raise
        except LutccError as error:
            raise ArtifactError(
                f"{MODULE} cannot be read: {error}", fix="compile the model again"
            ) from error

    def explain(self) -> Explanation:
        """Return which variant runs here and why, its kernels, tables, work per row and threads.

        Of look-ups it says which stay in integers up to the next, how many of their outputs are
        computed, and where and why a chain is cut.
        """
        from lutcc.runtime.explain import Explanation, VariantChoice
        from lutcc.runtime.explain_lookups import lookup_rows

        manifest, isa = self._manifest, self.isa
        host = cpu.host()
        variants: list[VariantChoice] = []
        kernels: list[KernelNote] = []
        packed = workspace = None
        for variant in manifest.variants:
            missing = cpu.missing(variant.features)
            chosen = variant.isa == isa
            if missing:
                reason = f"not possible: the processor lacks {', '.join(missing)}"
            elif chosen and self._forced:
                reason = "runs: asked for by name"
            elif chosen:
                reason = "runs: the best level that the processor supports"
            else:
                reason = f"possible, but {isa} was preferred"
            variants.append(
                VariantChoice(variant.isa, variant.file, variant.features, missing, chosen, reason)
            )
            if chosen and variant.program is not None:
                packed = variant.program["blob_nbytes"]
                workspace = dict(variant.program["workspace"])
            if chosen:
                kernels = _kernel_notes(variant, manifest.extra)
        kernel = self._kernel
        return Explanation(
            kind=manifest.kind,
            inputs=tuple(map(str, manifest.inputs)),
            outputs=tuple(map(str, manifest.outputs)),
            open_sizes=open_sizes(manifest.inputs, bounds_from(manifest.extra)),
            host=host,
            variants=tuple(variants),
            kernels=tuple(kernels),
            tables=tuple(
                {"name": n, "dtype": str(a.dtype), "shape": list(a.shape), "bytes": a.nbytes}
                for n, a in self.constants().items()
            ),
            packed_bytes=packed,
            workspace=workspace,
            work_per_row=dict(manifest.work_per_row),
            threads=self.num_threads,
            parallel_from_rows=kernel.parallel_rows if isinstance(kernel, LookupKernel) else None,
            versions={"lutcc": manifest.lutcc_version, **manifest.versions},
            notes=_notes(manifest.extra),
            lookups=lookup_rows(manifest.extra),
        )

    def __repr__(self) -> str:
        inputs = ", ".join(map(str, self.inputs))
        outputs = ", ".join(map(str, self.outputs))
        return f"<lutcc.Artifact {inputs} -> {outputs}, {self.isa or 'no variant for this CPU'}>"

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
        _write(path, *bundle, container=container)
        return Path(path)

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


_write = container.write


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
        artifact._bind()
    except (ArtifactError, TargetError) as error:
        if error.where is None or error.where in artifact._contents:
            where = str(path) if error.where is None else f"{path}/{error.where}"
            raise type(error)(error.what, where=where, fix=error.fix) from error
        raise
    return artifact


def _notes(extra: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what the import and the tuning logs had to say; ``extra`` may hold anything."""
    lists = [extra.get(name) for name in ("notes", "tuning_notes")]
    return tuple(str(note) for notes in lists if isinstance(notes, list) for note in notes)


def _kernel_notes(variant: Variant, extra: Mapping[str, Any]) -> list[KernelNote]:
    """Return the kernels of a variant: of its program, or (mixed models) of extra."""
    from lutcc.runtime.explain import KernelNote

    if variant.program is not None:
        records = variant.program["kernels"]
    else:
        listed = extra.get("kernels")
        records = listed.get(variant.isa, []) if isinstance(listed, dict) else []
    return [
        KernelNote(
            str(record.get("stage", "")),
            tuple(map(str, record.get("ops", ()))),
            record.get("config", {}),
            str(record.get("source", "default")),
        )
        for record in records
        if isinstance(record, dict)
    ]
