"""Fine-tuning on what is not one tensor: dictionaries, tuples, batches; what is compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lutcc
from lutcc.errors import InputError
from lutcc.recipes import Maddness
from lutcc.train.finetune_data import Listed, Rows, first_tensor, rows_or_batches

VOCABULARY, WIDTH = 20, 12


class Encoder(nn.Module):
    """Tokens to states; a word's state depends on the mean of all that are there."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.first, self.last = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, Any]:
        x = self.words(input_ids)
        mask = attention_mask[..., None]
        x = x + (x * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        x = self.norm(x + self.last(torch.relu(self.first(x))))
        return {"states": torch.where(mask > 0, x, torch.nan), "other": (x, None)}


def embedding(result: dict[str, Any], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    mask = inputs["attention_mask"][..., None]
    return (result["states"].nan_to_num() * mask).sum(1) / mask.sum(1)


def tokens(rows: int = 160, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (rows, 6), generator=generator)
    lengths = torch.randint(2, 7, (rows, 1), generator=generator)
    return {"input_ids": ids, "attention_mask": (torch.arange(6) < lengths).long()}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder().eval()


@pytest.fixture(scope="module")
def small(encoder: Encoder) -> nn.Module:
    recipe = {"first": Maddness(ncodebooks=2, nprototypes=4), "last": Maddness(ncodebooks=3)}
    return lutcc.convert(encoder, recipe, [tokens()])


def error(model: nn.Module, encoder: Encoder) -> float:
    fresh = tokens(seed=9)
    with torch.no_grad():
        found, wanted = (embedding(m(**fresh), fresh) for m in (model, encoder))
    return float((found - wanted).square().mean())


def as_batches(inputs: dict[str, torch.Tensor], size: int = 20) -> list[dict[str, torch.Tensor]]:
    parts = {name: part.split(size) for name, part in inputs.items()}
    return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("form", ["dictionary", "arrays", "pair", "list", "loader"])
def test_embeddings_of_tokens_come_nearer(form: str, encoder: Encoder, small: nn.Module) -> None:
    inputs = tokens()
    data: Any = {
        "dictionary": inputs,
        "arrays": {name: part.numpy() for name, part in inputs.items()},
        "pair": ((inputs["input_ids"], inputs["attention_mask"]), None),
        "list": as_batches(inputs),
        "loader": DataLoader(as_batches(inputs), batch_size=None),  # type: ignore[arg-type]
    }[form]

    def output(result: Any, given: Any) -> torch.Tensor:
        named = given
        if form == "pair":
            named = dict(zip(inputs, given, strict=True))
        return embedding(result, named)

    tuned = lutcc.finetune(
        small, data, epochs=12, batch_size=20, teacher=encoder, output=output, noise=5.0
    )  # noise reaches floats only: tokens stay what they are
    assert error(tuned, encoder) < 0.7 * error(small, encoder)


def test_the_same_rows_as_dictionary_and_tuple_train_alike(
    encoder: Encoder, small: nn.Module
) -> None:
    inputs = tokens(60)

    def of_states(result: Any, given: Any) -> torch.Tensor:
        return result["states"].nan_to_num()

    options: dict[str, Any] = {"epochs": 2, "teacher": encoder, "output": of_states, "seed": 3}
    a = lutcc.finetune(small, inputs, **options)
    b = lutcc.finetune(small, (tuple(inputs.values()), None), **options)
    for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True):
        assert torch.equal(x, y)


def test_several_outputs_and_frozen_parameters(encoder: Encoder, small: nn.Module) -> None:
    counted: list[int] = []

    def output(result: Any, inputs: Any) -> list[torch.Tensor]:
        there = inputs["attention_mask"].bool()
        counted.append(int(there.sum()))
        return [embedding(result, inputs), result["states"][there]]

    tuned = lutcc.finetune(
        small, as_batches(tokens()), epochs=6, teacher=encoder, output=output,
        frozen=["words.*", "*.bias"], gradients="bfloat16",
    )  # fmt: skip
    assert len(counted) == 2 * 6 * 8
    assert error(tuned, encoder) < error(small, encoder)
    assert torch.equal(tuned.words.weight, encoder.words.weight)  # type: ignore[union-attr]
    assert torch.equal(tuned.norm.bias, encoder.norm.bias)  # type: ignore[union-attr]
    assert not torch.equal(tuned.norm.weight, encoder.norm.weight)  # type: ignore[union-attr]
    assert all(p.requires_grad for p in tuned.parameters())


def test_batches_with_targets() -> None:
    """As a DataLoader over pairs gives them: lists of two."""
    torch.manual_seed(0)
    exact, x = nn.Sequential(nn.Linear(8, 3)).eval(), torch.randn(120, 8)
    labels = exact(x).argmax(1)
    small = lutcc.convert(exact, {"0": Maddness(ncodebooks=1)}, x)
    loader = DataLoader(TensorDataset(x, labels), batch_size=40)
    tuned = lutcc.finetune(small, loader, epochs=15)
    losses = [float(nn.functional.cross_entropy(model(x), labels)) for model in (small, tuned)]
    assert losses[1] < 0.9 * losses[0]


def test_a_list_is_shuffled_and_a_loader_is_not() -> None:
    batches = [torch.full((2, 3), float(i)) for i in range(8)]

    def order(source: Rows | Listed) -> list[int]:
        steps = source.epoch(torch.Generator().manual_seed(0))
        return [int(inputs[0, 0]) for inputs, _, _ in steps]

    shuffled = order(rows_or_batches(batches, 1))
    assert sorted(shuffled) == list(range(8))
    assert shuffled != list(range(8))
    kept: Any = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    assert order(rows_or_batches(kept, 1)) == list(range(8))


class Liar:
    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        return iter([torch.zeros(2, 8)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([torch.zeros(2, 8)]), "has no length"),
        ([], "is empty"),
        ("text", "data is a str"),
        ((1, 2, 3), "data is a tuple of 3"),
        (torch.zeros(0, 8), "0 inputs"),
        ({}, "no inputs"),
        ({"a": torch.zeros(2, 8), "b": np.zeros(3)}, "2 a, 3 b"),
        (((torch.zeros(2, 8), torch.zeros(3, 8)), None), r"2 inputs\[0\], 3 inputs\[1\]"),
        ((torch.zeros(2, 8), torch.zeros(())), "2 inputs, 0 targets"),
        (["text"], "batch 0: inputs or targets are no tensor"),
        ([torch.zeros(2, 8), (torch.zeros(2, 8), torch.zeros(3))], "2 inputs, 3 targets"),
        (Liar(), "gave 1 batches, but has 3"),
    ],
    ids=range(12),
)
def test_refuses_data(data: Any, message: str) -> None:
    exact = nn.Sequential(nn.Linear(8, 3)).eval()
    small = lutcc.convert(exact, {"0": Maddness(ncodebooks=2)}, torch.randn(64, 8))
    with pytest.raises(InputError, match=message):
        lutcc.finetune(small, data, epochs=1, teacher=exact)


