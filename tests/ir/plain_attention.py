"""The plain definition of ``attention``: loops over heads and queries, independent of lutcc.ir."""

from __future__ import annotations

import math

import numpy as np

from tests.ir.plain_codebook import F32, Arrays


def attention(
    inputs: Arrays,
    heads: int,
    kv_heads: int,
    scale: float,
    mask: str = "none",
    causal: bool = False,
) -> Arrays:
    q, k, v, m = inputs
    images, queries, keys = len(q), q.shape[1], k.shape[1]
    d, e = q.shape[2] // heads, v.shape[2] // kv_heads
    y = np.zeros((images, queries, heads * e), F32)
    shape = (images, heads, queries, keys)
    whole = np.broadcast_to(m, shape if mask != "none" else m.shape)
    for n, h, i in np.ndindex(images, heads, queries):
        g = h // (heads // kv_heads)
        scores = []
        for j in range(keys):
            query, key = q[n, i, h * d :][:d], k[n, j, g * d :][:d]
            terms = [float(a) * float(b) for a, b in zip(query, key, strict=True)]
            s = float(F32(scale)) * sum(terms)
            if mask == "add":
                s += float(whole[n, h, i, j])
            hidden = (mask == "keep" and not whole[n, h, i, j]) or (causal and j > i)
            scores.append(-math.inf if hidden else s)
        top = max(scores)
        if top == -math.inf:
            continue
        weights = [math.exp(s - top) for s in scores]
        for c in range(e):
            total = sum(w * float(v[n, j, g * e + c]) for j, w in enumerate(weights))
            y[n, i, h * e + c] = total / sum(weights)
    return [y]


DEFINITIONS = {"attention": attention}
