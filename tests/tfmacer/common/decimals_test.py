import decimal
import fractions
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shown import ROUNDED

from tfmacer.common.decimals import down, up


@pytest.mark.parametrize(("value", "digits", "times", "low", "high"), ROUNDED)
def test_numbers_are_rounded_to_the_side_that_is_asked_for(value, digits, times, low, high):
    assert down(value, digits, times=times) == low
    assert up(value, digits, times=times) == high


@given(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False),
        # Floats around numbers of few digits, where rounding goes wrong.
        st.builds(
            lambda units, digits, towards: math.nextafter(units / 10**digits, towards),
            st.integers(-(10**6), 10**6),
            st.integers(0, 6),
            st.sampled_from([-math.inf, math.inf]),
        ),
    ),
    st.integers(0, 12),
    st.sampled_from([1, 100, 255]),
)
def test_as_decimal_arithmetic_rounds_the_exact_value(value, digits, times):
    with decimal.localcontext(prec=1500, Emin=-2000):
        exact = decimal.Decimal(value) * times
        step = decimal.Decimal(1).scaleb(-digits)
        low = decimal.Decimal(down(value, digits, times=times))
        high = decimal.Decimal(up(value, digits, times=times))
        assert low == exact.quantize(step, rounding=decimal.ROUND_FLOOR)
        assert high == exact.quantize(step, rounding=decimal.ROUND_CEILING)
        assert low <= exact <= high <= low + step
    for text in (down(value, digits, times=times), up(value, digits, times=times)):
        assert len(text.partition(".")[2]) == digits


def test_signs():
    assert down(0.5, 1, signed=True) == "+0.5"
    assert down(-0.55, 1, signed=True) == "-0.6"
    assert up(-0.01, 1, signed=True) == "+0.0"
    assert down(math.inf, 1, signed=True) == "+inf"


def test_fractions_are_exact_too():
    assert down(1 - fractions.Fraction("0.001"), 3, times=100) == "99.900"
    assert down(fractions.Fraction(1, 3), 3) == "0.333"
    assert up(fractions.Fraction(1, 3), 3) == "0.334"
