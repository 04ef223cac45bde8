"""Output channels of layers that may be permuted, because what reads them can be permuted too."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lutcc.errors import ConvertError, InputError, suggest
from lutcc.frontend.export import export_program
from lutcc.nn.channel_axes import Axis, Dimensions, resolved
from lutcc.nn.channel_flow import ChannelFlow

Order = npt.NDArray[np.intp]
_PRODUCERS = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d)


@dataclasses.dataclass(frozen=True, slots=True)
class ParameterAxes:
    """Where the permuted channels are in a parameter or buffer.

    Parameters
    ----------
    names
        Of the parameter, such as ``"fc1.weight"``: several if it is registered more than once.
    sizes
        The shape that its dimensions are split into: (heads, channels of a head, columns), say.
    moved
        Places in ``sizes`` of the permuted axis.
    blocks
        Places in ``sizes`` of the axes whose every entry may have a permutation of its own.
    rows
        How many leading entries of ``sizes`` make up dimension 0.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    moved: tuple[int, ...]
    blocks: tuple[int, ...]
    rows: int


@dataclasses.dataclass(frozen=True, slots=True)
class Reordering:
    """Channels that can be permuted without changing what the model computes.

    Parameters
    ----------
    layers
        The layers whose output channels (rows of the weight) move, together.
    consumers
        The layers whose columns move along.
    parameters
        All parameters and buffers that are permuted.
    blocks, size
        The permutation moves ``size`` channels within each of ``blocks`` blocks of them: the heads
        of an attention layer, say. One block: any permutation of the channels.
    """

    layers: tuple[str, ...]
    consumers: tuple[str, ...]
    parameters: tuple[ParameterAxes, ...]
    blocks: int
    size: int

    @property
    def is_free(self) -> bool:
        """Whether every order of the rows of every one of ``layers`` is possible."""
        return all(
            axes.sizes[: axes.rows] == (self.size,) for axes in map(self._rows_of, self.layers)
        )

    def restricted(self, layer: str, order: npt.ArrayLike) -> Order:
        """Return the order that is possible and next to ``order``.

        Where rows may move within blocks only, each block's rows come in the order in which they
        stand in ``order``; where all blocks must have the same one, in that of the first.

        Parameters
        ----------
        layer
            One of ``layers``.
        order
            (M,): the present output of each new one.

        Returns
        -------
        (M,) intp.
        """
        axes = self._rows_of(layer)
        ranks = np.argsort(_checked(order, int(np.prod(axes.sizes[: axes.rows])), layer))
        sizes, place = axes.sizes[: axes.rows], axes.moved[0]
        ranks = ranks.reshape(sizes)
        shared = tuple(d for d in range(axes.rows) if d != place and d not in axes.blocks)
        for d in shared:  # the first block speaks for all
            ranks = ranks.take([0], axis=d)
        return _indices(sizes, place, np.argsort(ranks, axis=place)).reshape(-1)

    def allows(self, layer: str, order: npt.ArrayLike) -> bool:
        """Tell whether the rows of one of ``layers`` may be put into ``order``."""
        return bool(np.array_equal(self.restricted(layer, order), np.asarray(order)))

    def _rows_of(self, layer: str) -> ParameterAxes:
        for axes in self.parameters:
            if layer in self.layers and f"{layer}.weight".lstrip(".") in axes.names:
                return axes
        raise InputError(
            f"the reordering is not one of layer {layer!r}", where="reordering",
            fix=suggest(layer, self.layers),
        )  # fmt: skip

    def _moves(self, layer: str, order: npt.ArrayLike) -> Order:
        """Return the permutation of every block, (*blocks, size)."""
        axes = self._rows_of(layer)
        sizes, place = axes.sizes[: axes.rows], axes.moved[0]
        entries = np.unravel_index(np.asarray(order, np.intp), sizes)[place].reshape(sizes)
        kept = (*axes.blocks, place)
        first = tuple(slice(None) if d in kept else 0 for d in range(axes.rows))
        return entries[first].transpose(np.argsort(np.argsort(kept)))


@dataclasses.dataclass(frozen=True, slots=True)
class Reorderings:
    """What :func:`find_reorderings` found.

    Parameters
    ----------
    found
        By layer.
    refused
        By layer, why its output channels must stay in their order.
    """

    found: dict[str, Reordering]
    refused: dict[str, str]


@dataclasses.dataclass(frozen=True, slots=True)
class FoldReport:
    """What :func:`fold_orders` did.

    Parameters
    ----------
    folded
        By layer, the layers whose columns took its order up.
    refused
        By layer, why its order was not folded.
    """

    folded: dict[str, tuple[str, ...]]
    refused: dict[str, str]

    def __str__(self) -> str:
        """Return a line per layer."""
        lines = [f"{name}: into {', '.join(into)}" for name, into in self.folded.items()]
        return "\n".join([*lines, *(f"{name}: not, {why}" for name, why in self.refused.items())])


