"""Numbers as they are shown: rounded to the side on which a statement about them stays true.

The exact value of the float is rounded, not the text it was read from: the float nearest to 0.3
lies below 0.3, so with four digits it is 0.2999 rounded down and 0.3000 rounded up. Radii and lower
bounds are rounded down, upper bounds up, estimates to the nearest. `serving/console/shown.js` does
the same on the web page.
"""

import math
from fractions import Fraction
from typing import Protocol


class Rounding(Protocol):
    """One of `down`, `up` and `nearest`."""

    def __call__(
        self,
        value: float | Fraction,
        decimals: int,
        /,
        *,
        times: int = 1,
        signed: bool = False,
    ) -> str:
        """See `down`."""


def down(value: float | Fraction, decimals: int, *, times: int = 1, signed: bool = False) -> str:
    """The largest number of `decimals` digits that is not above `times * value`, as text.

    Args:
      value: any float or fraction; infinities and NaN are written `inf`, `-inf` and `nan`.
      decimals: digits after the point, 0 or more.
      times: 100 for per cent; the product is exact, too.
      signed: whether numbers above 0 get a plus sign.
    """
    return _text(value, decimals, times, signed, upward=False)


def up(value: float | Fraction, decimals: int, *, times: int = 1, signed: bool = False) -> str:
    """The smallest number of `decimals` digits that is not below `times * value`; see `down`."""
    return _text(value, decimals, times, signed, upward=True)


def nearest(value: float | Fraction, decimals: int, *, times: int = 1, signed: bool = False) -> str:
    """The number of `decimals` digits nearest to `times * value`; see `down`."""
    return f"{float(times * value):{'+' if signed else ''}.{decimals}f}"


def _text(value: float | Fraction, decimals: int, times: int, signed: bool, *, upward: bool) -> str:
    if not math.isfinite(value):
        return f"{value:+}" if signed else f"{value}"
    above, below = value.as_integer_ratio()
    above *= times * 10**decimals
    units = -(-above // below) if upward else above // below
    digits = f"{abs(units):0{decimals + 1}d}"
    sign = "-" if units < 0 else "+" if signed else ""
    whole = len(digits) - decimals
    return f"{sign}{digits[:whole]}" + (f".{digits[whole:]}" if decimals else "")
