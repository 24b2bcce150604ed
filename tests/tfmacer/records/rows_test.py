import dataclasses
import math
import urllib.parse

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
FIRST = made_logs.settings(format_version=1)
SHA = "0f" * 32


def record(settings, idx=5):
    return settings.sealed(made_logs.record(settings, idx))


def test_the_columns_begin_as_published_logs_do():
    assert HARD.columns[:6] == ("idx", "label", "predict", "radius", "correct", "time")
    assert HARD.columns[-3:] == SOFT.columns[-3:] == ("pixels_sha256", "name", "digest")
    added = [name for name in SOFT.columns if name not in HARD.columns]
    assert added == ["select_sums", "sums", "square_sums"]
    assert FIRST.columns == (*HARD.columns[:-3], "digest")


@pytest.mark.parametrize("settings", [HARD, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("idx", range(6))
def test_a_line_is_read_as_it_was_written(settings, idx):
    written = record(settings, idx)
    line = settings.to_line(written)
    assert settings.from_line(line) == written
    assert settings.to_line(settings.from_line(line)) == line


def test_the_first_version_had_no_images():
    written = record(FIRST)
    found = FIRST.from_line(FIRST.to_line(written))
    assert found == dataclasses.replace(written, pixels_sha256=None, name=None)
    with pytest.raises(ValueError, match="columns"):
        HARD.from_line(FIRST.to_line(written))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("3/a b.png", "3/a b.png"),
        ("猫/ä.jpg", "猫/ä.jpg"),
        ("tab\t new\n 100%.png", "tab%09 new%0A 100%25.png"),
        ("\x1b[31m\u202e.png", "%1B[31m%E2%80%AE.png"),
        ("-", "%2D"),
        (b"\xff.png".decode(errors="surrogateescape"), "%FF.png"),
        ("", "-"),
        (None, "-"),
    ],
)
def test_names_stand_in_one_cell_and_are_printable(name, text):
    made = Record.of(
        _certificate(), idx=5, label=0, clean=0, seconds=1.0, pixels_sha256=SHA, name=name
    )
    assert rows.to_cells(made, HARD.rule)["name"] == text
    if name:
        assert urllib.parse.unquote(text, errors="surrogateescape") == name


def test_a_line_as_it_is_spelled():
    line = HARD.to_line(
        Record(
            idx=7,
            label=2,
            predict=-1,
            radius=0.0,
            seconds=3723.5,
            clean=1,
            draws=Counts(n0=10, n=20, select_counts=(0, 9, 0, 1), counts=(0, 12, 8, 0)),
            p_lower=0.1,
            pixels_sha256=SHA,
            name="3/a.png",
            digest="0123456789abcdef",
        )
    )
    assert line.split("\t") == [
        "7", "2", "-1", "0.000000000", "0", "1:02:03.500000", "1", "10", "20",
        "1:9,3:1", "1:12,2:8", "0.1", "-", "clopper_pearson", "1", SHA, "3/a.png",
        "0123456789abcdef",
    ]  # fmt: skip


@given(st.floats(0, 10))
def test_a_radius_is_written_rounded_toward_zero_and_read_as_written(radius):
    certificate = dataclasses.replace(_certificate(), radius=radius)
    kept = Record.of(certificate, idx=0, label=0, clean=0, seconds=0.0, pixels_sha256=SHA)
    text = HARD.to_line(kept).split("\t")[3]
    assert float(text) <= radius < float(text) + 1.1e-9
    assert float(text) == kept.radius
    assert f"{float(text):.9f}" == text


def _certificate():
    counts = Counts(select_counts=(100, 0), counts=(1990, 10), n0=100, n=2000)
    return certify(counts, HARD.rule, HARD.classifier.distribution)


def test_no_label_is_never_correct():
    certificate = _certificate()
    abstained = dataclasses.replace(certificate, predict=-1, radius=0.0)
    for each in (certificate, abstained):
        made = Record.of(each, idx=0, label=-1, clean=0, seconds=0.0, pixels_sha256=SHA)
        assert not made.correct


