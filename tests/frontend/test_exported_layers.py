"""Layers of exported programs: found again, under their names, with the very same numbers."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn.utils.parametrizations import weight_norm
from torch.utils import _pytree as pytree

import lutcc
from lutcc import recipes
from lutcc.errors import FrontendError
from lutcc.frontend import exported_again, import_torch, layers_of
from lutcc.frontend.tracing import quiet_torch

N = Dim("n", min=1)


def stored(program: ExportedProgram) -> ExportedProgram:
    """Return what is read back from a file: names of sizes and aliases are lost there."""
    stream = io.BytesIO()
    with quiet_torch():
        torch.export.save(program, stream)
        stream.seek(0)
        return torch.export.load(stream)


def program_of(
    model: nn.Module, args: tuple[Any, ...], dynamic: Any = None, kwargs: Any = None
) -> ExportedProgram:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet_torch():
            made = torch.export.export(model.eval(), args, kwargs, dynamic_shapes=dynamic)
            return stored(made)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def same(program: ExportedProgram, model: Any, *calls: tuple[tuple[Any, ...], dict]) -> None:
    """Check that numbers are the same, bit by bit: at once, as a copy, and exported again."""
    again = exported_again(model)
    for args, kwargs in calls:
        with torch.no_grad():
            wanted = program.module()(*args, **kwargs)
            for other in (model, copy.deepcopy(model), again.module()):
                found = other(*args, **kwargs)
                assert pytree.tree_structure(found) == pytree.tree_structure(wanted)
                pairs = zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True)
                assert all(torch.equal(a, b) for a, b in pairs)


def test_sizes_stay_open_within_their_bounds():
    n, length = Dim("n", min=1, max=64), Dim("length", min=3, max=16)
    program = program_of(nn.Linear(4, 3), (torch.randn(2, 5, 4),), ({0: n, 1: length},))
    found, wanted = import_torch(layers_of(program)), import_torch(program)
    for made in (found, wanted):
        assert made.graph is not None
        assert list(made.graph.bounds.values()) == [(1, 64), (3, 16)]
        assert made.inputs[0].name == wanted.inputs[0].name == "input"
        assert [str(size) for size in made.inputs[0].shape[::2]] == ["n", "4"]


def kinds(model: nn.Module) -> dict[str, str]:
    layers = (nn.Linear, nn.Conv2d, nn.Embedding)
    return {
        name: type(m).__name__
        for name, m in model.named_modules(remove_duplicate=False)
        if isinstance(m, layers)
    }


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, padding="same", groups=2)
        self.down = nn.Conv2d(8, 8, 1, stride=2)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.norm(self.first(x)))
        return self.head(self.down(y + self.grouped(y)).mean((2, 3)))


@pytest.mark.parametrize("decomposed", [False, True])
def test_a_network_of_convolutions(decomposed: bool):
    program = program_of(Residual(), (torch.randn(2, 3, 8, 8),), ({0: N},))
    if decomposed:
        program = stored(program.run_decompositions(torch.export.default_decompositions()))
    model = layers_of(program)
    convolutions = dict.fromkeys(("first", "grouped", "down"), "Conv2d")
    assert kinds(model) == convolutions | {"head": "Linear"}
    assert str(model.get_submodule("grouped")) == str(Residual().grouped) or decomposed
    calls = [((torch.randn(n, 3, 8, 8),), {}) for n in (1, 2, 5)]
    same(program, model, *calls)
    with pytest.raises(Exception, match=r"Guard|shape|size"):
        model(torch.randn(2, 3, 9, 8))


class Tied(nn.Module):
    """An encoder, called twice, between an embedding and a head that share a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight
        self.register_buffer("place", torch.randn(16, 8))

    def forward(self, ids: torch.Tensor, *, factor: torch.Tensor) -> dict[str, Any]:
        place = self.get_buffer("place")[: ids.shape[1]]
        h = self.table(ids) + place * torch.tensor([2.0])
        h = self.encoder(self.encoder(h))
        return {"logits": self.head(h) * factor, "states": (h,)}


def tied() -> ExportedProgram:
    sizes = {"ids": {0: Dim("n", min=1, max=64), 1: Dim("length", min=3, max=16)}, "factor": None}
    return program_of(Tied(), (torch.randint(0, 20, (3, 5)),), sizes, {"factor": torch.ones(20)})


@pytest.mark.thorough
def test_a_transformer_with_tied_weights_and_open_sizes():
    program = tied()
    model = layers_of(program)
    inner = "encoder.layers.0."
    attention = (f"{inner}self_attn.in_proj", f"{inner}self_attn.out_proj")
    linears = (*attention, f"{inner}linear1", f"{inner}linear2", "head")
    assert kinds(model) == dict.fromkeys(linears, "Linear") | {"table": "Embedding"}
    assert [n for n, _ in model.named_children() if n[0] != "_"] == ["table", "encoder", "head"]
    assert model.get_parameter("table.weight") is model.get_parameter("head.weight")
    names = [n for n, _ in model.named_parameters(remove_duplicate=False)]
    assert not any("in_proj_weight" in name for name in names)
    state = set(copy.deepcopy(model).state_dict())
    assert "place" in state
    assert not any("lifted" in name for name in state)
    factor = torch.rand(20)
    calls = [((torch.randint(0, 20, s),), {"factor": factor}) for s in ((1, 3), (2, 16), (4, 7))]
    same(program, model, *calls)
    limits = model.open_inputs.limits
    assert {limits[name] for name in limits} == {(1, 64), (3, 16)}
    owned = layers_of(program, functional=False)
    assert set(kinds(owned)) == {"table", "head", f"{inner}linear1", f"{inner}linear2"}


