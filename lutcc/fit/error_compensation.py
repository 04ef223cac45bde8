"""Indices and codebooks that minimise the output error directly: no gradient steps.

Columns are written one after the other; what a column misses is made up for by those not yet
written (OPTQ, with codebooks for grids). Then each weight in turn takes the codeword that is best
while all others stay (coordinate descent), and codebooks and scales are solved for by least
squares.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lutcc.fit.codebook_regions import Regions
from lutcc.fit.output_error import OutputError

#: Columns whose changes are carried to the other columns at once.
COLUMN_BLOCK = 128
#: Ridge of the least squares of codebooks, times the mean of the diagonal: entries that no weight
#: uses stay where they are.
RIDGE = 1e-6
#: Values of the basis of the least squares that are held at a time.
BASIS_VALUES = 1 << 24


def compensate(error: OutputError, regions: Regions, tables: Tensor) -> Tensor:
    """Return (M, K) int64 indices, written column by column.

    Parameters
    ----------
    error
        What is minimised.
    regions
        Of the matrix.
    tables
        (M, S, L) codewords.

    Notes
    -----
    Source: Frantar et al., OPTQ: accurate post-training quantization for generative pre-trained
    transformers. Columns with much input energy come first.
    """
    gram = error.gram
    order = gram.diagonal().argsort(descending=True)
    lower = torch.linalg.cholesky(gram[order][:, order])
    target = error.exact[:, order].clone()
    if error.cross is not None:
        target += torch.cholesky_solve(error.cross[:, order].T, lower).T
    inverse = torch.cholesky_inverse(lower)
    upper = torch.linalg.cholesky(inverse, upper=True)
    indices = torch.empty(target.shape, dtype=torch.long)
    segment = regions.segment[order].tolist()
    for start in range(0, len(order), COLUMN_BLOCK):
        stop = min(start + COLUMN_BLOCK, len(order))
        part, square = target[:, start:stop].clone(), upper[start:stop, start:stop]
        missed = torch.empty_like(part)
        for k in range(stop - start):
            values = tables[:, segment[start + k]]
            chosen = (values - part[:, k, None]).abs_().argmin(1)
            indices[:, start + k] = chosen
            missed[:, k] = (part[:, k] - values.gather(1, chosen[:, None])[:, 0]) / square[k, k]
            part[:, k:].addr_(missed[:, k], square[k, k:], alpha=-1)
        target[:, stop:].addmm_(missed, upper[start:stop, stop:], alpha=-1)
    result = torch.empty_like(indices)
    result[:, order] = indices
    return result


def descend(error: OutputError, regions: Regions, tables: Tensor, indices: Tensor) -> Tensor:
    """Return ``indices`` (M, K) after one sweep of coordinate descent: the error does not rise."""
    indices = indices.clone()
    weights = regions.look_up(tables, indices)
    gradient = error.half_gradient(weights)
    curvature = error.gram.diagonal()
    segment = regions.segment.tolist()
    for start in range(0, weights.shape[1], COLUMN_BLOCK):
        stop = min(start + COLUMN_BLOCK, weights.shape[1])
        part, square = gradient[:, start:stop].clone(), error.gram[start:stop, start:stop]
        change = torch.empty_like(part)
        for k in range(stop - start):
            values, now = tables[:, segment[start + k]], weights[:, start + k]
            best = now - part[:, k] / curvature[start + k]
            chosen = (values - best[:, None]).abs_().argmin(1)
            change[:, k] = values.gather(1, chosen[:, None])[:, 0] - now
            indices[:, start + k] = chosen
            part.addr_(change[:, k], square[k])
        gradient.addmm_(change, error.gram[start:stop])
    return indices


def refit_codebooks(
    error: OutputError, regions: Regions, indices: Tensor, codebooks: Tensor, scales: Tensor
) -> Tensor:
    """Return codebooks (G, L) that lower the error, with ``indices`` and ``scales`` as they are.

    Least squares: exact where regions are groups of rows, a pass of block coordinate descent over
    the segments where they are segments.
    """

    def basis(rows: slice, columns: Tensor) -> Tensor:
        hot = torch.stack([indices[rows][:, columns] == j for j in range(codebooks.shape[1])])
        return hot * scales[regions.factors[rows][:, regions.segment[columns]]]

    weights = regions.dequantize(indices, codebooks, scales)
    return codebooks + _least_squares(error, regions, weights, regions.books, codebooks, basis)


def refit_scales(
    error: OutputError, regions: Regions, indices: Tensor, codebooks: Tensor, scales: Tensor
) -> Tensor:
    """Return scales (T,) that lower the error, with the rest as it is."""
    if not regions.scaled:
        return scales
    plain = regions.dequantize(indices, codebooks, torch.ones_like(scales))

    def basis(rows: slice, columns: Tensor) -> Tensor:
        return plain[rows][:, columns][None]

    weights = regions.dequantize(indices, codebooks, scales)
    change = _least_squares(error, regions, weights, regions.factors, scales[:, None], basis)
    return scales + change[:, 0]


def _least_squares(
    error: OutputError,
    regions: Regions,
    weights: Tensor,
    region: Tensor,
    parameters: Tensor,
    basis: Callable[[slice, Tensor], Tensor],
) -> Tensor:
    """Return the change of ``parameters`` (R, E) that lowers the error of ``weights``.

    ``basis(rows, columns)`` is (E, rows, columns): what a change of each parameter of its region
    adds to these weights.
    """
    rows, columns = weights.shape
    whole = len(parameters) <= rows
    spans = [torch.arange(columns)]
    if not whole:
        spans = [(regions.segment == s).nonzero()[:, 0] for s in range(regions.segments)]
    change = torch.zeros_like(parameters)
    entries = parameters.shape[1]
    gradient = error.half_gradient(weights)
    for s, span in enumerate(spans):
        square = error.gram[span[0] : span[-1] + 1, span[0] : span[-1] + 1]
        place = region[:, s]
        local = place if whole else torch.arange(rows)
        count = len(parameters) if whole else rows
        normal, right = torch.zeros(count, entries, entries), torch.zeros(count, entries)
        step = max(1, BASIS_VALUES // (entries * len(span)))
        for start in range(0, rows, step):
            part = slice(start, start + step)
            planes = basis(part, span)
            curved = planes @ square
            normal.index_add_(0, local[part], torch.einsum("erk,frk->ref", curved, planes))
            slope = torch.einsum("erk,rk->re", planes, gradient[part][:, span])
            right.index_add_(0, local[part], slope)
        mean = normal.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-30)
        damped = normal.double() + RIDGE * torch.diag_embed(
            mean[:, None].double().expand(-1, entries)
        )
        solved = -torch.linalg.solve(damped, right.double()).float()
        if whole:
            return solved
        change[place] = solved
        if s + 1 < len(spans):
            for start in range(0, rows, step):
                part = slice(start, start + step)
                moved = torch.einsum("re,erk->rk", solved[part], basis(part, span))
                gradient[part].addmm_(moved, error.gram[span])
    return change
