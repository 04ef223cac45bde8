"""A torch MLP: replace its Linear layers by look-ups, compile, load, run with any batch size.

Run: python examples/compile_mlp.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

import lutcc


def main(argv: list[str] | None = None) -> float:
    """Run the example and return the share of rows classified as the exact model does."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--ncodebooks", type=int, default=16)
    args = parser.parse_args(argv)

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 10)
    )
    model.eval()
    # Typical inputs: they decide which columns the trees look at. Use real data where you have it.
    calibration = torch.randn(args.rows, 8) @ torch.randn(8, 64)

    recipe = {"*": lutcc.recipes.Maddness(ncodebooks=args.ncodebooks)}
    converted = lutcc.convert(model, recipe, calibration)
    print(converted)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mlp.lutcc"
        lutcc.compile(converted, (calibration[:2],), target="host").save(path)
        artifact = lutcc.load(path)
    print(artifact.explain())

    with torch.inference_mode():
        exact, lookups = model(calibration), converted(calibration)
        for rows in (1, 7, len(calibration)):
            assert torch.equal(artifact(calibration[:rows]), lookups[:rows])
    share = (lookups.argmax(1) == exact.argmax(1)).double().mean().item()
    print(f"the same class as the exact model on {share:.1%} of the rows")
    return share


if __name__ == "__main__":
    main()
