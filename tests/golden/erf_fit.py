"""Fits the two polynomials of `kernels/math.rs` from which GELU's normal distribution is formed.

    python tests/golden/erf_fit.py        (needs numpy and mpmath)

P: erf(t) / t in s = t^2 on [0, 1].  Q: ln(erfc(t)) in t on [0.98, 6], weighted so that the error of
erfc itself is even until it is too small to matter. Minimax by iteratively reweighted least squares
(Lawson) on Chebyshev nodes. Prints the f32 coefficients, highest power first, and the largest
weighted error.
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 40


def fit(function, low, high, degree, weight, rounds=200, points=400):
    k = np.arange(points)
    x = (low + high) / 2 + (high - low) / 2 * np.cos(np.pi * (2 * k + 1) / (2 * points))
    y = np.array([float(function(mp.mpf(v))) for v in x])
    w = np.array([weight(v) for v in x])
    powers = np.vander(x, degree + 1, increasing=True)
    lawson = np.ones(points)
    for _ in range(rounds):
        scale = w * np.sqrt(lawson)
        c, *_ = np.linalg.lstsq(powers * scale[:, None], y * scale, rcond=None)
        error = np.abs((powers @ c - y) * w)
        lawson *= error / error.max() + 1e-3
        lawson /= lawson.mean()
    return [np.float32(v) for v in c[::-1]], error.max()


def show(name, result):
    coefficients, error = result
    print(name, [str(c) for c in coefficients], "error", error)


def erfc_weight(t):
    return max(float(mp.erfc(t)) / 0.16, 1e-3 if t < 4.5 else 1e-4)


show("P", fit(lambda s: mp.erf(mp.sqrt(s)) / mp.sqrt(s), 0.0, 1.0, 6, lambda s: 1.0))
show("Q", fit(lambda t: mp.log(mp.erfc(t)), 0.98, 6.0, 8, erfc_weight))
