"""Where each schedule changes, counted in steps taken."""

import pytest
import tensorflow as tf

from tfmacer.training import schedules


def _values(schedule, steps):
    return [float(schedule(tf.constant(step, tf.int64))) for step in steps]


def test_constant():
    assert _values(schedules.constant(0.1), [0, 1, 10**6]) == pytest.approx([0.1] * 3)


def test_deferred_starts_with_the_step_named():
    """After 30 epochs of 10 steps, step 300 (the 301st) is the first of the 31st epoch."""
    assert _values(schedules.deferred(16.0, 300), [0, 299, 300, 10**6]) == [0, 0, 16, 16]
    assert _values(schedules.deferred(16.0, 0), [0, 1]) == [16, 16]


def test_linear_reaches_its_value_and_stays():
    found = _values(schedules.linear(8.0, 4), range(7))
    assert found == pytest.approx([0, 2, 4, 6, 8, 8, 8])
    assert _values(schedules.linear(8.0, 0), [0]) == [8]


def test_by_epoch_grows_once_an_epoch_from_a_first_share():
    found = _values(schedules.by_epoch(9.0, 3, 4), range(14))
    assert found == pytest.approx([3] * 4 + [6] * 4 + [9] * 6)
    assert _values(schedules.by_epoch(3.0, 1.5, 2), range(4)) == pytest.approx([2, 2, 3, 3])
    for length in (0, 0.5, 1):
        assert _values(schedules.by_epoch(9.0, length, 4), [0, 9]) == [9, 9]


def test_piecewise_falls_tenfold_at_each_boundary():
    schedule = schedules.piecewise(0.1, [200, 100])
    found = _values(schedule, [0, 99, 100, 199, 200, 10**6])
    assert found == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert _values(schedules.piecewise(0.1, []), [0, 10**6]) == pytest.approx([0.1, 0.1])
