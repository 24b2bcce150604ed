"""The registry of noise families, and what a certificate says of each."""

import pytest

from tfmacer.common.errors import UserError
from tfmacer.noise import families
from tfmacer.noise.gaussian.distribution import Gaussian


def of_family(family, **given):
    params = {"k": 3.0} if family in ("generalized_gaussian", "mixed_norm") else {}
    return families.noise_distribution(family, sigma=0.5, params=params, **given)


def test_gaussian():
    distribution = families.noise_distribution("gaussian", sigma=0.5, dimension=784)
    assert distribution == Gaussian(0.5, 784)
    assert (distribution.family, distribution.norm, distribution.sigma) == ("gaussian", "l2", 0.5)


def test_keys_are_the_families_own_names():
    assert all(
        family == distribution.family for family, distribution in families.DISTRIBUTIONS.items()
    )


def test_unknown_family():
    with pytest.raises(UserError, match="noise_family must be one of gaussian, .*got 'cauchy'"):
        families.noise_distribution("cauchy", sigma=0.5, dimension=784)


@pytest.mark.parametrize("family", families.DISTRIBUTIONS)
@pytest.mark.parametrize("dimension", [0, 2**31, 2**186])
def test_an_image_that_cannot_be(family, dimension):
    with pytest.raises(UserError, match=f"1 to 2147483647 numbers, got {dimension}"):
        families.noise_distribution(family, sigma=0.5, dimension=dimension)


def test_unknown_parameter():
    with pytest.raises(UserError, match="noise_params of gaussian must be empty, got {'k': 3}"):
        families.noise_distribution("gaussian", sigma=0.5, params={"k": 3}, dimension=784)


@pytest.mark.parametrize(
    ("family", "part"),
    [
        ("gaussian", "the rounding of floating-point numbers is covered, nor what"),
        ("generalized_gaussian", "never draws, at most 4.7e-5 of the noise's probability"),
        ("rounded_gaussian", "the multiples of 1/255 nearest to those given, and the noise is"),
        ("rounded_gaussian", "rounding is covered for all pixels of 8 bits"),
        ("mixed_norm", "rest on one table, which is wrong with probability 1e-09,"),
        ("mixed_norm", "never draws, at most 1.9e-4 of the noise's probability"),
    ],
)
def test_what_a_certificate_leaves_open(family, part):
    assert part in of_family(family, dimension=784, generator="philox").caveat()


@pytest.mark.parametrize("generator", ["philox", "philox-boxmuller"])
def test_whole_steps_leave_nothing_out(generator):
    noise = of_family("rounded_gaussian", dimension=150_528, generator=generator)
    assert noise.left_out == 0
    assert "never draws" not in noise.caveat()


@pytest.mark.parametrize("family", families.DISTRIBUTIONS)
def test_a_distribution_knows_its_dimension_and_generator(family):
    distribution = of_family(family, dimension=12, generator="philox")
    assert (distribution.dimension, distribution.generator) == (12, "philox")
    assert of_family(family, dimension=12).generator == "philox-boxmuller"


def test_unknown_generator():
    with pytest.raises(UserError, match="generator must be one of philox, .*got 'mersenne'"):
        families.noise_distribution("gaussian", sigma=0.5, dimension=784, generator="mersenne")
