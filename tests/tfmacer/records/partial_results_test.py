import dataclasses
import json

import made_logs
import pytest

from tfmacer.common.errors import UserError
from tfmacer.guarantee.rule import Rule
from tfmacer.records.logs import read_log, settings_path
from tfmacer.records.merging import join
from tfmacer.records.partial_results import PartialResult

RULES = (Rule(n=2000), Rule(n=2000, bound="bernstein"))


def settings(**others):
    return [made_logs.settings(rule, **others) for rule in RULES]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """The logs of an undivided run, one for each rule."""
    folder = tmp_path_factory.mktemp("logs")
    return [made_logs.write(folder / f"{one.rule.bound}.tsv", one) for one in settings()]


def part(logs, indices, **others):
    records = tuple(
        tuple(record for record in log.records if record.idx in indices) for log in logs
    )
    fields = {"environment": logs[0].settings.environment, "worker": "a:1"} | others
    return PartialResult(records=records, started=1.5, finished=2.25, **fields)


def test_a_part_is_read_as_it_was_written(logs):
    made = part(logs, range(3, 6))
    assert PartialResult.from_text(made.to_text(settings()), (3, 4, 5), settings()) == made


def test_a_torn_part_is_known_wherever_it_ends(logs):
    text = part(logs, range(2)).to_text(settings())
    for end in [*range(0, len(text) - 2, 97), len(text) - 2]:
        with pytest.raises(ValueError, match=r"."):
            PartialResult.from_text(text[:end], (0, 1), settings())


def test_an_altered_part_is_known(logs):
    fields = json.loads(part(logs, range(2)).to_text(settings()))
    fields["worker"] = "b:1"
    with pytest.raises(ValueError, match="digest does not match"):
        PartialResult.from_text(json.dumps(fields), (0, 1), settings())


def test_a_part_of_other_images_or_settings_is_known(logs):
    text = part(logs, range(2)).to_text(settings())
    with pytest.raises(ValueError, match="other images"):
        PartialResult.from_text(text, (0, 1, 2), settings())
    with pytest.raises(ValueError, match="other settings"):
        PartialResult.from_text(text, (0, 1), settings(seed=5))


def test_joined_parts_are_the_logs_of_the_undivided_run(logs, tmp_path):
    """Byte for byte, in whatever order the parts come."""
    parts = [part(logs, range(i, min(i + 7, 40))) for i in range(0, 40, 7)]
    for number, (log, one) in enumerate(zip(logs, settings(), strict=True)):
        out = tmp_path / log.path.name
        without = dataclasses.replace(one, environment={})
        join(list(reversed(parts)), number, without, out)
        assert out.read_bytes() == log.path.read_bytes()
        assert settings_path(out).read_bytes() == settings_path(log.path).read_bytes()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([range(10), range(20, 40)], "10 of 40 images have no row, the first is idx 10"),
        ([range(20), range(19, 40)], "idx 19 is there twice among the parts"),
        ([], "40 of 40 images have no row"),
    ],
)
def test_a_missing_and_a_doubled_image_are_refused(logs, tmp_path, blocks, message):
    parts = [part(logs, block) for block in blocks]
    with pytest.raises(UserError, match=message):
        join(parts, 0, settings()[0], tmp_path / "out.tsv")
    assert list(tmp_path.iterdir()) == []


def test_workers_that_differ_are_recorded_and_warned_of(logs, tmp_path):
    other = {"device": "GPU"}
    parts = [part(logs, range(20)), part(logs, range(20, 40), environment=other)]
    join(parts, 0, settings()[0], tmp_path / "out.tsv")
    found = read_log(tmp_path / "out.tsv").settings
    assert found.environment == {"worker 1": logs[0].settings.environment, "worker 2": other}
    assert "different environments" in found.warnings[-1]


def test_a_part_that_does_not_follow_from_its_votes_is_not_joined(logs, tmp_path):
    """Sealed again, as anyone can who may write where the parts are."""
    made = part(logs, range(40))
    first, *others = (made.records[0], *made.records[1:])
    changed = tuple(
        dataclasses.replace(record, radius=round(record.radius + (record.predict >= 0), 9))
        for record in first
    )
    forged = dataclasses.replace(made, records=(changed, *others))
    text = forged.to_text(settings())
    read = PartialResult.from_text(text, tuple(range(40)), settings())
    with pytest.raises(UserError, match=r"out.tsv: not written: idx \d+: radius is \d"):
        join([read], 0, settings()[0], tmp_path / "out.tsv")
    assert list(tmp_path.iterdir()) == []
