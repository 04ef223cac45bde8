"""Replay of halutmatmul's test: N=2048, D=512, M in {64, 128}, C in {16, 32, 64}, relative error
below 0.2.

As there, A and B are uniform in 0..1 and the error is measured on N/4 fresh rows as ``|approximate
- exact| / exact``, element by element. halutmatmul lets a tenth of the error's range lie above 0.2,
uses float tables and seed 4419; here the largest error of all elements must stay below 0.2, with
8-bit tables.

That bound is weak: products of positive numbers scatter by only 3% around their mean, so a constant
would pass it as well. Columns of independent noise leave no redundancy to exploit, either. Hence
the second assertion: the squared error must stay 3% below that of the best constant per output.
"""

from __future__ import annotations

import numpy as np
import pytest

from lutcc.fit import Maddness

N, D = 2048, 512


@pytest.mark.one_in(2)
@pytest.mark.parametrize("noutputs", [64, 128])
@pytest.mark.parametrize("ncodebooks", [16, 32, 64])
def test_relative_error(noutputs: int, ncodebooks: int) -> None:
    random = np.random.default_rng(4419)
    A, B, fresh = random.random((N, D)), random.random((D, noutputs)), random.random((N // 4, D))
    estimator = Maddness(ncodebooks, random_state=0).fit(A, B)
    exact, products = fresh @ B, estimator.predict(fresh)
    assert (np.abs(products - exact) / exact).max() < 0.2
    constant = (A @ B).mean(axis=0)
    assert np.square(products - exact).mean() < 0.97 * np.square(constant - exact).mean()