@given(st.floats(0, 1e6))
def test_a_clock_keeps_microseconds(seconds):
    settings = made_logs.settings()
    kept = dataclasses.replace(record(settings), seconds=seconds)
    found = settings.from_line(settings.to_line(kept))
    assert math.isclose(found.seconds, seconds, abs_tol=6e-7, rel_tol=1e-15)


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
        idx=0, label=3, predict=3, radius=0.378, seconds=seconds
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
        ("time", "9" * 400 + ":00:00.000000"),
        ("idx", "9" * 5000),
        ("n", "1" + "0" * 400),
        ("pixels_sha256", "-"),
        ("pixels_sha256", "0F" * 32),
        ("name", ""),
        ("name", "a\x1b.png"),
        ("stopped_early", "-"),
    ],
)
def test_any_other_spelling_is_refused(column, text):
    cells = HARD.to_line(record(HARD)).split("\t")
    cells[HARD.columns.index(column)] = text
    with pytest.raises(ValueError, match=r".+"):
        HARD.from_line("\t".join(cells))


def test_columns_missing_or_too_many_are_refused():
    line = HARD.to_line(record(HARD))
    for wrong in (line + "\t0", line.rpartition("\t")[0], ""):
        with pytest.raises(ValueError, match="columns"):
            HARD.from_line(wrong)


def test_the_digest_covers_every_cell_but_the_time():
    settings = made_logs.settings(Rule(n=2000, bound="bernstein"))
    before = record(settings)
    draws = before.draws
    moved = {name: (value[0] - 1, value[1] + 1, *value[2:]) for name, value in vars(draws).items()
             if name.endswith("counts")}  # fmt: skip
    moved |= {name: (value[0] * 0.5, *value[1:]) for name, value in vars(draws).items()
              if name.endswith("sums")}  # fmt: skip
    others = {
        "idx": before.idx + 1, "label": before.label - 1, "predict": before.predict + 1,
        "radius": before.radius + 0.25, "seconds": 9.0, "clean": before.clean + 1,
        "p_lower": before.p_lower / 2, "p_upper_second": 0.5, "pixels_sha256": SHA,
        "name": "x.png", "digest": "0" * 16,
    }  # fmt: skip
    assert set(others) == {field.name for field in dataclasses.fields(Record)} - {"draws"}
    changed = {name: dataclasses.replace(before, **{name: value}) for name, value in others.items()}
    for name, value in moved.items():
        after = dataclasses.replace(draws, **{name: value})
        changed[name] = dataclasses.replace(before, draws=after)
    for name, after in changed.items():
        same = settings.sealed(after).digest == before.digest
        assert same == (name in ("seconds", "digest")), name


OTHERS = {
    "classifier": {"sigma": 0.25, "model_digest": "b", "generator": "philox"},
    "rule": {"alpha": 0.01, "n": 2001},
    "images": {"dataset": "letters", "total": 41, "class_names": ("a", "b")},
    "": {"seed": 4, "format_version": 1},
}


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [(part, name, value) for part, each in OTHERS.items() for name, value in each.items()],
)
def test_the_digest_covers_what_determines_a_row(part, name, value):
    other = replaced(part, name, value)
    assert other.sealed(record(HARD)).digest != record(HARD).digest


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("images", "start", 1),
        ("images", "skip", 2),
        ("images", "num_examples", 9),
        ("images", "shard", "0/2"),
        ("", "warnings", ("x",)),
    ],
)
def test_the_digest_does_not_depend_on_which_other_rows_there_are(part, name, value):
    assert replaced(part, name, value).sealed(record(HARD)) == record(HARD)


def replaced(part, name, value):
    """Settings with one field changed, their own or that of a part of them."""
    if not part:
        return dataclasses.replace(HARD, **{name: value})
    changed = dataclasses.replace(getattr(HARD, part), **{name: value})
    return dataclasses.replace(HARD, **{part: changed})
