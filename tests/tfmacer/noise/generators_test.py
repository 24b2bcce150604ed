import mpmath
import pytest

from tfmacer.common.errors import UserError
from tfmacer.noise import generators


def mass_of_long_pairs(dimension: int, share: str) -> mpmath.mpf:
    """P(some pair of N(0, I_d) is longer than what `share` of pairs are), by chi of 2 degrees."""
    length = mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(share)))
    beyond = mpmath.exp(-(length**2) / 2)
    return 1 - (1 - beyond) ** -(-dimension // 2)


@pytest.mark.parametrize("dimension", [1, 2, 3, 784, 3072, 150_528])
@pytest.mark.parametrize(
    ("generator", "bits", "most"), [("philox", 23, 1.01), ("philox-boxmuller", 64, 4.01)]
)
def test_no_less_is_left_out_than_said_and_not_much_less(dimension, generator, bits, most):
    said = generators.left_out(generator, dimension)
    with mpmath.workdps(40):
        true = mass_of_long_pairs(dimension, f"{2.0**-bits!r}")
    assert true <= said
    if dimension > 700:
        assert said <= most * true


def test_figures():
    assert generators.left_out("philox", 784) == pytest.approx(4.70e-5, rel=1e-3)
    assert generators.left_out("philox", 150_528) == pytest.approx(8.97e-3, rel=1e-3)
    latest = generators.left_out(generators.LATEST, 150_528)
    assert latest == 150_528 * 2.0**-63


def test_an_unknown_one_is_refused():
    with pytest.raises(UserError, match="generator must be one of philox, philox-boxmuller, got"):
        generators.check_generator("philox2")
