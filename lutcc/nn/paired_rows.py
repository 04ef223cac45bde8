"""Rows that pass a layer, recorded by hooks: a sample that two models can draw alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from lutcc.errors import ConvertError
from lutcc.nn.calibration import output_size, patch_rows
from lutcc.nn.codebook_fitting import patch_geometry

Rows = npt.NDArray[np.float32]
RowsAt = Callable[[npt.NDArray[np.intp]], Rows]
Layer = torch.nn.Linear | torch.nn.Conv2d
Run: TypeAlias = Sequence[Callable[[], object]]
"""What runs a model, a batch at a time."""


class RowSample:
    """At most ``max_rows`` rows of a stream, drawn uniformly; the seed says which.

    Streams of equal lengths give the same rows.

    Examples
    --------
    >>> sample = RowSample(2, seed=0)
    >>> for start in (0, 10):
    ...     sample.add(10, lambda at: (start + at[:, None]).astype(np.float32))
    >>> sample.rows.shape, sample.counts
    ((2, 1), [10, 10])
    """

    def __init__(self, max_rows: int, seed: int) -> None:
        self.max_rows = max_rows
        self.counts: list[int] = []
        self._random = np.random.default_rng(seed)
        self._keys = np.empty(0)
        self._rows: Rows | None = None

    def add(self, count: int, rows_at: RowsAt) -> None:
        """Offer ``count`` rows; ``rows_at`` returns those of ascending numbers."""
        self.counts.append(count)
        if not count:
            return
        keys = np.concatenate([self._keys, self._random.random(count)])
        kept = np.arange(len(keys))
        if len(keys) > self.max_rows:
            kept = np.sort(np.argpartition(keys, self.max_rows - 1)[: self.max_rows])
        old = len(self._keys)
        fresh = rows_at(kept[kept >= old] - old)
        self._keys = keys[kept]
        held = self._rows
        self._rows = fresh if held is None else np.concatenate([held[kept[kept < old]], fresh])

    @property
    def rows(self) -> Rows:
        """(N, K) the rows drawn.

        Raises
        ------
        ConvertError
            If none were offered.
        """
        if self._rows is None:
            raise ConvertError(
                "no rows reach the layer",
                where="convert",
                fix="pass calibration inputs that reach it",
            )
        return self._rows


def record_inputs(layer: Layer, run: Run, max_rows: int, seed: int) -> RowSample:
    """Return a sample of the rows, or patches, that ``layer`` receives while ``run`` runs.

    After the first batch, which says how often the model calls the layer, nothing is computed that
    comes after its last call.
    """

    def offer(sample: RowSample, value: torch.Tensor, _: torch.Tensor) -> None:
        if isinstance(layer, torch.nn.Linear):
            rows = value.reshape(-1, value.shape[-1])
            sample.add(len(rows), lambda at: _numpy(rows[torch.from_numpy(at).to(rows.device)]))
            return
        images = (value if value.dim() == 4 else value.unsqueeze(0)).float().cpu()
        images, geometry = patch_geometry(layer, images)
        oh, ow = output_size(images.shape[2], images.shape[3], geometry)
        sample.add(len(images) * oh * ow, lambda at: patch_rows(images, geometry, at))

    return _record(layer, run, RowSample(max_rows, seed), offer)


def record_outputs(layer: Layer, run: Run, max_rows: int, seed: int) -> RowSample:
    """Return a sample of what ``layer`` returns, row for row that of :func:`record_inputs`."""

    def offer(sample: RowSample, _: torch.Tensor, result: torch.Tensor) -> None:
        if isinstance(layer, torch.nn.Conv2d):
            result = result if result.dim() == 4 else result.unsqueeze(0)
            result = result.permute(0, 2, 3, 1)
        rows = result.reshape(-1, result.shape[-1])
        sample.add(len(rows), lambda at: _numpy(rows[torch.from_numpy(at).to(rows.device)]))

    return _record(layer, run, RowSample(max_rows, seed), offer)


class _Recorded(BaseException):  # no Exception, which a model might catch
    """All calls of a batch are recorded; the rest of the model need not run."""


def _record(
    layer: Layer,
    run: Run,
    sample: RowSample,
    offer: Callable[[RowSample, torch.Tensor, torch.Tensor], None],
) -> RowSample:
    calls, expected = 0, 0

    def keep(module: Any, args: Iterable[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        nonlocal calls
        offer(sample, next(iter([*args, *kwargs.values()])), result)
        calls += 1
        if calls == expected:
            raise _Recorded

    handle = layer.register_forward_hook(keep, with_kwargs=True)
    try:
        for forward in run:
            calls = 0
            try:
                forward()
            except _Recorded:
                continue
            expected = expected or calls
    finally:
        handle.remove()
    return sample


def _numpy(rows: torch.Tensor) -> Rows:
    return rows.detach().float().cpu().numpy()
