"""One matrix product by look-ups: fit, compile, save, load, compare with the exact product.

Run: python examples/maddness_matmul.py
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import lutcc


def make_rows(rows: int, columns: int, seed: int) -> np.ndarray:
    """Return rows (N, D) near a subspace of D / 8 dimensions, as activations of networks are."""
    random = np.random.default_rng(seed)
    basis = np.random.default_rng(0).normal(size=(columns // 8, columns))
    noise = random.normal(size=(rows, columns)) * 0.1
    return (random.normal(size=(rows, columns // 8)) @ basis + noise).astype(np.float32)


def main(argv: list[str] | None = None) -> float:
    """Run the example and return R-squared of the products on rows that were not fitted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--ncodebooks", type=int, default=16)
    args = parser.parse_args(argv)

    weights = np.random.default_rng(1).normal(size=(64, 32)).astype(np.float32)
    train, test = make_rows(args.rows, 64, seed=2), make_rows(500, 64, seed=3)
    layer = lutcc.fit.Maddness(ncodebooks=args.ncodebooks).fit(train, weights)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "product.lutcc"
        lutcc.compile(layer.to_ir()).save(path)
        product = lutcc.load(path)
    approximate = product(test)
    assert np.array_equal(
        approximate, layer.predict(test)
    )  # integers inside: the same bits everywhere

    exact = test @ weights
    score = 1 - np.square(approximate - exact).sum() / np.square(exact - exact.mean(axis=0)).sum()
    print(product.explain())
    print(f"R-squared on new rows: {score:.4f}")
    return float(score)


if __name__ == "__main__":
    main()
