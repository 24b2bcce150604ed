"""Stop rules as text, and the schedule of looks."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmacer.common.errors import UserError
from tfmacer.guarantee.stopping import FIXED, StopRule, looks


class TestStopRule:
    @pytest.mark.parametrize(
        ("text", "radius", "precision", "seconds"),
        [
            ("fixed", None, None, None),
            ("decide:0.5", 0.5, None, None),
            ("precision:0.05", None, 0.05, None),
            ("budget:2.5", None, None, 2.5),
        ],
    )
    def test_parse(self, text, radius, precision, seconds):
        rule = StopRule.parse(text)
        assert (rule.radius, rule.precision, rule.seconds) == (radius, precision, seconds)
        assert str(rule) == text

    def test_default_is_fixed(self):
        assert StopRule() == StopRule.parse("fixed") == FIXED

    @given(
        kind=st.sampled_from(["decide", "precision", "budget"]),
        value=st.floats(0, 1, exclude_min=True, exclude_max=True),
    )
    def test_text_and_back(self, kind, value):
        rule = StopRule(kind, value)
        assert StopRule.parse(str(rule)) == rule

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("never", "stop must be fixed, decide:RADIUS, .* got 'never'"),
            ("", "stop must be fixed"),
            ("decide", "got 'decide': stop=decide needs a positive number"),
            ("decide:", "stop must be fixed, .* got 'decide:'"),
            ("decide:far", "stop must be fixed, .* got 'decide:far'"),
            ("decide:0", "stop=decide needs a positive number, got 0.0"),
            ("decide:nan", "stop=decide needs a positive number, got nan"),
            ("budget:inf", "stop=budget needs a positive number, got inf"),
            ("budget:-1", "stop=budget needs a positive number, got -1.0"),
            ("precision:1", "stop=precision needs a part below 1, got 1.0"),
            ("fixed:3", "stop=fixed takes no value, got 3.0"),
        ],
    )
    def test_out_of_range(self, text, message):
        with pytest.raises(UserError, match=message):
            StopRule.parse(text)


class TestLooks:
    def test_example(self):
        assert looks(4500, 256) == (256, 512, 768, 1024, 1280, 1792, 2304, 3072, 3840, 4500)

    @given(n=st.integers(1, 10**6), block_size=st.integers(1, 1000))
    def test_schedule(self, n, block_size):
        schedule = looks(n, block_size)
        assert schedule[-1] == n
        assert all(look % block_size == 0 for look in schedule[:-1])
        for one, following in itertools.pairwise(schedule):
            assert one < following
            # A quarter more, and what rounding to whole blocks adds.
            assert following <= 1.25 * one + block_size

    @given(n=st.integers(1, 10**5), more=st.integers(0, 10**5))
    def test_longer_schedules_begin_alike(self, n, more):
        assert looks(n + more, 256)[: len(looks(n, 256)) - 1] == looks(n, 256)[:-1]

    def test_few_looks_to_a_long_run(self):
        assert len(looks(100_000, 256)) == 24
