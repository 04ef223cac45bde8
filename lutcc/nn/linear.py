"""A linear layer by look-ups."""

from __future__ import annotations

from typing import Any, Self

import torch

from lutcc.errors import InputError
from lutcc.fit import Maddness
from lutcc.nn.calibration import as_float_tensor, linear_rows
from lutcc.nn.lookup import MaddnessLookup, lookup_options


class MaddnessLinear(MaddnessLookup):
    """``y = activation(x W^T + b)`` by look-ups, for ``x`` (..., in_features) float32.

    Parameters
    ----------
    in_features, out_features
        D and M.
    ncodebooks, nprototypes, encoder, activation, lut_dtype, accumulate, upcast_every
        As in :class:`lutcc.fit.Maddness`.

    Raises
    ------
    InputError
        If an option, the dtype or the shape of the input does not fit.

    Notes
    -----
    Source: MADDNESS; ITLUMM sections 1 and 2.

    Examples
    --------
    >>> linear, x = torch.nn.Linear(64, 10), torch.randn(1000, 64)
    >>> layer = MaddnessLinear.from_linear(linear, x, ncodebooks=16, random_state=0)
    >>> layer(x).shape
    torch.Size([1000, 10])
    """

    @classmethod
    def from_linear(
        cls,
        linear: torch.nn.Linear,
        calibration_inputs: Any,
        *,
        max_rows: int | None = 65536,
        **maddness: Any,
    ) -> Self:
        """Fit look-ups to ``linear`` on what it receives.

        Parameters
        ----------
        linear
            The exact layer; it is not changed.
        calibration_inputs
            (..., in_features) tensor or array; leading dimensions are rows.
        max_rows
            Fit on at most this many rows, drawn with the seed ``random_state``; None keeps all.
        maddness
            Arguments of :class:`lutcc.fit.Maddness`.

        Raises
        ------
        InputError
            If shapes disagree or an option is wrong.

        Examples
        --------
        >>> linear, x = torch.nn.Linear(8, 3), torch.randn(500, 8)
        >>> layer = MaddnessLinear.from_linear(linear, x, ncodebooks=4)
        >>> layer.lut.shape
        torch.Size([4, 16, 3])
        """
        inputs = as_float_tensor(calibration_inputs, cls.__name__)
        seed = maddness.get("random_state")
        rows = linear_rows(
            inputs, linear.in_features, max_rows, seed if isinstance(seed, int) else None
        )
        estimator = Maddness(**maddness).fit(rows, *linear_weights(linear))
        return cls.from_estimator(estimator).to(linear.weight.device)

    @classmethod
    def from_estimator(cls, estimator: Maddness) -> Self:
        """Return a layer with the tables of a fitted ``estimator``.

        Raises
        ------
        NotFittedError
            If the estimator has not been fitted.

        Examples
        --------
        >>> layer = MaddnessLinear.from_estimator(Maddness(4).fit(np.random.normal(size=(100, 8))))
        >>> layer.in_features, layer.out_features
        (8, 8)
        """
        options = lookup_options(estimator)
        layer = cls(int(estimator.n_features_in_), int(estimator.lut_.shape[2]), **options)
        layer.load_estimator(estimator)
        return layer.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (..., out_features) float32 for ``x`` (..., in_features) float32."""
        if x.dim() == 0:
            raise InputError(
                "the input is a scalar",
                where="MaddnessLinear",
                fix=f"pass (..., {self.in_features})",
            )
        self.check_input(x, self.in_features, -1)
        if x.dim() == 2:
            return self.look_up(x)
        return self.look_up(x.reshape(-1, self.in_features)).reshape(
            *x.shape[:-1], self.out_features
        )

    def extra_repr(self) -> str:
        """Return the options shown by ``print``."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, {self.describe_lookup()}"


def linear_weights(linear: torch.nn.Linear) -> tuple[Any, Any]:
    """Return B (D, M) and bias (M,) or None, float64 arrays, of an exact layer."""
    bias = None if linear.bias is None else linear.bias.detach().cpu().double().numpy()
    return linear.weight.detach().cpu().double().numpy().T, bias
