"""The distribution of Gaussian noise rounded to whole steps of 8-bit pixels."""

import dataclasses
import math
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.noise import generators
from tfmacer.noise.gaussian.distribution import Gaussian
from tfmacer.noise.rounded_gaussian import rounding

# How far 255 x may be from the whole number that it is taken for: float32 products of j by 1/255
# are off by 3e-5 at most.
_OFF_GRID = 2.0**-14
# A hundred times the range of pixels: 300,000 entries of the table, computed in seconds.
_LARGEST_SIGMA = 100.0


@dataclasses.dataclass(frozen=True)
class RoundedGaussian(NoiseDistribution):
    """Gaussian noise rounded to whole steps of 1/255; certifies l2 balls around 8-bit images.

    Let f be the network with its normalisation and arithmetic, a function of whole numbers v / 255,
    and h(y) = f(clip(round(255 y), -255 K, 255 (K + 1)) / 255): an ordinary measurable classifier
    of real images. Theorem 1 of Cohen et al. holds for h. For an image x of multiples of 1/255,
    round(255 (x + N(0, sigma^2))) is 255 x + D with D as in `rounding`, so the votes of f under
    whole-number noise are draws of h's exactly: no floating-point sum takes part, and nothing about
    x can hide in low bits. (Voráček & Hein, ICLR 2023.) The table by which D is drawn is off by
    `rounding.total_variation`; every probability may differ by that much, so it is taken from p_A
    and added to p_B before the theorem is used.

    The radius holds for every real image of the ideal h, and for every 8-bit image of the served
    classifier, provided that it is asked with 8-bit pixels (after any resizing), with the same
    noise, clipping and sigma, and with the same deterministic f as when it was certified.
    """

    family: ClassVar[str] = "rounded_gaussian"
    norm: ClassVar[str] = "l2"
    levels: ClassVar[int | None] = rounding.LEVELS
    note: ClassVar[str] = (
        "the pixels are the multiples of 1/255 nearest to those given, and the noise is added in "
        "whole steps of 1/255, so rounding is covered for all pixels of 8 bits that the same "
        "network answers with the same arithmetic"
    )
    generator: str = generators.LATEST

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma > _LARGEST_SIGMA:
            raise UserError(
                f"sigma must be at most {_LARGEST_SIGMA:g} under {self.family} noise, whose table "
                f"grows with it, got {self.sigma}"
            )

    @property
    def _exact(self) -> Gaussian:
        return Gaussian(self.sigma, self.dimension, self.generator)

    def _radius(self, p_lower: float, p_upper_second: float | None) -> float:
        slack = rounding.total_variation(self.sigma, self.dimension)
        lower = max(math.nextafter(p_lower - slack, -1.0), 0.0)
        if p_upper_second is None:
            return self._exact.radius(lower)
        upper = min(math.nextafter(p_upper_second + slack, 2.0), 1.0)
        return self._exact.radius(lower, upper)

    def _probability(self, radius: float) -> float:
        slack = rounding.total_variation(self.sigma, self.dimension)
        return min(self._exact.probability(radius) + slack, 1.0)

    @property
    def left_out(self) -> float:
        """Nothing: the noise is drawn by a table, whose error the radius allows for."""
        return 0.0

    def pixels(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Multiples of 1/255 in [0, 1], as uint8 / 255 gives them.

        Pixels within 2^-14 of such a step are taken for it: the votes are those of the multiple,
        and so is the certificate. Others are refused.
        """
        steps = np.asarray(images, np.float64) * rounding.LEVELS
        levels = np.round(steps)
        on_grid = np.abs(steps - levels) <= _OFF_GRID
        wrong = np.argwhere(~(on_grid & (levels >= 0) & (levels <= rounding.LEVELS)))
        if len(wrong):
            place = tuple(int(i) for i in wrong[0])
            raise UserError(
                f"noise_family {self.family} certifies 8-bit images: pixel {place} is "
                f"{float(images[place])!r}, not a multiple of 1/255 in [0, 1]"
            )
        # Without a sign of zero, which would show in a digest.
        return (levels + 0.0).astype(np.float32) / np.float32(rounding.LEVELS)
