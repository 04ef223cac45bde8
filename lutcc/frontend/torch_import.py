"""Import a torch model: into one IR module, or cut for the mixed path through TVM Relax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch.export import ExportedProgram

from lutcc import ir
from lutcc.errors import FrontendError
from lutcc.frontend.checks import layer_of
from lutcc.frontend.dynamic import Dynamic
from lutcc.frontend.export import export_program
from lutcc.frontend.graph import Graph, NotExpressible, Port
from lutcc.frontend.partition import Probe, Region, find_regions, probe


@dataclass(frozen=True, slots=True)
class Imported:
    """A torch model as lutcc compiles it.

    Attributes
    ----------
    kind
        ``"ir"``: ``module`` is the whole model. ``"mixed"``: ``regions`` are the parts with kernels
        of lutcc, and ``graph`` is compiled around them by :func:`lutcc.frontend.relax.build_mixed`.
    inputs, outputs
        Names, shapes (with the batch size ``n``) and dtypes, in call order.
    notes
        What the user should know: a batch size that could not be left open, and (mixed) which ops
        made the model mixed.
    """

    kind: Literal["ir", "mixed"]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    module: ir.Module | None = None
    graph: Graph | None = None
    regions: tuple[Region, ...] = ()
    notes: tuple[str, ...] = ()


def import_torch(
    model_or_exported_program: torch.nn.Module | ExportedProgram | Imported,
    example_inputs: object = None,
    *,
    dynamic_batch: bool = True,
    dynamic: Dynamic | None = None,
) -> Imported:
    """Import a torch model for compilation.

    Parameters
    ----------
    model_or_exported_program
        A float32 module on the CPU in evaluation mode, or the result of ``torch.export.export``,
        or of this function.
    example_inputs
        A tensor, a sequence of tensors, or a mapping of keyword arguments; ignored for an exported
        program.
    dynamic_batch
        Leave the size of dimension 0 of the inputs open: the symbol ``n``. A model that only works
        at the example's batch size is imported at that size, with a note.
    dynamic
        Which sizes stay open instead: ``{0: "n", 1: "length"}`` for all inputs that have these
        dimensions, or a mapping of such by input name, or a sequence of such; a name may also be a
        ``torch.export.Dim`` with bounds. A model that does not take them is refused.

    Raises
    ------
    FrontendError
        If the model cannot be traced or uses what lutcc does not compile; the message names the
        layer and the fix.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 30), torch.nn.ReLU()).eval()
    >>> module = import_torch(model, torch.zeros(8, 64)).module
    >>> [op.opcode for op in module.main.body if op.opcode != "constant"]
    ['linear', 'relu']
    """
    if isinstance(model_or_exported_program, Imported):
        return model_or_exported_program
    exported = export_program(
        model_or_exported_program, example_inputs, dynamic_batch=dynamic_batch, dynamic=dynamic
    )
    graph = Graph(exported.program)
    for index, node in enumerate(graph.output_nodes):
        if node is None or not isinstance(node.meta.get("val"), torch.Tensor):
            raise FrontendError(
                "is not a tensor",
                where=f"output {index}",
                fix="return tensors only; leave None and numbers out of the forward's result",
            )
    found = probe(graph)
    module = _whole_module(graph, found)
    if module is not None:
        return Imported(
            "ir", graph.inputs, graph.outputs, module=module, graph=graph, notes=exported.notes
        )
    return Imported(
        "mixed",
        graph.inputs,
        graph.outputs,
        graph=graph,
        regions=find_regions(graph, found),
        notes=(*exported.notes, *_why_mixed(found)),
    )


def _whole_module(graph: Graph, found: Probe) -> ir.Module | None:
    outputs = [n for n in graph.output_nodes if n is not None]
    if len(graph.symbols) > 1 or found.reasons or not all(n in found.expressible for n in outputs):
        return None
    region = found.whole
    try:
        region.builder.returns(*(region.result(n, torch_shape=True) for n in outputs))
        return region.builder.module()
    except (NotExpressible, ir.VerifyError):
        return None


def _why_mixed(found: Probe) -> tuple[str, ...]:
    """Return one note per set of layers that are left to Relax for the same reasons."""
    of_layer: dict[str, dict[str, None]] = {}
    for node, reason in found.reasons.items():
        if not reason.derived:
            of_layer.setdefault(layer_of(node), {})[str(reason)] = None
    alike: dict[tuple[str, ...], list[str]] = {}
    for layer, reasons in of_layer.items():
        alike.setdefault(tuple(reasons), []).append(layer)
    notes: list[str] = []
    for reasons, layers in alike.items():
        more = f" and {len(layers) - 2} more" if len(layers) > 2 else ""
        notes.append(
            f"{', '.join(layers[:2])}{more}: compiled through TVM Relax ({'; '.join(reasons)})"
        )
    return tuple(notes)
