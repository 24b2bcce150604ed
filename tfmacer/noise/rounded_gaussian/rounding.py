"""Gaussian noise rounded to whole steps of 8-bit pixels, as integers that a generator can draw.

x + N(0, sigma^2), rounded to the nearest multiple of 1/255, is x plus D/255 for a whole number D
whose distribution does not depend on x, if x is itself such a multiple:

    P(D <= j) = Phi((2j + 1) / (510 sigma))

(Voráček & Hein, Sound Randomized Smoothing in Floating-Point Arithmetic, ICLR 2023). Sums outside
[-K, K + 1] are then clipped to it; D beyond `reach` steps either way saturates whatever x in
[0, 1] is, so the tails are lumped there without any error.
"""

import functools
import math

import mpmath
import numpy as np
import numpy.typing as npt

LEVELS = 255

# Bits of the uniform numbers that draw D, and decimal digits in which its table is computed.
_BITS = 64
_DIGITS = 50


def overhang(sigma: float) -> int:
    """K: noisy pixels are clipped to [-K, K + 1]; a whole number, 1 or more."""
    return max(1, math.floor(6 * sigma))


def reach(sigma: float) -> int:
    """Steps beyond which D is lumped: x + D saturates there for every x in [0, 1]."""
    return LEVELS * (overhang(sigma) + 1)


@functools.lru_cache(maxsize=16)
def thresholds(sigma: float) -> npt.NDArray[np.int64]:
    """Where a uniform integer passes from one D to the next.

    With U uniform on the int64, D = -reach + (how many thresholds are <= U).

    Args:
      sigma: scale of the noise, in units of pixels in [0, 1]; > 0.

    Returns:
      Ascending `[2 reach]`; entry i is 2^64 P(D <= i - reach), rounded to the nearest integer and
      kept within the type, minus 2^63.
    """
    last = reach(sigma)
    with mpmath.workdps(_DIGITS):
        step = 1 / (2 * LEVELS * mpmath.mpf(sigma))
        above = [
            int(mpmath.nint(mpmath.ldexp(mpmath.ncdf((2 * j + 1) * step), _BITS)))
            for j in range(last)
        ]
    # Phi(-x) = 1 - Phi(x), and 2^64 itself is one more than 64 bits hold.
    below = [2**_BITS - t for t in reversed(above)]
    half = 2 ** (_BITS - 1)
    table = np.array([min(t - half, half - 1) for t in below + above], np.int64)
    table.flags.writeable = False
    return table


def total_variation(sigma: float, dimension: int) -> float:
    """Bound on how far the noise of one image, as drawn, is from the rounded Gaussian.

    Each threshold is off by at most one unit of 2^-64 (half a unit from rounding, at most one where
    it was kept within the type). Drawn by the same U, the D of the table and the exact D differ
    only where U lies between a threshold and its exact place, so with probability at most
    2^-64 per threshold; over the pixels of an image these add up.

    Args:
      sigma: scale of the noise.
      dimension: numbers in one image.

    Returns:
      Upper bound on the total variation distance; it is how much the probability of any event,
      hence of any class, can differ.
    """
    # The product of integers is exact; ldexp only rounds to 53 bits, so one step up is enough.
    return math.nextafter(math.ldexp(dimension * 2 * reach(sigma), -_BITS), math.inf)
