"""The numbers of a model do not depend on how many threads there are, nor on the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lutcc
from lutcc import recipes
from lutcc.frontend.relax import thread_choice
from lutcc.runtime import Artifact, cpu, kernel, threads
from tests.schedules import harness

pytestmark = pytest.mark.isa("avx2")

#: The least level, and the best that there is here.
LEVELS = tuple(dict.fromkeys(("avx2", *cpu.supported_isas()[-1:])))
COUNTS = (1, 2, 3)


@pytest.fixture(autouse=True, scope="module")
def eager() -> Iterator[None]:
    """Let threads be worth waking for any work: a small test is divided as a large batch is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "SECONDS_PER_THREAD", 1e-15)
        patch.setattr(thread_choice, "WORTH", 1)
        yield


def rows(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def compiled(model: Any, *example: Any, **options: Any) -> Artifact:
    """Compile for all levels of the test."""
    if isinstance(model, nn.Module):
        model.eval()
    return lutcc.compile(model, *example, target=",".join(LEVELS), **options)


def look_ups(**options: Any) -> tuple[Artifact, list[np.ndarray]]:
    return compiled(harness.maddness(64, 16, 50, **options)), [rows(n, 64) for n in (1, 77, 300)]


def feed_forward(compute: str | None, kind: type = recipes.Exact) -> tuple[Artifact, list]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 200), nn.ReLU(), nn.Linear(200, 35))
    chosen = kind() if compute is None else kind(compute=compute)
    converted = lutcc.convert(model, {"*": chosen})
    return compiled(converted, torch.zeros(2, 48)), [rows(n, 48) for n in (1, 17, 130)]


def transformer() -> tuple[Artifact, list[np.ndarray]]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, activation="gelu")
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    artifact = compiled(model, torch.zeros(2, 5, 48), dynamic={0: "n", 1: "length"})
    return artifact, [rows(*shape, 48) for shape in ((1, 1), (1, 9), (3, 40))]


def convolutions() -> tuple[Artifact, list[np.ndarray]]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 24, 3, stride=2),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
        nn.Softmax(-1),
    )
    return compiled(model, torch.zeros(2, 3, 16, 16)), [rows(n, 3, 16, 16) for n in (1, 5, 12)]


MODELS: dict[str, Callable[[], tuple[Artifact, list[np.ndarray]]]] = {
    "exact sums": look_ups,
    "averages": lambda: look_ups(accumulate="mean"),
    "float tables": lambda: look_ups(lut_dtype="float32"),
    "dense float32": lambda: feed_forward(None),
    "dense bfloat16": lambda: feed_forward("bfloat16"),
    "dense int8": lambda: feed_forward("int8"),
    "codebooks int8": lambda: feed_forward("int8", recipes.Codebook),
    "codebooks float32": lambda: feed_forward("float32", recipes.Codebook),
    "transformer": transformer,
    "convolutions": convolutions,
}


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", MODELS)
def test_numbers_do_not_depend_on_threads(name: str, tmp_path: Path) -> None:
    artifact, inputs = MODELS[name]()
    path = artifact.save(tmp_path / "model.lutcc")
    for isa in LEVELS:
        loaded = lutcc.load(path, isa=isa)
        for x in inputs:
            loaded.num_threads = 1
            expected = loaded(x)
            assert np.isfinite(expected).all()
            for count in (*COUNTS, *COUNTS):
                loaded.num_threads = count
                assert np.array_equal(loaded(x), expected), (isa, x.shape, count)
    assert threads.state.pool_used
