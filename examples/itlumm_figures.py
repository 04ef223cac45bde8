"""Figures 1 and 2 and table 1 of ITLUMM, in kind: partitions, table objectives, layer by layer.

Digits instead of CIFAR-100: scikit-learn's, or MNIST's, 5,000 images (``--data mnist-5k``) or all
(``--data FOLDER``):

* figure 1: the classifier, the last layer (512 to 10) of an MLP, becomes look-ups: plain MADDNESS,
  and each partition with tables learnt by the squared error, before softmax (of contiguous groups
  that is plain MADDNESS) and behind it, and by the divergence;
* figure 2: one layer of a network of 30 neurons a layer at a time;
* table 1: every layer of it, as converted and layer by layer with the later layers trained; and how
  fast that is beside float32, bfloat16 and int8, lutcc's and torch's, the faster of both.

Accuracy is relative to the exact network's, mean and deviation over seeds. Trees are those of
MADDNESS, as in the paper, but where "weight-aware" is said: there they group rows by their share of
the product. Plain MADDNESS, and all that replaces the classifier, is fitted on the training images.
What replaces every layer is fitted on copies of them with noise, too, as digits are few: so is
MADDNESS where "noisy rows" or "layer by layer" is said. There tables are fitted to what the exact
network gives. Writes figures.png, and what was found, a file per part and seed, the exact networks,
and a file of speeds: a run goes on from these.

Run: python examples/itlumm_figures.py --docs docs/look-up-accuracy.md   (20 minutes of a core)
     python examples/itlumm_figures.py --quick
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

import lutcc
from lutcc.bench.network_speed import NetworkSpeed, network_speeds
from lutcc.bench.readme import replace_block
from lutcc.data import ImageSplit, digits, mnist
from lutcc.report.accuracy_log import AccuracyRun, append_run
from lutcc.report.itlumm import LAYERWISE, LOGITS, Point, draw, told

PARTITIONS, OBJECTIVES = ("contiguous", "opq", "r2"), ("mse", "kld")
PLAIN = lutcc.recipes.Maddness(hash_objective="input")
#: Copies of the training images whose pixels are multiplied with normal noise around 1 of this
#: deviation. Noise that is added would make trees of their own of the many zeros.
COPIES, NOISE = 1, 0.2
#: Of the training behind each layer.
TRAINING: dict[str, Any] = {"batch_size": 128, "learning_rate": 0.1}
NOISY = ", noisy rows"
SEEDS = 10
#: Images that are split anew for each seed; any other name is a folder of MNIST's four files.
SPLITS = {"digits": digits.load, "mnist-5k": mnist.load_subset}
WIDE, NARROW = (512, 512, 512), (30, 30, 30)
CLASSIFIER, NETWORK = (2, 4, 8, 16), (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Trial:
    """A trained exact network and its data."""

    network: nn.Sequential
    data: ImageSplit
    seed: int
    epochs: int

    def rows(self, part: str) -> torch.Tensor:
        """Return the images of "train" or "test", (N, D)."""
        images = getattr(self.data, f"{part}_x")
        return torch.from_numpy(images.reshape(len(images), -1))

    @property
    def classes(self) -> torch.Tensor:
        """Return the labels of the training images."""
        return torch.from_numpy(self.data.train_y)

    @cached_property
    def calibration(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the training images and copies with noise, and the labels of all."""
        rows, generator = self.rows("train"), torch.Generator().manual_seed(self.seed)
        copies = [
            rows * (1 + NOISE * torch.randn(rows.shape, generator=generator)) for _ in range(COPIES)
        ]
        return torch.cat([rows, *copies]), self.classes.repeat(1 + COPIES)

    def point(self, part: str, method: str, codebooks: int, network: nn.Module) -> Point:
        """Try a network on the test images."""
        rows = self.rows("test")
        with torch.inference_mode():
            found, exact = network(rows), self.network(rows)
        away = nn.functional.kl_div(
            found.log_softmax(1), exact.log_softmax(1), reduction="batchmean", log_target=True
        )
        value, best = self._accuracy(found), self._accuracy(exact)
        return Point(part, method, codebooks, self.seed, value, best, float(away))

    def _accuracy(self, told: torch.Tensor) -> float:
        """Return the share of test images that are told right."""
        return float((told.argmax(1).numpy() == self.data.test_y).mean())