def test_refuses_options(encoder: Encoder, small: nn.Module) -> None:
    batches = as_batches(tokens())
    with pytest.raises(InputError, match=r"called 'word\.\*'.*did you mean|called 'word"):
        lutcc.finetune(small, batches, teacher=encoder, frozen=["word.*"])
    with pytest.raises(InputError, match="gradients='float16'"):
        lutcc.finetune(small, batches, teacher=encoder, gradients="float16")
    with pytest.raises(InputError, match="nothing to learn from"):
        lutcc.finetune(small, batches)
    with pytest.raises(InputError, match="the model returns a NoneType"):
        first_tensor(None)


def test_lookup_ffn_comes_nearer(encoder: Encoder) -> None:
    """Blocks that hash and gather are trained too, and are in eval mode afterwards."""
    block = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    recipe = lutcc.recipes.LookupFFN(
        num_tables=8, code_length=4, projection="dense", table_dtype="int8", steps=0
    )
    small = lutcc.convert(nn.Sequential(block), {"0": recipe}, x)
    tuned = lutcc.finetune(small, x, epochs=20, batch_size=40, teacher=block)
    assert not tuned[0].training  # type: ignore[index]
    with torch.no_grad():
        errors = [float((m(x) - block(x)).square().mean()) for m in (small, tuned)]
    assert errors[1] < 0.7 * errors[0]
