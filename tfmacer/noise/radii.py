"""Radii that are never too large."""

import bisect
import math
from collections.abc import Callable

# SciPy's ndtri and ndtr, and each product here, are right to within a few units in the last place;
# results are moved outward by this relative amount, eight units.
_OUTWARD = 8 * math.ulp(1.0)


def outward(value: float) -> float:
    """Moves a number down by more than the rounding of the few operations that made it."""
    return value - _OUTWARD * abs(value) if math.isfinite(value) else value


def last_holding(holds: Callable[[int], bool], near: float, last: int) -> int:
    """The last index in 0 .. last where a falling condition holds, looking around a guess first.

    It is taken to hold at 0, and whatever is returned otherwise was seen to hold.
    """
    low, high = 0, last + 1
    guess, stride = round(min(max(near, 1.0), last)), 4
    while low < guess < high:
        if holds(guess):
            low, guess = guess, guess + stride
        else:
            high, guess = guess, guess - stride
        stride *= 2
    # From the two sides seen so far, halving.
    return low + bisect.bisect_left(range(low + 1, high), True, key=lambda i: not holds(i))


def linf_from_l2(radius: float, dimension: int) -> float:
    """The l-infinity ball inside an l2 ball: its radius over sqrt(d), rounded down.

    The corner of an l-infinity ball is sqrt(d) times as far away as its faces.

    Args:
      radius: certified l2 radius, 0 or more.
      dimension: numbers in one image.
    """
    return max(outward(radius / math.sqrt(dimension)), 0.0)
