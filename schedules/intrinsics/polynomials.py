"""Coefficients of exp, erf and tanh in float32, which vectorise as calls of libm do not.

The vector code of our kernels (:mod:`lutcc.schedules.x86.vector_math`) and what stands in for Relax
ops (:mod:`lutcc.frontend.relax.fast_math`) take them from here. Each is within a few units in the
last place, evaluated by Horner's rule from the first coefficient on.
"""

from __future__ import annotations

LOG2_E = 1.44269504088896341
#: ln(2) in two parts, the first with few bits, so that its products with integers are exact.
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4
#: Cephes expf: exp(r) = 1 + r + r^2 P(r) for |r| <= ln(2)/2.
EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
#: Beyond these, e^x is infinity and 0.
EXP_MAX, EXP_MIN = 89.0, -104.0
#: Below this, e^x has no normal float32.
EXP_NORMAL = -87.33654
# Rational minimax approximations of Eigen: x times a numerator in x^2, by a denominator in x^2.
ERF_P = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
ERF_Q = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
TANH_P = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)
#: log(1 + u) is s LOG1P(s^2) with s = u / (u + 2), twice the inverse hyperbolic tangent of s, for u
#: from 0 to 1: its series, which ends where terms are below 1e-8.
LOG1P = tuple(2 / k for k in range(13, 0, -2))
#: Where erf and tanh are as good as 1.
ERF_MAX, TANH_MAX = 4.0, 9.0
