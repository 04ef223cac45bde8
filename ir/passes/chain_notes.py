"""What a user is told of look-ups that feed look-ups: which sums stay integers, and why not."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lutcc.ir.module import Module, Operation

if TYPE_CHECKING:
    from lutcc.ir.passes.chains import Found
    from lutcc.ir.passes.dead_columns import Dead


@dataclass(frozen=True)
class LookupNote:
    """What becomes of the outputs of one layer, from a look-up or in front of one.

    Attributes
    ----------
    layer
        The name of its table or weight, without its own last part.
    value, result
        The names of the sums in the module, as ``acc_1``, and of what their readers read.
    integers
        Whether they stay integers up to the trees that read them.
    columns, computed
        How many outputs the layer has, and how many of them are computed: the others are compared
        by no tree.
    behind
        What stands between them and their readers, as ("relu",).
    reason
        Why they become floats; of integers, how trees read them.
    cut
        Whether other look-ups come later: a chain that ends here and might have gone on.
    region
        Of a mixed model, the region that the layer is in; "" in others.
    """

    layer: str
    value: str
    result: str
    integers: bool
    columns: int
    computed: int
    behind: tuple[str, ...]
    reason: str
    cut: bool = False
    region: str = ""


def notes_of(module: Module, found: Found) -> list[LookupNote]:
    """Return a note for each look-up, in the order of the module."""
    notes = {}
    for chain in found.chains:
        mapped, count = chain.mapped, len(chain.trees)
        how = "the next tree compares them" if count == 1 else f"{count} trees compare them"
        if mapped.mirrored.any():
            how += f", {int(mapped.mirrored.sum())} columns mirrored"
        if mapped.split:
            how += ", by intervals"
        notes[chain.sums.results[0].name] = note_of(
            module, chain.sums, chain.maps, integers=True, reason=how
        )
    for cut in found.cuts:
        notes[cut.sums.results[0].name] = note_of(
            module, cut.sums, cut.maps, integers=False, reason=cut.reason, cut=cut.followed
        )
    order = [value.name for op in module.main.body for value in op.results]
    return sorted(notes.values(), key=lambda note: order.index(note.value))


def with_dead_columns(
    module: Module, notes: Iterable[LookupNote], dead: Iterable[Dead]
) -> list[LookupNote]:
    """Return the notes with how many columns are computed; exact layers that lose some get one."""
    told = {note.value: note for note in notes}
    for each in dead:
        name = each.producer.results[0].name
        if name not in told and each.computed == each.columns:
            continue
        if name not in told:
            reason = "an exact layer in front of trees"
            told[name] = note_of(module, each.producer, each.maps, integers=False, reason=reason)
        told[name] = replace(told[name], computed=each.computed)
    return list(told.values())


def note_of(
    module: Module,
    op: Operation,
    maps: Iterable[Operation],
    *,
    integers: bool,
    reason: str,
    cut: bool = False,
) -> LookupNote:
    """Return the note of a layer; ``op`` makes its outputs, ``maps`` follow."""
    columns, maps = op.results[0].type.size(1), list(maps)
    behind = [str(op.attr("activation"))] if op.has_attr("activation") else []
    for each in maps:
        if each.opcode == "activation":
            behind.append(str(each.attr("kind")))
        elif each.opcode != "lut_dequantize":
            behind.append(each.opcode)
        if each.has_attr("activation"):
            behind.append(str(each.attr("activation")))
    return LookupNote(
        _layer(module, op),
        op.results[0].name,
        (maps[-1] if maps else op).results[0].name,
        integers,
        columns,
        columns,
        tuple(name for name in behind if name != "none"),
        reason,
        cut,
    )


def _layer(module: Module, op: Operation) -> str:
    """Return the name of the layer whose table or weight an operation reads."""
    table = op.operands[3 if op.opcode == "lut_conv2d" else 1].name
    for other in module.main.body:
        if other.opcode == "constant" and other.results[0].name == table:
            ref = str(other.attr("ref"))
            name = ref.rpartition(".")[0] or ref
            return name[1:] if name[:1] == "_" and name[1:2].isdigit() else name
    return table
