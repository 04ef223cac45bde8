"""scikit-learn's bundled handwritten digits (UCI): 1797 images of 8 x 8 pixels."""

from __future__ import annotations

import numpy as np

from lutcc.data.split import ImageSplit, stratified


def load(test_share: float = 0.3, seed: int = 0) -> ImageSplit:
    """Return the digits, split by class: rows (N, 64) float32 in 0..1 and labels 0..9.

    Parameters
    ----------
    test_share
        Share of the images that go to the test part, between 0 and 1.
    seed
        Seed of the split.

    Raises
    ------
    InputError
        If ``test_share`` is not in 0.01..0.99.

    Examples
    --------
    >>> data = load()
    >>> data.train_x.shape, data.test_x.shape, float(data.train_x.max())
    ((1257, 64), (540, 64), 1.0)
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = (images / 16).astype(np.float32)
    return stratified(rows, labels.astype(np.int64), test_share, seed, where="digits.load")
