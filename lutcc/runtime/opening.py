"""Opens the kernels of a variant: what an artifact's calls go to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lutcc.runtime.kernel import LookupKernel, ThreadChoice
from lutcc.runtime.manifest import Variant
from lutcc.runtime.signature import bounds_from
from lutcc.runtime.stored_model import StoredModel

if TYPE_CHECKING:
    from lutcc.runtime.relax import RelaxKernel


def open_kernel(
    model: StoredModel, variant: Variant, choice: ThreadChoice
) -> LookupKernel | RelaxKernel:
    """Return a variant's kernels with the constants that they read, ready to call.

    Parameters
    ----------
    model
        What the variant is of.
    variant
        One that this processor runs.
    choice
        How many threads calls use.

    Raises
    ------
    ArtifactError
        When the library is none, or the constants do not fit it.
    """
    manifest = model.manifest
    packed = None if variant.packed is None else model.file(variant.packed)
    constants = {} if packed is not None else model.constants()
    library = model.file(variant.file)
    if manifest.kind == "relax":
        from lutcc.runtime.relax import RelaxKernel

        return RelaxKernel(
            library,
            variant.file,
            constants,
            variant.params,
            manifest.inputs,
            manifest.outputs,
            choice=choice,
            bounds=bounds_from(manifest.extra),
        )
    assert variant.program is not None
    return LookupKernel(
        variant.program,
        library,
        variant.file,
        constants,
        manifest.inputs,
        manifest.outputs,
        choice=choice,
        work_per_row=manifest.work_per_row,
        packed=packed,
    )
