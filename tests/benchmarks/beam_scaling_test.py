import pytest

pytest.importorskip("apache_beam", reason="Apache Beam, the extra beam, is not installed")

from benchmarks import beam_scaling
from tfmacer.common.errors import UserError
from tfmacer.records.partial_results import PartialResult
from tfmacer.records.rows import Record


def part(worker, started, finished, images=10):
    record = Record(idx=0, label=0, predict=0, radius=0.0, seconds=0.0)
    return PartialResult(
        records=((record,) * images,),
        environment={},
        worker=worker,
        started=started,
        finished=finished,
    )


def test_speed_is_that_of_the_stretch_in_which_all_are_warm():
    """Of b: half of its second part and all of its third lie between 14 and 20; of a: three."""
    a = [part("a", 10, 12), *(part("a", t, t + 2) for t in (12, 14, 16, 18))]
    b = [part("b", 10, 14), part("b", 14, 17), part("b", 17, 20), part("b", 20, 23)]
    found = beam_scaling.warm_speed([*b, *a], 3.0)
    assert found.startup == 11
    assert found.images_per_second == pytest.approx((30 + 20) / 6)


def test_a_part_across_the_end_counts_in_proportion():
    parts = [part("a", 0, 1), part("a", 1, 3), part("b", 0, 1), part("b", 1, 5)]
    found = beam_scaling.warm_speed(parts, 0.0)
    assert found.images_per_second == pytest.approx((10 + 5) / 2)


def test_too_few_parts_say_nothing():
    with pytest.raises(UserError, match="too few images"):
        beam_scaling.warm_speed([part("a", 0, 1), part("b", 0, 2), part("b", 2, 3)], 0.0)
