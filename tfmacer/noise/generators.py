"""The generators of noise by name, and how much of the noise each of them leaves out.

A generator is one version of how random bits become numbers; its name is kept with a model, so
that the noise behind a certificate can be drawn again. What each does is in
`tfmacer/noise/random_numbers.py`.

A distribution is over real numbers, and beyond some length a generator has none left: all bits
that are smaller still stand for the last one. The rest, that numbers are floats, is rounding.
"""

import math

from tfmacer.common.errors import UserError

# TensorFlow's normal numbers; what records and exports without a name for it were drawn by.
PHILOX = "philox"
# Normal numbers of our own, of the same generator's bits.
BOX_MULLER = "philox-boxmuller"
GENERATORS = (PHILOX, BOX_MULLER)
# What new models are certified with.
LATEST = BOX_MULLER


def check_generator(name: str) -> None:
    """Raises UserError unless there is a generator of that name."""
    if name not in GENERATORS:
        raise UserError(f"generator must be one of {', '.join(GENERATORS)}, got {name!r}")


def left_out(generator: str, dimension: int) -> float:
    """Bound on the probability of one image's normal numbers that are never drawn, rounding apart.

    `philox` makes two normal numbers of two uniform ones with 23 bits each. The least value of
    the one that gives their length stands for all lengths beyond 5.65, which 2^-23 of pairs have
    (it is drawn as 1e-7, so the longest pair has 5.68). An image's numbers are in d / 2 pairs, and
    one more where pairs straddle images; one is left for a further number.

    `philox-boxmuller` gives 64 bits to each length: 2^-64 of pairs are beyond 9.41. Other numbers
    take as many; 2 d of such events hold all of them.

    Args:
      generator: one of `GENERATORS`.
      dimension: numbers in one image.
    """
    if generator == BOX_MULLER:
        return math.ldexp(dimension, -63)
    return math.ldexp(dimension // 2 + 2, -23)