def find_reorderings(model: torch.nn.Module, example_inputs: Any) -> Reorderings:
    """Find the layers whose output channels may be permuted.

    The model is traced, and its channels followed to everything that reads them: operations that
    treat every channel alike (activations, norms, pooling, products of two such, softmax, sums over
    all channels) pass them on; columns of the next layers can be permuted along; heads of attention
    keep their place, channels in them move. A skip connection, the model's output, slices and
    operations that are not known forbid it.

    Parameters
    ----------
    model
        In evaluation mode.
    example_inputs
        A tensor, a tuple of tensors, or a dictionary of keyword arguments.

    Raises
    ------
    FrontendError
        If the model cannot be traced.

    Notes
    -----
    Source: JLCM, section 3.2 ("in the absence of a subsequent skip-connection").

    Examples
    --------
    >>> nn = torch.nn
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    >>> reorderings = find_reorderings(model, torch.zeros(1, 4))
    >>> reorderings.found["0"].consumers, reorderings.refused
    (('2',), {'2': 'the model returns its output'})
    """
    exported = export_program(model, example_inputs, dynamic_batch=False, for_kernels=False)
    program = exported.program
    tensors = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    flow = ChannelFlow(program, {name: _storage(tensor) for name, tensor in tensors.items()})
    _fix_overlaps(flow, tensors)
    layers = {
        name: f"{name}.weight".lstrip(".")
        for name, module in model.named_modules()
        if isinstance(module, _PRODUCERS)
    }
    return _collect(flow, layers)


def permute(
    model: torch.nn.Module, reordering: Reordering, order: npt.ArrayLike, *, layer: str = ""
) -> None:
    """Permute channels of ``model`` in place; its outputs stay the same, up to rounding.

    Parameters
    ----------
    model
        The model in which ``reordering`` was found.
    order
        (M,): which present output each new output of ``layer`` is, as
        ``CodebookWeights.order`` has it.
    layer
        One of ``reordering.layers``, the first if not given.

    Raises
    ------
    InputError
        If ``order`` is no permutation, or moves rows across the blocks.
    ConvertError
        If the model lacks a parameter, because a layer was replaced.
    """
    layer = layer or reordering.layers[0]
    if not reordering.allows(layer, order):
        raise InputError(
            f"the order moves rows of {layer!r} out of the blocks in which they may move",
            where="reordering",
            fix="pass reordering.restricted(layer, order)",
        )
    moves = reordering._moves(layer, order)
    tensors = [_tensor(model, axes.names[0]) for axes in reordering.parameters]
    for axes, tensor in zip(reordering.parameters, tensors, strict=True):
        values = tensor.detach().reshape(axes.sizes)
        for place in axes.moved:
            kept = (*axes.blocks, place)
            shape = [size if d in kept else 1 for d, size in enumerate(axes.sizes)]
            index = np.ascontiguousarray(moves.transpose(np.argsort(kept)).reshape(shape))
            values = values.gather(
                place, torch.from_numpy(index).to(values.device).expand(axes.sizes)
            )
        with torch.no_grad():
            tensor.copy_(values.reshape(tensor.shape))


def fold_orders(
    model: torch.nn.Module, example_inputs: Any, orders: Mapping[str, npt.ArrayLike]
) -> FoldReport:
    """Permute the outputs of layers, and whatever reads them, in place, where it is possible.

    Parameters
    ----------
    model, example_inputs
        As for :func:`find_reorderings`.
    orders
        By layer, (M,): which present output each new output is.

    Returns
    -------
    FoldReport
        Of layers that move together, the first one's order counts.
    """
    reorderings = find_reorderings(model, example_inputs)
    folded: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    leaders: dict[int, str] = {}
    for layer, order in orders.items():
        if layer not in reorderings.found:
            known = {**reorderings.found, **reorderings.refused}
            refused[layer] = reorderings.refused.get(
                layer, f"the model has no such layer ({suggest(layer, known)})"
            )
            continue
        found = reorderings.found[layer]
        if id(found) in leaders:
            refused[layer] = f"its rows move with those of {leaders[id(found)]!r}"
        elif not found.allows(layer, order):
            refused[layer] = f"its rows may move within blocks of {found.size} only"
        else:
            leaders[id(found)] = layer
            permute(model, found, order, layer=layer)
            folded[layer] = found.consumers
    return FoldReport(folded, refused)


# -- from axes to reorderings ---------------------------------------------------------------------


