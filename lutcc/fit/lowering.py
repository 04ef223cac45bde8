"""From a fitted estimator to an IR module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lutcc import ir

if TYPE_CHECKING:
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
