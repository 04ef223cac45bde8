"""Plain definitions of the sampled ops: loops over numbers, independent of lutcc.ir."""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np

Arrays = list[np.ndarray]
Pair = tuple[int, int]


def column_row_scores(inputs: Arrays, group_size: int = 1, weights_only: bool = False) -> Arrays:
    a, b = (x.astype(np.float64).tolist() for x in inputs)
    scores = []
    for first in range(0, len(b), group_size):
        total = 0.0
        for c in range(first, min(first + group_size, len(b))):
            of_b = math.fsum(v * v for v in b[c])
            of_a = 1.0 if weights_only else math.fsum(row[c] * row[c] for row in a)
            total += of_a * of_b
        scores.append(math.sqrt(total))
    return [np.array(scores, np.float32)]


def patches(
    image: np.ndarray, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair
) -> list[list[float]]:
    """Return what each window of a convolution sees of one channel, row by row."""
    height, width = image.shape
    found = []
    for top in range(-padding[0], height + padding[0] - dilation[0] * (kernel[0] - 1), stride[0]):
        for left in range(
            -padding[1], width + padding[1] - dilation[1] * (kernel[1] - 1), stride[1]
        ):
            window = []
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    r, s = top + i * dilation[0], left + j * dilation[1]
                    inside = 0 <= r < height and 0 <= s < width
                    window.append(float(image[r, s]) if inside else 0.0)
            found.append(window)
    return found


def channel_scores(
    inputs: Arrays,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    weights_only: bool = False,
) -> Arrays:
    x, weight = inputs
    per_group, outputs = weight.shape[1], weight.shape[0] // groups
    scores = []
    for c in range(x.shape[1]):
        first = c // per_group * outputs
        mine = weight[first : first + outputs, c % per_group].reshape(-1).tolist()
        total = math.fsum(v * v for v in mine)
        if not weights_only:
            seen = [
                v
                for image in x[:, c]
                for window in patches(image, weight.shape[2:], stride, padding, dilation)
                for v in window
            ]
            total *= math.fsum(v * v for v in seen)
        scores.append(math.sqrt(total))
    return [np.array(scores, np.float32)]