class Odd(nn.Module):
    """Weights that are read twice, cut, normalised, or lie where no layer can be put."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(8, 8)
        self.alias = self.one
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.last = nn.Linear(8, 4)
        self.normed = weight_norm(nn.Linear(8, 3))
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.holder = nn.ParameterDict({"k": nn.Parameter(torch.randn(3, 8))})

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = F.linear(self.alias(self.one(x)), self.matrix) + self.matrix.sum()
        y = F.linear(y, self.weight)
        z = self.last(y) + self.last.weight.abs().sum()
        cut = F.linear(y, self.matrix[:3])
        return z, self.normed(y), cut, F.linear(y, self.holder["k"]), y @ self.matrix.t()


def test_weights_that_are_read_otherwise_too():
    program = program_of(Odd(), (torch.randn(2, 8),), ({0: N},))
    model = layers_of(program)
    names = ("one", "alias", "matrix", "linear", "last", "holder.k")
    assert kinds(model) == dict.fromkeys(names, "Linear")
    assert model.get_submodule("one") is model.get_submodule("alias")
    calls = [((torch.randn(3, 8),), {})]
    same(program, model, *calls)
    int8 = {"*": recipes.Exact(compute="int8")}
    converted: Any = lutcc.convert(model, int8)  # what else reads the weights still finds them
    for wanted, found in zip(model(*calls[0][0]), converted(*calls[0][0]), strict=True):
        assert 0 < (found - wanted).norm() < 0.1 * wanted.norm()


class Within(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(F.linear(x, self.weight))


def test_a_layer_does_not_take_the_place_of_what_holds_more():
    program = program_of(nn.Sequential(Within()), (torch.randn(2, 4),))
    model = layers_of(program)
    assert kinds(model) == {"0.weight": "Linear"}
    same(program, model, ((torch.randn(2, 4),), {}))


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, given: dict[str, Any], scale: float) -> dict[str, torch.Tensor]:
        return {"out": self.fc(given["x"]) + self.fc(given["y"][0]) * scale}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.fc(x).repeat(2, 1) + y


def test_nested_inputs_and_sizes_that_follow_from_others():
    given = {"x": torch.randn(2, 4), "y": [torch.randn(2, 4)]}
    sizes = {"given": {"x": {0: N}, "y": [{0: N}]}, "scale": None}
    program = program_of(Nested(), (given,), sizes, {"scale": 2.5})
    model = layers_of(program)
    wide = {"x": torch.randn(5, 4), "y": [torch.randn(5, 4)]}
    with torch.no_grad():
        wanted = program.module()(wide, scale=2.5)["out"]
        assert torch.equal(model(wide, scale=2.5)["out"], wanted)
        assert torch.equal(exported_again(model).module()(wide, scale=2.5)["out"], wanted)
    assert not model.open_inputs.flat
    n = Dim("n", min=1, max=9)
    program = program_of(Twice(), (torch.randn(3, 4), torch.randn(6, 4)), ({0: n}, {0: 2 * n}))
    x = torch.randn(5, 4), torch.randn(10, 4)
    with torch.no_grad():
        assert torch.equal(exported_again(layers_of(program)).module()(*x), program.module()(*x))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = self.get_buffer("seen")
        seen.add_(x.mean(0))
        return self.fc(x) + seen


class InPlace(nn.Module):
    def __init__(self, on_input: bool) -> None:
        super().__init__()
        self.fc, self.on_input = nn.Linear(4, 4), on_input

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.fc(x.mul_(2)) if self.on_input else self.fc(x)).relu_()


def test_programs_that_keep_state_are_refused():
    x = (torch.randn(2, 4),)
    with pytest.raises(FrontendError, match="the model changes 'seen'"):
        layers_of(program_of(Counting(), x))
    with pytest.raises(FrontendError, match="the model changes 'x'"):
        layers_of(program_of(InPlace(True), x))
    program = program_of(InPlace(False), x)  # on what it made itself, it may
    same(program, layers_of(program), (x, {}))
    training = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train(), x)
    with pytest.raises(FrontendError, match="dropout is in training mode"):
        layers_of(training)


def test_a_single_layer_has_a_name():
    program = program_of(nn.Linear(4, 3), (torch.randn(2, 4),), ({0: N},))
    assert kinds(layers_of(program)) == {"linear": "Linear"}


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor, *, factor: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.head(torch.relu(self.table(ids))) * factor}


def test_converted_layers_compile_without_examples():
    sizes = {"ids": {0: N, 1: Dim("length", min=1)}, "factor": None}
    given = (torch.randint(0, 20, (3, 5)),), sizes, {"factor": torch.ones(20)}
    program = program_of(Words(), *given)
    converted: Any = lutcc.convert(program, {"head": recipes.Exact(compute="bfloat16")})
    artifact = lutcc.compile(converted, target="avx2")
    assert [spec.name for spec in artifact.inputs] == ["ids", "factor"]
    assert [spec.name for spec in artifact.outputs] == ["logits"]
    factor = torch.rand(20)
    for shape in ((1, 1), (5, 16)):
        ids = torch.randint(0, 20, shape)
        with torch.no_grad():
            wanted = converted(ids, factor=factor)["logits"]
        found = artifact(ids, factor)
        found = found[0] if isinstance(found, tuple) else found
        assert (found - wanted).norm() < 0.02 * wanted.norm()
    with pytest.raises(FrontendError, match="open sizes already"):
        lutcc.compile(program, dynamic={0: "n"})
