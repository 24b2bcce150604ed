import dataclasses
import json
import math

import made_logs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.records import rows
from tfmacer.records.rows import Record

SOFT = made_logs.settings(Rule(n=2000, bound="bernstein"))
HARD = made_logs.settings()


def record(settings, idx=5):
    return rows.sealed(made_logs.record(settings, idx), settings.identity, settings.rule.soft)


def test_the_columns_begin_as_published_logs_do():
    assert rows.columns(soft=False)[:6] == ("idx", "label", "predict", "radius", "correct", "time")
    assert rows.columns(soft=False)[-1] == rows.columns(soft=True)[-1] == "digest"
    added = [name for name in rows.columns(soft=True) if name not in rows.columns(soft=False)]
    assert added == ["select_sums", "sums", "square_sums"]


@pytest.mark.parametrize("settings", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("idx", range(6))
def test_a_line_is_read_as_it_was_written(settings, idx):
    soft = settings.rule.soft
    written = record(settings, idx)
    line = rows.to_line(written, soft)
    assert rows.from_line(line, soft, made_logs.CLASSES) == written
    assert rows.to_line(rows.from_line(line, soft, made_logs.CLASSES), soft) == line


def test_a_line_as_it_is_spelled():
    line = rows.to_line(
        Record(
            idx=7,
            label=2,
            predict=-1,
            radius=0.0,
            correct=False,
            seconds=3723.5,
            clean=1,
            n0=10,
            n=20,
            select_counts=(0, 9, 0, 1),
            counts=(0, 12, 8, 0),
            p_lower=0.1,
            p_upper_second=None,
            bound="clopper_pearson",
            stopped_early=False,
            digest="0123456789abcdef",
        ),
        soft=False,
    )
    assert line.split("\t") == [
        "7", "2", "-1", "0.000000000", "0", "1:02:03.500000", "1", "10", "20",
        "1:9,3:1", "1:12,2:8", "0.1", "-", "clopper_pearson", "0", "0123456789abcdef",
    ]  # fmt: skip


@given(st.floats(0, 10))
def test_a_radius_is_written_rounded_toward_zero_and_read_as_written(radius):
    certificate = dataclasses.replace(_certificate(), radius=radius)
    kept = Record.of(certificate, idx=0, label=0, clean=0, seconds=0.0)
    text = rows.to_line(kept, soft=False).split("\t")[3]
    assert float(text) <= radius < float(text) + 1.1e-9
    assert float(text) == kept.radius
    assert f"{float(text):.9f}" == text


def _certificate():
    counts = Counts(select_counts=(100, 0), counts=(1990, 10), n0=100, n=2000)
    return certify(counts, HARD.rule, HARD.law)


def test_no_label_is_never_correct():
    certificate = _certificate()
    assert not Record.of(certificate, idx=0, label=-1, clean=0, seconds=0.0).correct
    abstained = dataclasses.replace(certificate, predict=-1, radius=0.0)
    assert not Record.of(abstained, idx=0, label=-1, clean=0, seconds=0.0).correct


@given(st.floats(0, 1e6))
def test_a_clock_keeps_microseconds(seconds):
    settings = made_logs.settings()
    kept = dataclasses.replace(record(settings), seconds=seconds)
    text = rows.to_line(kept, soft=False)
    assert math.isclose(
        rows.from_line(text, False, made_logs.CLASSES).seconds, seconds, abs_tol=6e-7, rel_tol=1e-15
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0:00:01.397021", 1.397021),
        ("0:02:32", 152.0),
        ("1 day, 0:00:01", 86401.0),
        ("2 days, 1:00:00.5", 176400.5),
        ("15.4", 15.4),
    ],
)
def test_other_projects_clocks_are_read(text, seconds):
    cells = dict(zip(rows.PUBLISHED_COLUMNS, ["0", "3", "3", "0.378", "1", text], strict=True))
    assert rows.from_published(cells) == Record(
        idx=0, label=3, predict=3, radius=0.378, correct=True, seconds=seconds
    )


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("radius", "0.5"),
        ("radius", "nan"),
        ("radius", "inf"),
        ("correct", "True"),
        ("correct", "2"),
        ("idx", "05"),
        ("idx", " 5"),
        ("n", "2000.0"),
        ("counts", "0:10,9:1990"),
        ("counts", "1:10,0:1990"),
        ("counts", "0:10,0:1990"),
        ("counts", "0:0,1:2000"),
        ("counts", ""),
        ("p_lower", "-"),
        ("p_lower", "0.50"),
        ("time", "fast"),
        ("stopped_early", "-"),
    ],
)
def test_any_other_spelling_is_refused(column, text):
    names = rows.columns(soft=False)
    cells = rows.to_line(record(HARD), soft=False).split("\t")
    cells[names.index(column)] = text
    with pytest.raises(ValueError, match=r".+"):
        rows.from_line("\t".join(cells), False, made_logs.CLASSES)


def test_columns_missing_or_too_many_are_refused():
    line = rows.to_line(record(HARD), soft=False)
    for wrong in (line + "\t0", line.rpartition("\t")[0], ""):
        with pytest.raises(ValueError, match="columns"):
            rows.from_line(wrong, False, made_logs.CLASSES)


def test_the_digest_covers_every_field_but_the_time():
    settings = made_logs.settings(Rule(n=2000, bound="bernstein"))
    before = record(settings)
    for field in dataclasses.fields(Record):
        value = getattr(before, field.name)
        changed = {
            int: lambda v: v + 1,
            float: lambda v: v * 0.5 + 0.1,
            bool: lambda v: not v,
            str: lambda v: v + "x",
            tuple: lambda v: (v[0] + 1, *v[1:]),
            type(None): lambda v: 0.5,
        }[type(value)](value)
        after = dataclasses.replace(before, **{field.name: changed})
        same = rows.sealed(after, settings.identity, soft=True).digest == before.digest
        assert same == (field.name in ("seconds", "digest")), field.name


def test_the_digest_covers_what_determines_a_row():
    before = record(HARD)
    fields = json.loads(HARD.identity)
    assert {"sigma", "alpha", "seed", "model_digest", "n", "dataset", "total"} <= set(fields)
    for field in fields:
        other = json.dumps(fields | {field: "other"}, sort_keys=True)
        assert rows.sealed(before, other, soft=False).digest != before.digest
