"""What the noise families of Filling the Soap Bubbles buy, apart from any network.

  python -m benchmarks.noise_families

Three tables: the probability that each family needs where a Gaussian of the same root mean square
needs 0.7, 0.9 and 0.99; the same for the pure l-infinity family (the paper's equation 10), which
Theorem 4 shows to fail in high dimensions; and the toy of the paper's Figure 4.
"""

import sys

import numpy as np
import numpy.typing as npt
from absl import flags
from scipy import stats

from tfmacer.common import commandline
from tfmacer.noise.generalized_gaussian.likelihood_ratio import RadialNoise
from tfmacer.noise.mixed_norm.largest_coordinate import largest_coordinate
from tfmacer.noise.mixed_norm.statistics import draw_statistics

FLAGS = flags.FlagValues()
Array = npt.NDArray[np.float64]
LEVELS = (0.7, 0.9, 0.99)
DRAWS = 40_000
# The toy: five dimensions, a ball of this radius, attacks of this l-infinity length.
TOY_DIMENSION, TOY_BALL, TOY_ATTACK = 5, 0.65, 0.1
TOY_SIGMAS = np.geomspace(0.05, 3, 120)


def needed_l2(dimension: int, k: float) -> list[float]:
    """Bounds on the probability needed, at the radii where a Gaussian needs `LEVELS`."""
    noise = RadialNoise(dimension, k)
    return [noise.probability(float(stats.norm.ppf(p)) * noise.scale) for p in LEVELS]


def needed(ratio: Array) -> float:
    """P(L <= -median of L) among draws of the log likelihood ratio: the probability needed."""
    return float((ratio <= -np.median(ratio)).mean())


def needed_mixed(dimension: int, k: float, generator: np.random.Generator) -> list[float]:
    """Estimates for the mixed-norm family and l-infinity balls."""
    z = draw_statistics(dimension, k, DRAWS, generator)
    unit = np.sqrt(dimension - k) / dimension
    return [needed(z.log_ratio(dimension, k, unit * stats.norm.ppf(p))) for p in LEVELS]


def pure_extremes(
    dimension: int, k: float, count: int, generator: np.random.Generator
) -> tuple[Array, Array, Array]:
    """|z|_inf, max z and min z under |z|_inf^-k exp(-|z|_inf^2 / 2).

    |z|_inf^2 is Gamma((d - k) / 2, 2), z is uniform on that cube's surface, and the extremes of
    the coordinates off the face are order statistics: three numbers, whatever the dimension.
    """
    m = np.sqrt(generator.gamma((dimension - k) / 2, 2, count))
    face = np.where(generator.random(count) < 0.5, -1.0, 1.0)
    low = 1 - generator.random(count) ** (1 / (dimension - 1))
    high = low + (1 - low) * generator.random(count) ** (1 / (dimension - 2))
    return m, m * np.maximum(face, 2 * high - 1), m * np.minimum(face, 2 * low - 1)


def needed_pure(dimension: int, k: float, generator: np.random.Generator) -> list[float]:
    """Estimates for the pure l-infinity family, at the radii of a Gaussian of equal mean square."""
    m, largest, smallest = pure_extremes(dimension, k, DRAWS, generator)
    # One coordinate of d lies on the face, the others are uniform.
    rms = np.sqrt((dimension - k) * (1 / 3 + 2 / (3 * dimension)))
    answers = []
    for p in LEVELS:
        r = stats.norm.ppf(p) * rms / np.sqrt(dimension)
        after = np.maximum(largest - r, r - smallest)
        answers.append(needed(-k * np.log(after / m) - (after**2 - m**2) / 2))
    return answers


def toy_draws(family: str, k: float, count: int, generator: np.random.Generator) -> Array:
    """Vectors of the toy's dimension with sigma = 1."""
    d = TOY_DIMENSION
    if family == "l2":
        z = generator.normal(size=(count, d))
        z *= np.sqrt(generator.gamma((d - k) / 2, 2, (count, 1)) / (z**2).sum(1, keepdims=True))
        return z
    if family == "pure":
        m = np.sqrt(generator.gamma((d - k) / 2, 2, count))
        z = generator.uniform(-1, 1, (count, d)) * m[:, np.newaxis]
    else:
        m = largest_coordinate(d, k).quantiles(generator.random(count))
        edge = stats.norm.cdf(-m)[:, np.newaxis]
        z = stats.norm.ppf(edge + generator.random((count, d)) * (1 - 2 * edge))
    face = np.where(generator.random(count) < 0.5, -m, m)
    z[np.arange(count), generator.integers(0, d, count)] = face
    return z


def toy_log_density(family: str, z: Array, k: float) -> Array:
    """Not normalised."""
    l2, linf = np.sqrt((z**2).sum(axis=1)), np.abs(z).max(axis=1)
    power, decay = {"l2": (l2, l2), "mixed": (linf, l2), "pure": (linf, linf)}[family]
    density: Array = -k * np.log(power) - decay**2 / 2
    return density


def toy_frontier(family: str, accuracies: Array, generator: np.random.Generator) -> Array:
    """Least total variation under attack of any (k, sigma) that reaches each accuracy.

    Accuracy is the smoothed probability at the centre of the ball, total variation the distance
    term of the paper's equation 7 at lambda = 1: less is more robust.
    """
    points = []
    for k in np.linspace(0, 4, 9):
        z = toy_draws(family, k, DRAWS, generator)
        lengths, before = np.sqrt((z**2).sum(axis=1)), toy_log_density(family, z, k)
        for sigma in TOY_SIGMAS:
            ratio = toy_log_density(family, z - TOY_ATTACK / sigma, k) - before
            lost = np.maximum(1 - np.exp(ratio), 0).mean()
            points.append(((lengths * sigma <= TOY_BALL).mean(), lost))
    reached, lost = np.array(points).T
    return np.array([lost[reached >= a].min(initial=1.0) for a in accuracies])


def _main() -> None:
    generator = np.random.default_rng(0)
    print("family dimension k: probability needed where a Gaussian needs", *LEVELS)
    for dimension, k in ((784, 100), (3072, 500), (150_528, 50_000)):
        print("l2", dimension, k, *(f"{p:.4f}" for p in needed_l2(dimension, k)))
    for dimension, k in ((784, 50), (3072, 10), (3072, 50), (3072, 250)):
        print("mixed", dimension, k, *(f"{p:.4f}" for p in needed_mixed(dimension, k, generator)))
    for dimension in (5, 50, 784, 3072):
        p_needed = needed_pure(dimension, dimension / 2, generator)
        print("pure", dimension, dimension / 2, *(f"{p:.4f}" for p in p_needed))
    accuracies = np.array([0.5, 0.6, 0.7, 0.8, 0.9])
    print("toy: total variation at accuracy", *accuracies)
    for family in ("l2", "mixed", "pure"):
        found = toy_frontier(family, accuracies, generator)
        print(family, *(f"{x:.3f}" for x in found))


main = commandline.command(_main, FLAGS, "python -m benchmarks.noise_families", __doc__)


if __name__ == "__main__":
    sys.exit(main())
