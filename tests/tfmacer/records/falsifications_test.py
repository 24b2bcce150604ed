"""The table of attacks: read as written, resumed, refused where altered; how many flips are too
many.
"""

import dataclasses
import json
import math

import made_logs
import numpy as np
import pytest
from scipy import stats

from tfmacer.common.errors import UserError
from tfmacer.records import sealing
from tfmacer.records.attack_rows import Attacked, AttackSettings
from tfmacer.records.falsifications import (
    RISK,
    Falsification,
    falsification_path,
    log_digest,
    read_falsification,
)
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import is_log, read_log, settings_path

SETTINGS = AttackSettings(
    log_digest="1" * 16, model_digest="a" * 64, sigma=0.5, noise_family="gaussian",
    noise_params={}, norm="l2", certificate_alpha=0.001, attack="pgd", steps=20, num_noise=32,
    n=2000, alpha=0.001, clip=False, seed=0, examined=4, images=(0, 3, 6),
    environment={"device": "CPU"},
)  # fmt: skip


def row(idx, **fields):
    defaults = {
        "label": 1, "predict": 1, "radius": 0.25, "flipped_within": False,
        "attack_radius": 0.4, "attack_class": 2, "searched": 0.5, "tests": 9, "seconds": 1.5,
    }  # fmt: skip
    return Attacked(idx=idx, **(defaults | fields))


ROWS = [
    row(0),
    row(3, attack_radius=None, attack_class=-1),
    row(6, flipped_within=True, attack_radius=0.2),
]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "deep" / "log.falsified.tsv"
    with LockedTable(path, SETTINGS) as writer:
        assert list(writer.missing) == [0, 3, 6]
        for each in ROWS[::-1]:
            writer.append(each)
    return path


def test_what_was_written_is_read_in_order(table):
    found = read_falsification(table)
    assert list(found.rows) == ROWS
    assert found.settings == SETTINGS
    assert found.unfinished is None
    assert found.within == [ROWS[2]]
    assert not is_log(table)
    assert not table.with_name(table.name + ".lock").exists()


def test_a_table_is_resumed_after_its_last_whole_line(table):
    whole = table.read_bytes()
    table.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 9])
    with LockedTable(table, SETTINGS) as writer:
        assert list(writer.missing) == [0]
        assert [each.idx for each in writer.rows] == [3, 6]
        writer.append(ROWS[0])
    assert table.read_bytes() == whole


def test_one_process_at_a_time(table):
    with LockedTable(table, SETTINGS), pytest.raises(UserError, match="another process"):
        LockedTable(table, SETTINGS)


def test_other_settings_are_refused(table):
    with pytest.raises(UserError, match="other settings: steps is 20, not 40"):
        LockedTable(table, dataclasses.replace(SETTINGS, steps=40))
    settings_path(table).unlink()
    with pytest.raises(UserError, match=r"exists without log\.falsified\.tsv\.json"):
        LockedTable(table, SETTINGS)


@pytest.mark.parametrize("column", ["radius", "flipped_within", "attack_radius", "label"])
def test_an_altered_row_is_refused(table, column):
    header, first, *rest = table.read_text().splitlines()
    values = first.split("\t")
    place = header.split("\t").index(column)
    values[place] = "1" if column == "flipped_within" and values[place] == "0" else "0"
    table.write_text("\n".join([header, "\t".join(values), *rest, ""]))
    with pytest.raises(UserError, match=r":2: corrupt line"):
        read_falsification(table)


def test_rows_that_do_not_belong_are_refused(table):
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1], ""]))
    with pytest.raises(UserError, match="is there twice"):
        read_falsification(table)
    table.write_text("idx\tlabel\n")
    with pytest.raises(UserError, match="falsified.tsv:1: the columns"):
        read_falsification(table)


@pytest.mark.parametrize("change", [{"steps": 21}, {"format_version": 2}])
def test_altered_settings_are_refused(table, change):
    beside = settings_path(table)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
    with pytest.raises(UserError, match="altered after it was written"):
        read_falsification(table)


@pytest.mark.parametrize(
    "change",
    [
        {"attack_radius": 0.2},
        {"flipped_within": True},
        {"flipped_within": True, "attack_radius": None, "attack_class": -1},
        {"attack_radius": None},
        {"attack_radius": 0.0},
        {"attack_radius": math.nan},
        {"attack_radius": math.inf},
        {"attack_class": -1},
        {"attack_class": 1},
        {"radius": 0.0},
        {"radius": math.nan},
        {"predict": -1},
        {"label": -2},
        {"searched": math.nan},
        {"searched": -1.0},
        {"tests": 0},
        {"tests": -1, "attack_radius": None, "attack_class": -1},
    ],
)
def test_what_no_attack_finds_is_refused_though_sealed(table, change):
    made = SETTINGS.sealed(row(3, **change))
    header, *_ = table.read_text().splitlines()
    table.write_text(f"{header}\n{SETTINGS.to_line(made)}\n")
    with pytest.raises(UserError, match=r"falsified\.tsv:2: corrupt line: ") as error:
        read_falsification(table)
    assert "\n" not in str(error.value)


