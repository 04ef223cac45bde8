"""Fine-tuning look-ups: forward is what is compiled, gradients are soft, runs are resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lutcc
from lutcc.errors import ConvertError, InputError
from lutcc.nn.latent_lookup import LatentLookup, latent_lookups, looked_up_by, multiply_add
from lutcc.recipes import Maddness

OPTIONS: list[dict[str, Any]] = [
    {},
    {"nprototypes": 4},
    {"nprototypes": 32},
    {"encoder": "nearest", "nprototypes": 6},
    {"lut_dtype": "float32"},
    {"accumulate": "mean", "upcast_every": 2},
]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)).eval()


def rows(count: int = 300, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(count, 4, generator=generator)
    return hidden @ torch.randn(4, 12, generator=torch.Generator().manual_seed(9))


def converted(**options: Any) -> tuple[nn.Sequential, nn.Module, torch.Tensor]:
    exact, x = network(), rows()
    return exact, lutcc.convert(exact, {"*": Maddness(ncodebooks=4, **options)}, x), x


@pytest.mark.one_in(2)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_training_computes_what_is_stored_bit_for_bit(options: dict[str, Any]) -> None:
    """Also after the parameters have moved, and in a compiled artifact."""
    _, small, x = converted(**options)
    latents = latent_lookups(small)
    with torch.no_grad():
        for latent in latents.values():
            moved = 0.05 * torch.randn(latent.tables.shape, generator=torch.manual_seed(1))
            latent.tables.add_(moved * latent.tables.std())
            latent.compared.add_(0.01)
    with looked_up_by(latents):
        trained = small(x)
    for latent in latents.values():
        latent.finish()
    with torch.no_grad():
        stored = small(x)
    if options.get("lut_dtype") == "float32":  # sums of floats depend on their order
        torch.testing.assert_close(trained, stored, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(trained, stored)
        assert torch.equal(lutcc.compile(small, x)(x), stored)


def soft_codes(latent: LatentLookup, rows: torch.Tensor) -> torch.Tensor:
    """The soft codes (N, C, K), written down as they are defined."""
    layer = latent.layer[0]
    if layer.encoder == "nearest":
        parts = zip(layer.starts, layer.starts[1:], strict=False)
        near = [
            rows[:, a:b] @ latent.compared[:, a:b].T - latent.compared[:, a:b].square().sum(1) / 2
            for a, b in parts
        ]
        return torch.softmax(torch.stack(near, 1) / latent.log_temperature.exp(), -1)
    values, codes = rows[:, layer.splitdims.long()], []
    depth = values.shape[2]
    for leaf in range(2**depth):
        node, share = 1, torch.ones_like(values[:, :, 0])
        for level in range(depth):
            right = leaf >> (depth - 1 - level) & 1
            above = (values[:, :, level] - latent.compared[:, node]) / latent.log_temperature[
                :, 0
            ].exp()
            share = share * torch.sigmoid(above if right else -above)
            node = 2 * node + right
        codes.append(share)
    return torch.stack(codes, -1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"nprototypes": 2},
        {"nprototypes": 64},
        {"encoder": "nearest", "nprototypes": 6},
        {"lut_dtype": "float32"},
        {"accumulate": "mean", "upcast_every": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_are_those_of_soft_codes(options: dict[str, Any], activation: Any) -> None:
    """Against autograd of a straight-through sum of all table rows, weighted by soft codes."""
    _, small, x = converted(**options)
    layer: Any = small[0]  # type: ignore[index]
    layer.activation = activation
    latent = LatentLookup(layer)
    batch = x[:37].clone().requires_grad_()
    found = latent.look_up(batch)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    given = (batch, *latent.parameters())
    gradients = torch.autograd.grad((found * weights).sum(), given)

    soft = soft_codes(latent, batch)
    codes = latent._tree(batch)[1] if layer.encoder == "tree" else latent._nearest(batch)[1]
    hard = nn.functional.one_hot(codes, layer.nprototypes).float()
    lut, scale, lowest, _ = latent.quantised()
    read = latent.tables
    if lut is not None:
        every = layer.upcast_every if layer.accumulate == "mean" else 1
        read = read + (lut * (scale / every) + lowest - read).detach()
    y = torch.einsum("nck,ckm->nm", hard + soft - soft.detach(), read) + latent.shift
    if activation == "relu":
        y = torch.where(found > 0, y, 0.0)
    wanted = torch.autograd.grad((y * weights).sum(), given)
    for a, b in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max() + 1e-6))

    latent.gradient_dtype = torch.bfloat16
    rough = torch.autograd.grad((latent.look_up(batch) * weights).sum(), given)
    for a, b in zip(rough, wanted, strict=True):
        assert float((a - b).norm()) <= 0.02 * float(b.norm()) + 1e-6


def test_thresholds_that_nothing_exceeds_have_no_gradient() -> None:
    _, small, x = converted()
    latent = LatentLookup(small[0])  # type: ignore[index]
    with torch.no_grad():
        latent.compared[:, 1] = 3e37
    latent.look_up(x).square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in latent.parameters() if p.grad is not None)
    assert latent.compared.grad is not None
    assert not latent.compared.grad[:, 1].any()


def test_sums_are_scaled_with_one_rounding() -> None:
    """Also where a float64 ends half-way between two float32, and below the normal ones."""
    generator = torch.Generator().manual_seed(0)
    sums = torch.randint(0, 2**16, (512, 512), generator=generator, dtype=torch.int32)
    scale = torch.rand(512, generator=generator) * 2.0 ** torch.arange(-140, 116, 0.5)
    offset = torch.randn(512, generator=generator) * scale * 2**8
    sums[0, 200], scale[200], offset[200] = 2**12 + 1, 2.0**-12 + 2.0**-24, 2.0**-100
    wanted = torch.ops.lutcc.lut_dequantize(sums, scale, offset, "none")
    assert torch.equal(multiply_add(sums, scale, offset), wanted)
    plain = (sums.double() * scale.double() + offset.double()).float()
    assert not torch.equal(plain, wanted)  # twice rounded is something else


@pytest.mark.one_in(3)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_comes_nearer_to_the_teacher(options: dict[str, Any]) -> None:
    exact, small, _ = converted(**options)
    x, fresh = rows(2000, seed=4), rows(500, seed=5)
    with torch.no_grad():
        wanted = exact(fresh)
    before = [p.clone() for p in small.buffers()]
    tuned = lutcc.finetune(small, (x, None), epochs=6, batch_size=50, teacher=exact)
    assert all(torch.equal(a, b) for a, b in zip(before, small.buffers(), strict=True))
    errors = [float((model(fresh) - wanted).square().mean()) for model in (small, tuned)]
    assert errors[1] < 0.9 * errors[0]


def test_labels_objectives_and_exact_layers() -> None:
    exact, x = network(), rows()
    labels = exact(x).argmax(1)
    half = lutcc.convert(exact, {"0": Maddness(ncodebooks=1)}, x)
    tuned = lutcc.finetune(half, (x, labels), epochs=20, batch_size=32)
    accuracy = [float((model(x).argmax(1) == labels).float().mean()) for model in (half, tuned)]
    assert accuracy[1] > accuracy[0]
    last: Any = tuned[2]  # type: ignore[index]
    assert not torch.equal(last.weight, exact.get_parameter("2.weight"))
    assert last.weight.grad is None
    seen: list[int] = []

    def objective(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.append(len(target))
        return (output - target).abs().mean()

    lutcc.finetune(half, (x, exact(x).detach()), epochs=1, batch_size=128, objective=objective)
    assert seen == [128, 128, 44]


def test_same_seed_same_result_and_a_run_goes_on(tmp_path: Path) -> None:
    exact, small, x = converted()
    given: dict[str, Any] = {"teacher": exact, "epochs": 4, "noise": 0.01, "batch_size": 64}
    whole = lutcc.finetune(small, (x, None), seed=3, **given)

    class Stop(Exception):
        pass

    def stop(epoch: int, epochs: int, loss: float) -> None:
        if epoch == 2:
            raise Stop

    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        lutcc.finetune(small, (x, None), seed=3, checkpoint=path, progress=stop, **given)
    epochs: list[int] = []
    rest = lutcc.finetune(
        small,
        (x, None),
        seed=3,
        checkpoint=path,
        progress=lambda epoch, *_: epochs.append(epoch),
        **given,
    )
    assert epochs == [3, 4]
    for a, b in zip(whole.state_dict().values(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(InputError, match="other settings: seed 3 -> 4"):
        lutcc.finetune(small, (x, None), seed=4, checkpoint=path, **given)


def test_convolutions() -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.Flatten(),
        nn.Linear(45, 3),
    ).eval()
    x = torch.randn(60, 1, 8, 8)
    small = lutcc.convert(exact, {"3": Maddness(ncodebooks=4), "5": Maddness(ncodebooks=9)}, x)
    tuned = lutcc.finetune(small, (x, None), epochs=8, batch_size=20, teacher=exact)
    with torch.no_grad():
        errors = [float((m(x) - exact(x)).square().mean()) for m in (small, tuned)]
        assert errors[1] < errors[0]
        torch.testing.assert_close(lutcc.compile(tuned, x)(x), tuned(x), rtol=1e-4, atol=1e-5)


def test_refusals() -> None:
    exact, small, x = converted()
    with pytest.raises(InputError, match="nothing to learn from"):
        lutcc.finetune(small, (x, None))
    with pytest.raises(InputError, match="no look-up layers"):
        lutcc.finetune(exact, (x, None), teacher=exact)
    with pytest.raises(InputError, match="300 inputs, 3 targets"):
        lutcc.finetune(small, (x, torch.zeros(3)))
    with pytest.raises(InputError, match="no tensor"):
        lutcc.finetune(small, ({"x": "text"}, None), teacher=exact)
    with pytest.raises(InputError, match="epochs=0"):
        lutcc.finetune(small, (x, None), teacher=exact, epochs=0)
    x[0, 0] = torch.nan
    with pytest.raises(ConvertError, match="the loss is nan in epoch 0"):
        lutcc.finetune(small, (x, None), teacher=exact, epochs=1)


def test_one_row_and_names_that_differ_by_a_dot_only(tmp_path: Path) -> None:
    """A row alone has no spread; a layer's state is its own in the checkpoint."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.ModuleDict({"b": nn.Linear(4, 4)})
            self.a_b = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a_b(self.a["b"](x))

    exact, x = Pair().eval(), torch.randn(60, 4)
    small = lutcc.convert(exact, {"*": Maddness(ncodebooks=2, nprototypes=2)}, x)
    path = tmp_path / "run.safetensors"
    lutcc.finetune(small, (x[:1], None), epochs=1, teacher=exact, checkpoint=path)
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        names = [name for name in file.keys() if name.endswith(".tables")]  # noqa: SIM118
    assert len([name for name in names if name.startswith("model.")]) == 2


def test_tied_weights_are_kept_in_checkpoints(tmp_path: Path) -> None:
    """What two layers share is one parameter, before and after."""
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8)).eval()
    exact[3].weight = exact[2].weight
    x = rows()[:64, :8]
    small = lutcc.convert(exact, {"0": Maddness(ncodebooks=2)}, x)
    path = tmp_path / "run.safetensors"
    given: dict[str, Any] = {"epochs": 2, "teacher": exact, "checkpoint": path}
    tuned = lutcc.finetune(small, (x, None), **given)
    assert tuned[2].weight is tuned[3].weight  # type: ignore[index]
    again = lutcc.finetune(small, (x, None), **given)  # nothing is left to do
    assert torch.equal(again(x), tuned(x))