def _collect(flow: ChannelFlow, layers: dict[str, str]) -> Reorderings:
    parameters = {name: _flat(axes) for name, axes in flow.parameters.items()}
    for name in layers.values():
        rows = resolved(flow.parameters[name][0]) if name in flow.parameters else []
        for axis in [a for a in rows if not a.fixed][:-1]:
            axis.fix("its channels are split into blocks that stay in their order")
    tensors = [_flat(axes) for axes in (*flow.parameters.values(), *flow.tensors)]
    found: dict[Axis, Reordering] = {}
    by_layer: dict[str, Reordering] = {}
    refused: dict[str, str] = {}
    for layer, name in layers.items():
        if name not in parameters:
            refused[layer] = "the model does not run it as a layer on the example inputs"
            continue
        rows = resolved(flow.parameters[name][0])
        moving = [axis for axis in rows if not axis.fixed]
        if not moving:
            refused[layer] = rows[-1].fixed if rows else "it has a single output"
            continue
        (axis,) = moving
        if axis not in found:
            members = [other for other, key in layers.items() if key in parameters
                       and axis in resolved(flow.parameters[key][0])]  # fmt: skip
            found[axis] = _reordering(axis, members, layers, flow, tensors)
        by_layer[layer] = found[axis]
    return Reorderings(by_layer, refused)


def _reordering(
    axis: Axis,
    members: list[str],
    layers: dict[str, str],
    flow: ChannelFlow,
    tensors: list[list[Axis]],
) -> Reordering:
    """Describe the permutations of an axis.

    It may differ between entries of another axis, which is fixed, only if every tensor that has
    this axis has that one as well, once.
    """
    blocks: dict[Axis, None] | None = None
    for axes in tensors:
        if axis in axes:
            with_it = {a: None for a in axes if a.fixed and axes.count(a) == 1}
            if axes.count(axis) > 1:
                with_it = {}
            blocks = with_it if blocks is None else {a: None for a in blocks if a in with_it}
    rows = [set(resolved(flow.parameters[layers[name]][0])) for name in members]
    kept = [a for a in blocks or {} if all(a in of_layer for of_layer in rows)]
    names: dict[int, list[str]] = {}
    for name, dimensions in flow.parameters.items():
        names.setdefault(id(dimensions), []).append(name)
    parameters, consumers = [], []
    for aliases in names.values():
        dimensions = flow.parameters[aliases[0]]
        axes = _flat(dimensions)
        if axis not in axes:
            continue
        parameters.append(
            ParameterAxes(
                names=tuple(aliases),
                sizes=tuple(a.size for a in axes),
                moved=tuple(d for d, a in enumerate(axes) if a is axis),
                blocks=tuple(axes.index(a) for a in kept),  # in one order for all parameters
                rows=len(resolved(dimensions[0])),
            )
        )
        if any(axis in resolved(d) for d in dimensions[1:]):
            consumers += [name.removesuffix(".weight") for name in aliases]
    return Reordering(
        layers=tuple(members),
        consumers=tuple(consumers),
        parameters=tuple(parameters),
        blocks=int(np.prod([a.size for a in kept], dtype=int)),
        size=axis.size,
    )


def _flat(dimensions: Dimensions) -> list[Axis]:
    return [axis for dimension in dimensions for axis in resolved(dimension)]


def _indices(sizes: tuple[int, ...], place: int, moved: Order) -> Order:
    """Return the flat indices of an array of ``sizes`` whose axis ``place`` is permuted."""
    flat = np.arange(np.prod(sizes)).reshape(sizes)
    return np.take_along_axis(flat, np.broadcast_to(moved, sizes), place)


def _checked(order: npt.ArrayLike, size: int, layer: str) -> Order:
    found = np.asarray(order)
    if found.shape != (size,) or not np.array_equal(np.sort(found), np.arange(size)):
        raise InputError(
            f"the order of {layer!r} is no permutation of its {size} rows",
            where="reordering",
            fix=f"pass each of 0 .. {size - 1} once",
        )
    return found.astype(np.intp)


def _storage(tensor: torch.Tensor) -> Any:
    """Return what two names of the same memory have in common."""
    if not tensor.data_ptr():  # without memory, or without values
        return id(tensor)
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _fix_overlaps(flow: ChannelFlow, tensors: dict[str, torch.Tensor]) -> None:
    """Fix parameters that share memory but are not the same tensor."""
    holders: dict[int, set[Any]] = {}
    for tensor in tensors.values():
        holders.setdefault(tensor.untyped_storage().data_ptr(), set()).add(_storage(tensor))
    for name, dimensions in flow.parameters.items():
        memory = tensors[name].untyped_storage().data_ptr()
        if memory and len(holders[memory]) > 1:
            for axis in _flat(dimensions):
                axis.fix("its memory is shared with another tensor")


def _tensor(model: torch.nn.Module, name: str) -> torch.Tensor:
    owner, _, attribute = name.rpartition(".")
    try:
        tensor = getattr(model.get_submodule(owner), attribute)
    except AttributeError as error:
        raise ConvertError(
            f"the model has no {name!r} any more",
            where="reordering",
            fix="permute before layers are replaced",
        ) from error
    return tensor
