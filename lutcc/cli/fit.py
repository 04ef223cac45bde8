"""Learn look-up tables for a matrix product A @ B and write them as an IR module.

A (N, D) are typical rows, B (D, M) the matrix; both .npy or file.safetensors[:tensor]. The last
rows of A are held out to report the error on rows that were not fitted. Compile the result with
`lutcc compile OUT.ir -o model.lutcc`.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from rich.table import Table

from lutcc.cli.arrays import output_file, read_array
from lutcc.cli.console import Console
from lutcc.errors import InputError, UsageError
from lutcc.runtime.files import write_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare inputs, the estimator's options and the output."""
    parser.add_argument("A", help="rows to learn from, (N, D)")
    parser.add_argument("B", help="the matrix, (D, M); a torch weight needs --transpose")
    parser.add_argument("-o", "--output", required=True, metavar="OUT.ir", help="file to write")
    parser.add_argument("--bias", metavar="FILE", help="bias, (M,)")
    parser.add_argument("--transpose", action="store_true", help="B is stored as (M, D)")
    parser.add_argument("-C", "--ncodebooks", type=int, default=16, metavar="C", help="(16)")
    parser.add_argument("-K", "--nprototypes", type=int, default=16, metavar="K", help="(16)")
    parser.add_argument("--encoder", choices=("tree", "nearest"), default="tree", help="(tree)")
    parser.add_argument(
        "--prototypes", choices=("ridge", "kmeans"), default="ridge", help="(ridge)"
    )
    parser.add_argument("--activation", choices=("none", "relu"), default="none", help="(none)")
    parser.add_argument("--accumulate", choices=("exact", "mean"), default="exact", help="(exact)")
    parser.add_argument("--upcast-every", type=int, default=16, metavar="U", help="for mean (16)")
    parser.add_argument(
        "--held-out", type=float, default=0.2, metavar="SHARE", help="of the rows, to test on (0.2)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Fit, measure the error on held-out rows, write the module."""
    if not 0 <= args.held_out < 1:
        raise UsageError(
            f"{args.held_out} is not a share", where="--held-out", fix="0 <= SHARE < 1"
        )
    for option, value, least in (
        ("--ncodebooks", args.ncodebooks, 1),
        ("--nprototypes", args.nprototypes, 2),
    ):
        if value < least:
            raise UsageError(f"{value} is too few", where=option, fix=f"{least} or more")
    output = output_file(args.output, folder=False)
    A = read_array(args.A, "A", ndim=2, finite=True)
    B = read_array(args.B, "B", ndim=2, finite=True)
    B = B.T if args.transpose else B
    bias = None if args.bias is None else read_array(args.bias, "--bias", ndim=1, finite=True)
    if A.shape[1] != B.shape[0]:
        raise InputError(
            f"A has {A.shape[1]} columns, B has {B.shape[0]} rows",
            where=f"{args.A} (N, D) = {A.shape} and {args.B} (D, M) = {B.shape}",
            fix=_fix_of_shapes(A.shape[1], B.shape[1], args.transpose),
        )
    held_out = int(len(A) * args.held_out)
    train, test = A[: len(A) - held_out], A[len(A) - held_out :]

    from lutcc import ir
    from lutcc.fit import Maddness

    activation = None if args.activation == "none" else args.activation
    estimator = Maddness(
        ncodebooks=args.ncodebooks,
        nprototypes=args.nprototypes,
        encoder=args.encoder,
        prototypes=args.prototypes,
        activation=activation,
        accumulate=args.accumulate,
        upcast_every=args.upcast_every,
        random_state=args.seed,
    )
    start = time.perf_counter()
    with console.working(f"fitting {args.ncodebooks} codebooks to {train.shape[0]} rows"):
        estimator.fit(train, B, bias)
    seconds = time.perf_counter() - start
    module = estimator.to_ir()
    write_text(output, ir.to_text(module))

    errors = {"train": _error(estimator, train, B, bias, activation)}
    if held_out:
        errors["held_out"] = _error(estimator, test, B, bias, activation)
    data = {
        "output": args.output,
        "shape": {"N": len(train), "D": B.shape[0], "M": B.shape[1]},
        "ncodebooks": args.ncodebooks,
        "nprototypes": args.nprototypes,
        "seconds": seconds,
        "table_bytes": int(np.asarray(estimator.lut_).nbytes),
        "dense_bytes": int(B.size * 4),
        "normalized_squared_error": errors,
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("written", args.output)
    table.add_row("fitted in", f"{seconds:.2f} s")
    table.add_row(
        "tables", f"{data['table_bytes']:,} bytes (B in float32: {data['dense_bytes']:,})"
    )
    for name, value in errors.items():
        table.add_row(f"error, {name.replace('_', ' ')}", f"{value:.4f} of the variance")
    console.result(data, table)
    return 0


def _fix_of_shapes(ncolumns: int, other: int, transposed: bool) -> str:
    if ncolumns != other:
        return "the columns of A are the rows of B: fit both to the same D"
    if transposed:
        return "leave out --transpose: B is stored as (D, M)"
    return "transpose B: --transpose (torch stores weights as (M, D))"


def _error(estimator, A: np.ndarray, B: np.ndarray, bias: np.ndarray | None, activation) -> float:
    """Return the squared error as a share of the exact product's variance."""
    exact = A.astype(np.float64) @ B.astype(np.float64)
    if bias is not None:
        exact += bias
    if activation == "relu":
        exact = np.maximum(exact, 0)
    spread = np.square(exact - exact.mean(axis=0)).sum()
    error = np.square(estimator.predict(A) - exact).sum()
    return float(error / spread) if spread > 0 else float(error > 0)