def test_a_row_of_an_image_that_was_not_selected_is_refused(table):
    text = table.read_text().replace(SETTINGS.to_line(SETTINGS.sealed(ROWS[0])), "")
    table.write_text(text.replace("\n\n", "\n") + SETTINGS.to_line(SETTINGS.sealed(row(1))) + "\n")
    with pytest.raises(UserError, match="idx 1 is corrupt or was altered"):
        read_falsification(table)


@pytest.mark.parametrize(
    "change",
    [
        {"images": [0, 3, 3]},
        {"images": [3, 0, 6]},
        {"images": [-1, 3, 6]},
        {"images": [0.0, 3, 6]},
        {"images": 3},
        {"examined": 2},
        {"examined": 10**30},
        {"examined": True},
        {"alpha": 0.0},
        {"certificate_alpha": 1.0},
        {"alpha": "0.001"},
        {"norm": "linf"},
        {"noise_family": "cauchy"},
        {"noise_params": {"k": "1"}},
        {"noise_params": []},
        {"clip": 1},
        {"steps": 20.0},
        {"log_digest": None},
        {"colour": "red"},
        {"format_version": 2},
        {"format_version": True},
        {"format_version": None},
    ],
)
def test_settings_that_cannot_be_are_refused_though_sealed(table, change):
    beside = settings_path(table)
    fields = json.loads(beside.read_text()) | change
    del fields["digest"]
    beside.write_text(sealing.seal(fields))
    with pytest.raises(UserError, match=r"\.json: not usable as a falsification's") as error:
        read_falsification(table)
    assert "\n" not in str(error.value)


def test_flips_allowed_are_a_quantile_of_the_binomial():
    for count in (1, 10, 100, 500):
        settings = dataclasses.replace(SETTINGS, examined=count, images=(0,))
        found = Falsification(None, (row(0),), settings)
        assert found.allowed == stats.binom.ppf(1 - RISK, count, 0.002)
    assert Falsification(None, (), SETTINGS).allowed == 0


def test_sound_certificates_are_called_false_no_more_often_than_risked():
    """All certificates and confirmations as wrong as they may be, 20,000 tables of 200 images."""
    settings = dataclasses.replace(SETTINGS, certificate_alpha=0.01, alpha=0.005, examined=200)
    allowed = Falsification(None, (row(0),), settings).allowed
    rng = np.random.default_rng(7)
    wrong = (rng.random((20_000, 200)) < 0.01) | (rng.random((20_000, 200)) < 0.005)
    called = np.mean(wrong.sum(axis=1) > allowed)
    assert called <= RISK + 3 * np.sqrt(RISK / 20_000)
    # One fewer would be too few.
    assert np.mean(wrong.sum(axis=1) > allowed - 1) > RISK


def test_a_log_is_known_by_its_rows(tmp_path):
    log = made_logs.write(tmp_path / "log.tsv", made_logs.settings(total=5))
    same = made_logs.write(tmp_path / "same.tsv", made_logs.settings(total=5))
    other = made_logs.write(tmp_path / "other.tsv", made_logs.settings(total=5, seed=4))
    assert log_digest(log) == log_digest(same) != log_digest(other)
    assert falsification_path(log.path) == tmp_path / "log.falsified.tsv"


@pytest.mark.parametrize(
    ("settings", "row", "message"),
    [
        ({"certificate_alpha": 0.5}, {}, r"certificate_alpha is 0.5, that of log.tsv is 0.001"),
        ({"sigma": 0.25}, {}, "sigma is 0.25, that of log.tsv is 0.5"),
        ({"model_digest": "b" * 64}, {}, "model_digest is b"),
        ({"log_digest": "0" * 16}, {}, "log_digest is 0"),
        ({"examined": 1000}, {}, "examined is 1000, log.tsv has 5 images"),
        ({}, {"radius": 0.001}, r"idx \d: label, predict and radius are \(\d, \d, 0.001\), in"),
        ({}, {"label": -1}, r"idx \d: label, predict and radius are \(-1, "),
    ],
)
def test_findings_about_other_certificates_are_refused_though_sealed(
    tmp_path, settings, row, message
):
    """Each would have them answer for what was not attacked, or allow more flips."""
    log = made_logs.write(tmp_path / "log.tsv", made_logs.settings(total=5))
    found = made_logs.write_attacks(log)
    found.check_of(log)
    first = dataclasses.replace(found.rows[0], **row)
    known = dataclasses.replace(found.settings, **settings)
    with LockedTable(tmp_path / "other.tsv", known) as writer:
        for each in (first, *found.rows[1:]):
            writer.append(each)
    with pytest.raises(UserError, match=f"other.tsv: {message}"):
        read_falsification(tmp_path / "other.tsv").check_of(log)


def test_a_log_of_another_project_has_no_findings(tmp_path):
    path = tmp_path / "theirs.tsv"
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t1.0\n")
    log = made_logs.write(tmp_path / "log.tsv", made_logs.settings(total=5))
    with pytest.raises(UserError, match="theirs.tsv: not a log of tfmacer"):
        made_logs.write_attacks(log).check_of(read_log(path))
