"""Plain definitions of layer norm, softmax and activations: loops over numbers."""

from __future__ import annotations

import math

import numpy as np

Arrays = list[np.ndarray]
F32 = np.float32


def function(kind: str, v: float) -> float:
    """Return one activation of one number, from the formulas of textbooks."""
    if math.isnan(v):
        return v
    if kind == "tanh":
        return math.tanh(v)
    if kind == "elu":
        return v if v > 0 else math.expm1(v)
    if kind == "softplus":
        return max(v, 0.0) + math.log1p(math.exp(-abs(v)))
    if kind == "hardsigmoid":
        return min(max(v + 3, 0.0), 6.0) / 6
    share = {
        "gelu": lambda: math.erfc(-v / math.sqrt(2)) / 2,
        "gelu_tanh": lambda: (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) / 2,
        "hardswish": lambda: function("hardsigmoid", v),
        "mish": lambda: math.tanh(function("softplus", v)),
    }.get(kind, lambda: 1 / (1 + math.exp(-v)) if v > -700 else 0.0)()
    if kind == "sigmoid":
        return share
    return math.nan if math.isinf(v) and share == 0 else v * share


def activation(inputs: Arrays, kind: str) -> Arrays:
    (x,) = inputs
    return [np.array([function(kind, float(v)) for v in x.ravel()], F32).reshape(x.shape)]


def layer_norm(inputs: Arrays, eps: float = 1e-5) -> Arrays:
    x, gamma, beta = inputs
    y = np.full(x.shape, math.nan)
    for n, row in enumerate(x):
        values = [float(v) for v in row]
        if not all(map(math.isfinite, values)):
            continue
        mean = math.fsum(values) / len(values)
        variance = math.fsum((v - mean) ** 2 for v in values) / len(values)
        spread = math.sqrt(variance + eps)
        for d, v in enumerate(values):
            y[n, d] = (v - mean) / spread * float(gamma[d]) + float(beta[d])
    return [y.astype(F32)]


def softmax(inputs: Arrays) -> Arrays:
    (x,) = inputs
    y = np.full(x.shape, math.nan)
    for n, row in enumerate(x):
        values = [float(v) for v in row]
        most = max(values)
        if any(math.isnan(v) for v in values) or math.isinf(most):
            continue
        exps = [math.exp(v - most) for v in values]
        y[n] = [e / math.fsum(exps) for e in exps]
    return [y.astype(F32)]


def leaky_relu(inputs: Arrays, slope: float) -> Arrays:
    (x,) = inputs
    factor = float(F32(slope))
    numbers = [float(v) * factor if v < 0 else float(v) for v in x.ravel()]
    return [np.array(numbers, F32).reshape(x.shape)]


def rounded(inputs: Arrays) -> Arrays:
    (x,) = inputs
    numbers = [
        math.copysign(round(float(v)), v) if math.isfinite(v) else float(v) for v in x.ravel()
    ]
    return [np.array(numbers, np.float64).astype(F32).reshape(x.shape)]


def clamp(inputs: Arrays, low: float | None = None, high: float | None = None) -> Arrays:
    (x,) = inputs

    def cut(v: float) -> float:
        if low is not None and v < F32(low):
            v = float(F32(low))
        return float(F32(high)) if high is not None and v > F32(high) else v

    return [np.array([cut(float(v)) for v in x.ravel()], F32).reshape(x.shape)]


DEFINITIONS = {
    "activation": activation,
    "leaky_relu": leaky_relu,
    "clamp": clamp,
    "round": rounded,
    "layer_norm": layer_norm,
    "softmax": softmax,
}
