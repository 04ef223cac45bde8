"""From a fitted estimator to an IR module."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from lutcc import ir

if TYPE_CHECKING:
    from lutcc.codebook_weights import CodebookWeights
    from lutcc.fit.maddness import Maddness


def maddness_module(estimator: Maddness) -> ir.Module:
    """Return ``main(x) = dequantize(accumulate(encode(x)))`` with the tables as constants.

    Float tables carry the bias themselves and need no dequantisation.
    """
    options = estimator.options_
    builder = ir.Builder("main")
    x = builder.param("x", ir.TensorType((ir.Sym("n"), int(estimator.n_features_in_)), "float32"))
    if options["encoder"] == "tree":
        splitdims = builder.constant("splitdims", estimator.splitdims_)
        splitvals = builder.constant("splitvals", estimator.splitvals_)
        codes = builder.op("tree_encode", x, splitdims, splitvals)
    else:
        centroids = builder.constant("centroids", estimator.centroids_)
        half_norms = builder.constant("half_norms", estimator.half_norms_)
        columns = builder.constant("columns", estimator.columns_)
        codes = builder.op(
            "nearest_encode", x, centroids, half_norms, columns, starts=estimator.starts_
        )
    lut = builder.constant("lut", estimator.lut_)
    out = builder.op(
        "lut_accumulate",
        codes,
        lut,
        accumulate=options["accumulate"],
        upcast_every=int(options["upcast_every"]),
    )
    activation = options["activation"] or "none"
    if options["lut_dtype"] == "uint8":
        scale, offset = (
            builder.constant("scale", estimator.scale_),
            builder.constant("offset", estimator.offset_),
        )
        out = builder.op("lut_dequantize", out, scale, offset, activation=activation)
    elif activation == "relu":
        out = builder.op("relu", out)
    builder.returns(out)
    return builder.module()


def codebook_module(
    weights: CodebookWeights, bias: npt.NDArray[np.float32], compute: str
) -> ir.Module:
    """Return ``main(x) = x W^T + bias``, the outliers of W added after its codebooks."""
    rows, columns = weights.shape
    order = np.arange(rows, dtype=np.int32) if weights.order is None else weights.order
    builder = ir.Builder("main")
    x = builder.param("x", ir.TensorType((ir.Sym("n"), columns), "float32"))
    y = builder.op(
        "codebook_matmul",
        x,
        builder.constant("indices", weights.indices),
        builder.constant("codebooks", weights.codebooks),
        builder.constant("scales", weights.scales),
        builder.constant("order", order),
        builder.constant("bias", bias[order]),
        bits=weights.bits,
        segment_size=weights.segment_size,
        compute=compute,
    )
    if weights.outliers is not None:
        y = builder.op(
            "sparse_add",
            y,
            x,
            builder.constant("starts", weights.outliers.starts),
            builder.constant("columns", weights.outliers.columns),
            builder.constant("values", weights.outliers.values.astype(np.float32)),
        )
    builder.returns(y)
    return builder.module()
