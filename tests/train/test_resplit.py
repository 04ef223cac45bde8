"""Columns that are chosen again in training: only where the loss falls, and compiled as trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lutcc
from lutcc.errors import InputError
from lutcc.nn.latent_lookup import LatentLookup, latent_lookups, looked_up_by
from lutcc.recipes import Maddness
from lutcc.train.resplit import Batch, Resplit, _Aim

#: Columns that the exact network reads, of 16: one codebook's, of four.
USEFUL = 4


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    exact = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)).eval()
    with torch.no_grad():
        exact[0].weight[:, USEFUL:] = 0  # type: ignore[index]
        exact[0].weight.mul_(4)  # type: ignore[operator]
    return exact


def rows(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 16, generator=torch.Generator().manual_seed(seed))


def converted(**options: Any) -> tuple[nn.Sequential, nn.Module, torch.Tensor]:
    exact, x = network(), rows(900, 1)
    return exact, lutcc.convert(exact, {"0": Maddness(ncodebooks=4, **options)}, x), x


def error(model: nn.Module, exact: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        wanted = exact(x)
        return float((model(x) - wanted).square().mean() / wanted.var())


@pytest.mark.parametrize("options", [{}, {"lut_dtype": "float32", "nprototypes": 32}], ids=str)
def test_codebooks_of_useless_columns_get_useful_ones(options: dict[str, Any]) -> None:
    """Three of four codebooks see columns of weight 0; in training they find the others."""
    exact, small, x = converted(**options)
    before = small.get_buffer("0.splitdims").clone()
    assert int((before < USEFUL).sum()) == before.numel() // 4
    given: dict[str, Any] = {"epochs": 8, "batch_size": 100, "teacher": exact}
    stays = lutcc.finetune(small, (x, None), **given)
    chosen = lutcc.finetune(small, (x, None), resplit=2, **given)
    assert torch.equal(small.get_buffer("0.splitdims"), before)
    assert torch.equal(stays.get_buffer("0.splitdims"), before)
    assert int((chosen.get_buffer("0.splitdims") < USEFUL).sum()) > 0.7 * before.numel()
    fresh = rows(400, 2)
    assert error(chosen, exact, fresh) < 0.5 * error(stays, exact, fresh)
    if options:
        return
    with torch.no_grad():
        layer = lutcc.compile(nn.Sequential(chosen.get_submodule("0")), fresh)
        assert torch.equal(layer(fresh), chosen.get_submodule("0")(fresh))


def test_convolutions_whose_channels_count_differently() -> None:
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)).eval()
    with torch.no_grad():
        exact[0].weight[:, 1:] = 0  # type: ignore[index]
        exact[0].weight.mul_(4)  # type: ignore[operator]
    x, fresh = torch.rand(200, 4, 6, 6), torch.rand(100, 4, 6, 6)
    small = lutcc.convert(exact, {"0": Maddness(ncodebooks=4)}, x)
    given: dict[str, Any] = {"epochs": 4, "batch_size": 50, "teacher": exact}
    stays = lutcc.finetune(small, (x, None), **given)
    chosen = lutcc.finetune(small, (x, None), resplit=1, **given)
    assert error(chosen, exact, fresh) < 0.9 * error(stays, exact, fresh)
    with torch.no_grad():
        layer = lutcc.compile(nn.Sequential(chosen.get_submodule("0")), fresh)
        assert torch.equal(layer(fresh), chosen.get_submodule("0")(fresh))


def test_a_run_goes_on_with_the_columns_it_has_chosen(tmp_path: Path) -> None:
    exact, small, x = converted()
    given: dict[str, Any] = {"teacher": exact, "epochs": 6, "noise": 0.01, "resplit": 2}
    whole = lutcc.finetune(small, (x, None), **given)

    class Stop(Exception):
        pass

    def stop(epoch: int, epochs: int, loss: float) -> None:
        if epoch == 3:  # between one choice and the next
            raise Stop

    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        lutcc.finetune(small, (x, None), checkpoint=path, progress=stop, **given)
    rest = lutcc.finetune(small, (x, None), checkpoint=path, **given)
    for a, b in zip(whole.state_dict().values(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    chosen = whole.get_buffer("0.splitdims")
    assert not torch.equal(chosen, small.get_buffer("0.splitdims"))
    given["resplit"] = 3
    with pytest.raises(InputError, match="other settings: resplit 2 -> 3"):
        lutcc.finetune(small, (x, None), checkpoint=path, **given)


def test_checkpoints_from_before_are_those_of_columns_that_stay(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    exact, small, x = converted()
    given: dict[str, Any] = {"teacher": exact, "epochs": 2}
    path = tmp_path / "run.safetensors"
    tuned = lutcc.finetune(small, (x, None), checkpoint=path, **given)
    with safe_open(str(path), framework="pt") as file:
        told = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    settings = json.loads(told["settings"])
    del settings["resplit"]  # a file of a version that did not know it
    save_file(tensors, path, metadata=told | {"settings": json.dumps(settings)})
    again = lutcc.finetune(small, (x, None), checkpoint=path, **given)
    assert torch.equal(again(x), tuned(x))
    with pytest.raises(InputError, match="other settings: resplit None -> 1"):
        lutcc.finetune(small, (x, None), checkpoint=path, resplit=1, **given)


def parts(
    penalty: float = 0.0, **options: Any
) -> tuple[Resplit, LatentLookup, list[Batch], nn.Module]:
    """Return a search before any training; each loss is by ``penalty`` higher than the last."""
    exact, small, x = converted(**options)
    latents = latent_lookups(small)
    trained = nn.ModuleList(latents.values())
    optimizer = torch.optim.Adam(trained.parameters(), 1e-5)
    calls = [0]

    def loss(inputs: torch.Tensor, targets: Any) -> torch.Tensor:
        calls[0] += 1
        return (small(inputs) - exact(inputs).detach()).square().mean() + penalty * calls[0]

    with looked_up_by(latents):
        loss(x, None).backward()
    optimizer.step()
    batches: list[Batch] = [(x[at : at + 300], None, 300) for at in (0, 300, 600)]
    (latent,) = latents.values()
    return Resplit(latents, optimizer, loss), latent, batches, small


@pytest.mark.parametrize("activation", [None, "relu"])
def test_gradients_are_those_of_each_rows_own_loss(activation: str | None) -> None:
    """Against autograd of the network written down, and differences of its loss."""
    search, latent, batches, small = parts()
    layer, exact = latent.layer[0], network()
    layer.activation = activation
    inputs = batches[0][0]
    with looked_up_by({"0": latent}):
        seen = search._gradients(latent, batches[0])
        sums = layer.look_up(inputs).detach().requires_grad_()
    behind: Any = small[1:]  # type: ignore[index]
    wanted_outputs = exact(inputs).detach()
    each = (behind(sums) - wanted_outputs).square().mean(1)
    (wanted,) = torch.autograd.grad(each.sum(), sums)
    wanted = torch.where(sums > 0, wanted, 0) if activation else wanted
    assert torch.equal(seen.rows, inputs)
    torch.testing.assert_close(seen.gradients, wanted, rtol=1e-4, atol=1e-6)

    direction = -wanted
    with looked_up_by({"0": latent}):
        curvature = search._curvature(latent, batches[0])
    tables = latent.tables.detach()
    step = float((tables - tables.mean(1, keepdim=True)).square().mean().sqrt())
    step /= float(wanted.square().mean().sqrt())
    far = (sums.detach() + step * direction).requires_grad_()
    far = torch.relu(far).detach().requires_grad_() if activation else far
    moved = (behind(far) - wanted_outputs).square().mean(1).sum()
    (there,) = torch.autograd.grad(moved, far)
    there = torch.where(far > 0, there, 0) if activation else there
    slope = ((there - wanted) * direction).sum() / (step * direction.square().sum())
    assert curvature == pytest.approx(float(slope), rel=1e-3)


def test_targets_are_the_steps_that_the_quadratic_loss_asks_for() -> None:
    """The best table row of a bucket, found by trying, is the mean of the targets there."""
    search, latent, batches, _ = parts()
    with looked_up_by({"0": latent}):
        seen = search._gradients(latent, batches[0])
    h, leaves = 3.0, latent.tree(1).leaves(seen.rows)
    found = _Aim.of(latent, 1, seen, h)
    aim = found.now + found.step
    now = latent.tables.detach()[1]
    bucket = int(torch.bincount(leaves).argmax())
    own = leaves == bucket

    def model(row: torch.Tensor) -> torch.Tensor:
        change = (row - now[bucket]).expand(int(own.sum()), -1)
        return (seen.gradients[own] * change).sum() + h / 2 * change.square().sum()

    best = aim[own].mean(0)
    least = model(best)
    for column in range(0, len(best), 5):
        for move in (-1e-2, 1e-2):
            other = best.clone()
            other[column] += move
            assert model(other) > least


def test_what_does_not_lower_the_loss_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    search, latent, batches, _ = parts(penalty=100.0)
    tried: list[int] = []
    replace = LatentLookup.replace_tree

    def watched(self: LatentLookup, codebook: int, *rest: Any) -> None:
        tried.append(codebook)
        replace(self, codebook, *rest)

    monkeypatch.setattr(LatentLookup, "replace_tree", watched)
    state = [latent.layer[0].splitdims, *latent.parameters()]
    state += [v for p in latent.parameters() for v in search.optimizer.state[p].values()]
    before = [value.detach().clone() for value in state]
    with looked_up_by({"0": latent}):
        kept = search(batches[:2], batches[2:], torch.Generator().manual_seed(0))
    assert kept == 0
    assert len(set(tried)) >= 3  # codebooks had better trees to offer
    for a, b in zip(before, state, strict=True):
        assert torch.equal(a, b)


def test_a_new_tree_begins_anew_and_the_others_go_on() -> None:
    search, latent, batches, _ = parts()
    columns = latent.layer[0].splitdims.clone()
    with looked_up_by({"0": latent}):
        first = search._mean_loss(batches[2:])
        kept = search(batches[:2], batches[2:], torch.Generator().manual_seed(0))
        last = search._mean_loss(batches[2:])
    changed = (latent.layer[0].splitdims != columns).any(1)
    assert int(changed.sum()) == kept >= 2
    assert not bool(changed.all())
    assert last < first
    for parameter in (latent.tables, latent.log_temperature):
        state = search.optimizer.state[parameter]
        for name in ("exp_avg", "exp_avg_sq"):
            assert not state[name][changed].any()
            assert bool(state[name][~changed].any())
    with looked_up_by({"0": latent}):
        for p in latent.parameters():
            p.grad = None
        search.loss(*batches[0][:2]).backward()
    assert all(bool(p.grad.isfinite().all()) for p in latent.parameters() if p.grad is not None)


def test_wide_layers_by_projected_targets() -> None:
    """Targets of more than 32 columns are searched by random projections: useful ones are found."""
    torch.manual_seed(0)
    exact = nn.Sequential(nn.Linear(16, 200)).eval()
    with torch.no_grad():
        exact[0].weight[:, USEFUL:] = 0  # type: ignore[index]
    x = rows(600, 3)
    small = lutcc.convert(exact, {"0": Maddness(ncodebooks=4)}, x)
    given: dict[str, Any] = {"epochs": 4, "batch_size": 100, "teacher": exact}
    stays = lutcc.finetune(small, (x, None), **given)
    chosen = lutcc.finetune(small, (x, None), resplit=1, **given)
    fresh = rows(200, 4)
    assert error(chosen, exact, fresh) < 0.6 * error(stays, exact, fresh)


def test_refusals() -> None:
    exact, small, x = converted()
    with pytest.raises(InputError, match="resplit=0"):
        lutcc.finetune(small, (x, None), teacher=exact, resplit=0)
    _, near, _ = converted(encoder="nearest")
    with pytest.raises(InputError, match="no look-up has a tree"):
        lutcc.finetune(near, (x, None), teacher=exact, resplit=5)