def philox(seed: int, position: int) -> int:
    """Return word 0 of Philox 4x32-10, by whole numbers of any size."""
    words, key = [position, 0, 0, 0], [seed % 2**32, seed // 2**32]
    for _ in range(10):
        high0, low0 = divmod(words[0] * 0xD2511F53, 2**32)
        high1, low1 = divmod(words[2] * 0xCD9E8D57, 2**32)
        words = [high1 ^ words[1] ^ key[0], low1, high0 ^ words[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) % 2**32, (key[1] + 0xBB67AE85) % 2**32]
    return words[0]


def number(seed: int, position: int) -> float:
    return (philox(seed, position) + 0.5) / 2**32


def chances(weights: list[float], k: int) -> list[float]:
    """Return probabilities that sum to k: what is above 1 becomes certain, one after the other."""
    certain: set[int] = set()
    while True:
        rest = math.fsum(w for i, w in enumerate(weights) if i not in certain)
        left = k - len(certain)
        if left <= 0 or rest <= 0:
            return [float(i in certain) for i in range(len(weights))]
        above = [
            i for i, w in enumerate(weights) if i not in certain and left * w / rest > 1 + 1e-12
        ]
        if not above:
            return [
                1.0 if i in certain else min(1.0, left * w / rest) for i, w in enumerate(weights)
            ]
        certain.add(max(above, key=lambda i: weights[i]))


def sample(
    scores: list[float], k: int, mode: str, probabilities: str, seed: int, first: int
) -> dict[int, float]:
    """Return the scale of each pair that is taken."""
    wild = [not math.isfinite(s) for s in scores]
    if any(wild):
        weights = [float(w) for w in wild]
    elif max(scores) > 0:
        weights = [s / max(scores) for s in scores]
    else:
        weights = [1.0] * len(scores)
    if mode.startswith("topk"):
        ranked = sorted(range(len(scores)), key=lambda i: (-math.inf if wild[i] else -scores[i], i))
        return dict.fromkeys(ranked[:k], 1.0)
    if probabilities == "uniform":
        weights = [1.0] * len(scores)
    if mode == "bernoulli":
        p = chances(weights, k)
        return {i: 1 / q for i, q in enumerate(p) if number(seed, first + i) < q}
    p = [w / math.fsum(weights) for w in weights]
    sure: list[int] = []
    if mode == "wta_crs":
        ranked = sorted(range(len(p)), key=lambda i: (-p[i], i))
        losses = [max(0.0, 1 - math.fsum(p[i] for i in ranked[:c])) / (k - c) for c in range(k)]
        least = next(c for c in range(k) if losses[c] <= min(losses) + 1e-12)
        sure = ranked[:least]
    cumulative, total = [], 0.0
    for i, q in enumerate(p):
        total += 0.0 if i in sure else q
        cumulative.append(total)
    taken = dict.fromkeys(sure, 1.0)
    draws = k - len(sure)
    for t in range(draws if total > 0 else 0):
        i = bisect_right(cumulative, number(seed, first + t) * total)
        taken[i] = taken.get(i, 0.0) + total / (draws * p[i])
    return taken


def column_row_sample(
    inputs: Arrays,
    k: int,
    mode: str = "topk",
    probabilities: str = "optimal",
    seed: int = 0,
    groups: int = 1,
) -> Arrays:
    scores = inputs[0].astype(np.float64).tolist()
    pairs = len(scores) // groups
    places = pairs if mode == "bernoulli" else k
    indices, scales = [], []
    for g in range(groups):
        part = scores[g * pairs : (g + 1) * pairs]
        taken = sample(part, k, mode, probabilities, seed, g * places)
        empty = places - len(taken)
        indices += [g * pairs + i for i in sorted(taken)] + [0] * empty
        scales += [taken[i] for i in sorted(taken)] + [0.0] * empty
    return [np.array(indices, np.int32), np.array(scales, np.float32)]


def sampled_matmul(inputs: Arrays, group_size: int = 1) -> Arrays:
    a, b, indices, scales, bias = inputs
    y = np.zeros((a.shape[0], b.shape[1]), np.float64)
    for n in range(a.shape[0]):
        for m in range(b.shape[1]):
            terms = [float(bias[m])]
            for index, scale in zip(indices.tolist(), scales, strict=True):
                if scale == 0:
                    continue
                for c in range(index * group_size, min((index + 1) * group_size, a.shape[1])):
                    factor = np.float32(np.float32(b[c, m]) * scale).astype(b.dtype)
                    terms.append(float(a[n, c]) * float(factor))
            y[n, m] = math.fsum(terms)
    return [y.astype(np.float32).astype(a.dtype)]


def sampled_conv2d(
    inputs: Arrays,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Arrays:
    x, weight, indices, scales, bias = inputs
    per_group, outputs = weight.shape[1], weight.shape[0] // groups
    images = []
    for image in x:
        seen = [patches(plane, weight.shape[2:], stride, padding, dilation) for plane in image]
        planes = []
        for o in range(weight.shape[0]):
            places = len(indices) // groups
            mine = slice(o // outputs * places, (o // outputs + 1) * places)
            pixels = []
            for p in range(len(seen[0])):
                terms = [float(bias[o])]
                for channel, scale in zip(indices[mine].tolist(), scales[mine], strict=True):
                    if scale == 0:
                        continue
                    taps = weight[o, channel % per_group].reshape(-1)
                    terms += [
                        v * float(np.float32(tap * scale))
                        for v, tap in zip(seen[channel][p], taps, strict=True)
                    ]
                pixels.append(math.fsum(terms))
            planes.append(pixels)
        images.append(planes)
    spans = [dilation[i] * (weight.shape[2 + i] - 1) + 1 for i in (0, 1)]
    oh, ow = ((x.shape[2 + i] + 2 * padding[i] - spans[i]) // stride[i] + 1 for i in (0, 1))
    return [np.array(images).reshape(len(x), len(weight), oh, ow).astype(np.float32)]


DEFINITIONS = {
    "column_row_scores": column_row_scores,
    "channel_scores": channel_scores,
    "column_row_sample": column_row_sample,
    "sampled_matmul": sampled_matmul,
    "sampled_conv2d": sampled_conv2d,
}
