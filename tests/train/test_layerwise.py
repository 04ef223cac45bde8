"""Layer by layer: fitted behind what is replaced, trained behind that, resumable, refusals."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lutcc
from lutcc.errors import ArtifactError, ConvertError, InputError
from lutcc.recipes import Codebook, Exact, Maddness

RECIPE = {"*": Maddness(ncodebooks=2)}


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    widths = (12, 16, 16, 3)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def rows(count: int = 600, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 4, generator=generator)
    return hidden @ torch.randn(4, 12, generator=torch.Generator().manual_seed(9))


def error(model: nn.Module, exact: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        return float((model(x) - exact(x)).square().mean())


def test_later_layers_mend_what_replacement_broke() -> None:
    exact, x, fresh = network(), rows(2000, 4), rows(500, 5)
    kept = [p.clone() for p in exact.parameters()]
    recipe = {"[02]": Maddness(ncodebooks=2, nprototypes=2), "4": Exact()}
    plain = lutcc.convert(exact, recipe, x)
    seen: list[tuple[str, int, int]] = []
    tuned = lutcc.convert_layerwise(
        exact,
        recipe,
        (x, None),
        epochs=10,
        batch_size=50,
        teacher=exact,
        progress=lambda name, epoch, epochs, _: seen.append((name, epoch, epochs)),
    )
    assert error(tuned, exact, fresh) < 0.85 * error(plain, exact, fresh)
    assert seen == [(name, epoch, 10) for name in ("0", "2") for epoch in range(1, 11)]
    for before, after in zip(kept, exact.parameters(), strict=True):
        assert torch.equal(before, after)
    report: Any = tuned.conversion_report
    assert [layer.name for layer in report.layers] == ["0", "2", "4"]
    assert [type(layer).__name__ for layer in tuned][::2] == [  # type: ignore[attr-defined]
        "MaddnessLinear",
        "MaddnessLinear",
        "Linear",
    ]


def test_without_training_it_is_convert() -> None:
    exact, x = network(), rows()
    plain = lutcc.convert(exact, RECIPE, x)
    same = lutcc.convert_layerwise(exact, RECIPE, (x, None), epochs=0, teacher=exact)
    for a, b in zip(plain.state_dict().values(), same.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_only_what_runs_later_is_trained() -> None:
    """Layers before the look-up stay, though a path leads around it; those named exact learn."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(12, 3)  # registered first, runs last
            self.first, self.middle = nn.Linear(12, 12), nn.Linear(12, 12)
            self.unused = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            return self.last(x + self.middle(x))

    torch.manual_seed(0)
    exact, x = Residual().eval(), rows()
    labels = exact(x).argmax(1)
    tuned = lutcc.convert_layerwise(
        exact, {"middle": Maddness(ncodebooks=2), "last": Exact()}, (x, labels), epochs=2
    )
    for name in ("first.weight", "first.bias", "unused.weight"):
        assert torch.equal(tuned.get_parameter(name), exact.get_parameter(name))
        assert tuned.get_parameter(name).grad is None
        assert tuned.get_parameter(name).requires_grad
    assert not torch.equal(tuned.get_parameter("last.weight"), exact.get_parameter("last.weight"))
    report: Any = tuned.conversion_report
    assert [layer.method for layer in report.layers] == ["maddness", "exact"]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("stop_at", [("0", 2), ("2", 1), ("2", 3)])
@pytest.mark.parametrize(
    "options",
    [{"partition": "r2"}, {"encoder": "nearest", "nprototypes": 6, "partition": "opq"}],
    ids=str,
)
def test_a_run_goes_on(tmp_path: Path, stop_at: tuple[str, int], options: dict[str, Any]) -> None:
    exact, x = network(), rows()
    relu = Maddness(ncodebooks=2, lut_objective="mse", lut_activation="relu", **options)
    recipe = {"*": relu, "4": Maddness(ncodebooks=2)}
    given: dict[str, Any] = {"teacher": exact, "epochs": 3, "noise": 0.01, "seed": 2}
    whole = lutcc.convert_layerwise(exact, recipe, (x, None), **given)

    class Stop(Exception):
        pass

    def stop(name: str, epoch: int, epochs: int, loss: float) -> None:
        if (name, epoch) == stop_at:
            raise Stop

    with pytest.raises(Stop):
        lutcc.convert_layerwise(
            exact, recipe, (x, None), checkpoint=tmp_path, progress=stop, **given
        )
    done: list[tuple[str, int]] = []
    rest = lutcc.convert_layerwise(
        exact,
        recipe,
        (x, None),
        checkpoint=tmp_path,
        progress=lambda name, epoch, *_: done.append((name, epoch)),
        **given,
    )
    every = [(name, epoch) for name in ("0", "2") for epoch in (1, 2, 3)]
    assert done == every[every.index(stop_at) + 1 :]
    for a, b in zip(whole.state_dict().values(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    errors = [[r.relative_error for r in m.conversion_report.layers] for m in (whole, rest)]  # pyright: ignore
    assert errors[0] == errors[1]
    if stop_at == ("2", 3):
        other = {**given, "seed": 3}
        with pytest.raises(InputError, match="other settings: seed 2 -> 3"):
            lutcc.convert_layerwise(exact, recipe, (x, None), checkpoint=tmp_path, **other)
        (tmp_path / "000.json").write_text("no report")
        with pytest.raises(ArtifactError, match="no report of a layer"):
            lutcc.convert_layerwise(exact, recipe, (x, None), checkpoint=tmp_path, **given)


def test_convolutions() -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)
    ).eval()
    x = torch.randn(300, 1, 5, 5)
    recipe = {"0": Maddness(ncodebooks=1, nprototypes=2)}
    plain = lutcc.convert(exact, recipe, x)
    tuned = lutcc.convert_layerwise(
        exact, recipe, (x, None), teacher=exact, epochs=8, batch_size=50
    )
    assert type(tuned[0]).__name__ == "MaddnessConv2d"  # type: ignore[index]
    assert error(tuned, exact, x) < 0.9 * error(plain, exact, x)


def test_refusals() -> None:
    exact, x = network(), rows()
    with pytest.raises(InputError, match="nothing to learn from"):
        lutcc.convert_layerwise(exact, RECIPE, (x, None))
    with pytest.raises(ConvertError, match="not Codebook"):
        lutcc.convert_layerwise(exact, {"*": Codebook()}, (x, None), teacher=exact)
    with pytest.raises(ConvertError, match="no layer of the model is called"):
        lutcc.convert_layerwise(exact, {"7": Maddness()}, (x, None), teacher=exact)
    with pytest.raises(InputError, match="epochs=-1"):
        lutcc.convert_layerwise(exact, RECIPE, (x, None), teacher=exact, epochs=-1)