def trained(hidden: Sequence[int], data: ImageSplit, seed: int, steps: int, epochs: int) -> Trial:
    """Train an exact network."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in pairwise((data.train_x[0].size, *hidden, data.classes)):
        layers += [nn.Linear(before, after), nn.ReLU()]
    trial = Trial(nn.Sequential(*layers[:-1]), data, seed, epochs)
    x, y, optimizer = (
        trial.rows("train"),
        trial.classes,
        torch.optim.Adam(trial.network.parameters(), 2e-3),
    )
    for _ in range(steps):
        rows = torch.randint(len(x), (256,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(trial.network(x[rows]), y[rows]).backward()
        optimizer.step()
    trial.network.eval()
    return trial


def classifier(trial: Trial, codebooks: Iterable[int]) -> Iterator[Point]:
    """Replace the last layer: figure 1."""
    kept: dict[Any, lutcc.fit.Maddness] = {}
    for count in codebooks:
        methods = {"maddness": PLAIN}
        for partition, objective in product(PARTITIONS, OBJECTIVES):
            if objective == "mse" and partition != "contiguous":
                methods[f"{partition}-mse{LOGITS}"] = _config(partition, "mse", None)
            methods[f"{partition}-{objective}"] = _config(partition, objective, "softmax")
        methods["r2-kld weight-aware"] = _config("r2", "kld", "softmax", "product")
        for method, config in methods.items():
            whole = _with_last(trial.network, _with(config, count), trial.rows("train"), kept=kept)
            yield trial.point("classifier", method, count, whole)


def single_layers(trial: Trial, codebooks: Iterable[int]) -> Iterator[Point]:
    """Replace one layer at a time: figure 2."""
    last = len(trial.network) - 1
    for count, place in product(codebooks, range(0, last + 1, 2)):
        recipe = {**_hidden("r2", count, last), str(last): _last("r2", "kld", count)}
        chosen = {str(place): recipe[str(place)]}
        small = lutcc.convert(trial.network, chosen, trial.calibration[0])
        yield trial.point("layers", f"layer {place // 2 + 1}", count, small)


def networks(trial: Trial, codebooks: Iterable[int]) -> Iterator[Point]:
    """Replace every layer: table 1."""
    rows, last = trial.calibration[0], len(trial.network) - 1
    for count in codebooks:
        plain = {"*": _with(PLAIN, count)}
        for name, images in (("", trial.rows("train")), (NOISY, rows)):
            small = lutcc.convert(trial.network, plain, images)
            yield trial.point("network", "maddness" + name, count, small)
        yield trial.point("network", "maddness" + LAYERWISE, count, _layer_by_layer(trial, plain))
        settings = [(partition, OBJECTIVES, "input", "") for partition in PARTITIONS]
        for partition, objectives, hashed, name in [
            *settings,
            ("contiguous", ("kld",), "product", " weight-aware"),
        ]:
            hidden = _hidden(partition, count, last, hashed)
            small = lutcc.convert(trial.network, hidden, rows)
            tuned = _layer_by_layer(trial, hidden)  # nothing is trained behind the last layer
            for objective in objectives:
                config, method = _last(partition, objective, count, hashed), partition + "-"
                whole = _with_last(small, config, rows, trial.network)
                yield trial.point("network", method + objective + name, count, whole)
                whole = _with_last(tuned, config, rows)
                yield trial.point("network", method + objective + name + LAYERWISE, count, whole)


def _layer_by_layer(trial: Trial, recipe: dict[str, lutcc.recipes.Maddness]) -> nn.Module:
    return lutcc.convert_layerwise(
        trial.network,
        recipe,
        trial.calibration,
        teacher=trial.network,
        epochs=trial.epochs,
        seed=trial.seed,
        **TRAINING,
    )


def _with_last(
    network: nn.Module,
    config: lutcc.recipes.Maddness,
    rows: torch.Tensor,
    exact: nn.Module | None = None,
    *,
    kept: dict[Any, lutcc.fit.Maddness] | None = None,
) -> nn.Sequential:
    """Return a network whose last layer is replaced, too; ``exact`` gives what it is fitted to.

    As ``lutcc.convert`` does, for several objectives behind the same layers. ``kept`` has the
    estimators of the same rows by what their trees depend on.
    """
    *before, linear = network.children()
    assert isinstance(linear, nn.Linear)
    with torch.inference_mode():
        reaching = nn.Sequential(*before)(rows).clone()
        wanted = None if exact is None else nn.Sequential(*exact.children())[:-1](rows).numpy()
    weights, bias = linear.weight.detach().numpy().T, linear.bias.detach().numpy()
    options, given = config.estimator_options(), (reaching.numpy(), weights, bias)
    trees = config.partition, config.ncodebooks, config.hash_objective
    known = {} if kept is None else kept
    if trees in known:
        fitted = copy.copy(known[trees]).set_params(**options).fit_tables(*given, exact=wanted)
    else:
        fitted = lutcc.fit.Maddness(**options).fit(*given, exact=wanted)
        known[trees] = fitted
    return nn.Sequential(*before, lutcc.nn.MaddnessLinear.from_estimator(fitted))


def _config(
    partition: str, objective: str, activation: str | None, hash_objective: str = "input"
) -> lutcc.recipes.Maddness:
    return lutcc.recipes.Maddness(
        partition=partition,
        lut_objective=objective,
        lut_activation=activation,
        hash_objective=hash_objective,
    )


def _with(config: lutcc.recipes.Maddness, codebooks: int) -> lutcc.recipes.Maddness:
    return replace(config, ncodebooks=codebooks)


def _hidden(
    partition: str, codebooks: int, last: int, hash_objective: str = "input"
) -> dict[str, lutcc.recipes.Maddness]:
    """Return a recipe of the layers before the last: tables by the error behind ReLU."""
    config = _with(_config(partition, "mse", "relu", hash_objective), codebooks)
    return {str(place): replace(config, target="network") for place in range(0, last, 2)}


def _last(
    partition: str, objective: str, codebooks: int, hash_objective: str = "input"
) -> lutcc.recipes.Maddness:
    """Return the recipe of the last layer."""
    config = _with(_config(partition, objective, "softmax", hash_objective), codebooks)
    return replace(config, target="network")


def one_seed(part: str, seed: int, data: str, quick: bool, output: Path) -> list[Point]:
    """Replace the "classifier", or all of the "network"; what is done already is read."""
    path = output / f"{part}{seed}.json"
    if path.exists():
        return [Point(**each) for each in json.loads(path.read_text(encoding="utf-8"))]
    torch.set_num_threads(1)
    lutcc.ops.set_compilation("never")  # of networks that are tried once, that would take longer
    some, more = ((4,), (4,)) if quick else (CLASSIFIER, NETWORK)
    trial = exact_network(part, seed, data, quick, output)
    if part == "classifier":
        points = [*classifier(trial, some)]
    else:
        points = [*single_layers(trial, more), *networks(trial, more)]
    path.write_text(json.dumps([asdict(p) for p in points]), encoding="utf-8")
    return points


def exact_network(part: str, seed: int, data: str, quick: bool, output: Path) -> Trial:
    """Train or read the network whose classifier is replaced, or that is replaced as a whole."""
    images = SPLITS[data](seed=seed) if data in SPLITS else mnist.load(data)
    steps, epochs = (60, 1) if quick else (400, 4)
    widths = NARROW if part == "network" else ((64,) * 3 if quick else WIDE)
    path = output / f"{part}{seed}.pt"
    trial = trained(widths, images, seed, 0 if path.exists() else steps, epochs)
    if path.exists():
        trial.network.load_state_dict(torch.load(path))
    else:
        torch.save(trial.network.state_dict(), path)
    return trial


def kind(data: str) -> str:
    """Return what the data are: a folder holds MNIST."""
    return data if data in SPLITS else "mnist"


def timed(data: str, quick: bool, output: Path) -> dict[str, list[NetworkSpeed]]:
    """Time look-ups and exact layers, or read the times; they depend on no method and no seed."""
    path = output / "speeds.json"
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        return {part: [NetworkSpeed(**each) for each in found] for part, found in kept.items()}
    wide, narrow = (exact_network(p, 0, data, quick, output) for p in ("classifier", "network"))
    some, more = ((4,), (4,)) if quick else (CLASSIFIER, NETWORK)
    seconds, rounds = (0.001, 1) if quick else (0.01, 15)
    with torch.inference_mode():
        reaching = wide.network[:-1](wide.rows("train"))
    speeds = {}
    for part, exact, rows, counts in (
        ("classifier", nn.Sequential(wide.network[-1]), reaching.clone(), some),
        ("network", narrow.network, narrow.rows("train"), more),
    ):
        made = {str(c): lutcc.convert(exact, {"*": _with(PLAIN, c)}, rows) for c in counts}
        speeds[part] = network_speeds(exact, made, rows.numpy(), seconds=seconds, rounds=rounds)
    kept = {part: [speed.to_dict() for speed in found] for part, found in speeds.items()}
    path.write_text(json.dumps(kept), encoding="utf-8")
    return speeds


def log(points: Sequence[Point], speeds: dict[str, list[NetworkSpeed]], args: Any) -> None:
    """Append every network to a log of accuracies."""
    task = kind(args.data)
    for p in points:
        timed = speeds["network"][-1] if p.part == "network" and speeds["network"] else None
        append_run(
            args.log,
            AccuracyRun(
                task=task,
                model={"network": "30-30-30", "classifier": "512 to 10"}.get(p.part, p.part),
                method=p.method,
                seed=p.seed,
                value=p.value,
                exact=p.exact,
                setting={"codebooks": p.codebooks, "part": p.part},
                time_us=None if timed is None else timed.networks[str(p.codebooks)] * 1e6,
                rows=None if timed is None else timed.rows,
            ),
        )


def main(argv: list[str] | None = None) -> list[Point]:
    """Run the example and return its points."""
    parser = argparse.ArgumentParser(description="Figures 1 and 2 and table 1 of ITLUMM.")
    parser.add_argument(
        "--data", default="digits", help=f"{', '.join(SPLITS)}, or a folder of MNIST's four files"
    )
    parser.add_argument("--output", type=Path, help="by default out/itlumm and what the data are")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the classifier; 0: none of it")
    parser.add_argument("--network-seeds", type=int, default=SEEDS, help="of whole networks")
    parser.add_argument(
        "--jobs", type=int, default=1, help="processes, each with a seed of its own"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few codebooks and steps")
    parser.add_argument("--no-times", action="store_true", help="accuracies alone")
    parser.add_argument("--docs", type=Path, help="page whose tables and picture are rewritten")
    parser.add_argument("--log", type=Path, help="log of accuracies to append to")
    args = parser.parse_args(argv)
    args.output = args.output or Path("out") / f"itlumm-{kind(args.data)}"
    args.output.mkdir(parents=True, exist_ok=True)
    seeds = {"classifier": args.seeds, "network": args.network_seeds}
    jobs = [
        (p, seed) for p in seeds for seed in range(min(1, seeds[p]) if args.quick else seeds[p])
    ]
    points: list[Point] = []
    work = partial(one_seed, data=args.data, quick=args.quick, output=args.output)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        every = (pool.map if args.jobs > 1 else map)(work, *zip(*jobs, strict=True))
        for (part, seed), found in zip(jobs, every, strict=True):
            points += found
            Console(stderr=True).print(f"{part}, seed {seed}: done")
    speeds: dict[str, list[NetworkSpeed]] = {"classifier": [], "network": []}
    if not args.no_times:
        speeds = timed(args.data, args.quick, args.output)
    draw(points, speeds, args.output / "figures.png")
    blocks = {part: told(points, part, speeds[part]) for part, _ in jobs}
    for block in blocks.values():
        Console().print(block, markup=False)
    if args.log:
        log(points, speeds, args)
    if args.docs:
        page = args.docs.read_text(encoding="utf-8")
        own = "" if args.data == "digits" else "-mnist"
        for part, block in blocks.items():
            page = replace_block(page, f"itlumm-{part}{own}", block)
        args.docs.write_text(page, encoding="utf-8")
        draw(points, speeds, args.docs.parent / f"itlumm-figures{own}.png")
    return points


if __name__ == "__main__":
    main()
