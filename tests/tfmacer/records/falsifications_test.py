"""The table of attacks: read as written, resumed, refused where altered; how many flips are too
many.
"""

import dataclasses
import json

import made_logs
import numpy as np
import pytest
from scipy import stats

from tfmacer.errors import UserError
from tfmacer.records.falsifications import (
    RISK,
    Attacked,
    AttackSettings,
    Falsification,
    FalsificationWriter,
    falsification_beside,
    log_digest,
    read_falsification,
)
from tfmacer.records.logs import is_log, settings_path

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


ROWS = [row(0), row(3, attack_radius=None, attack_class=-1), row(6, flipped_within=True)]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "deep" / "log.falsified.tsv"
    with FalsificationWriter(path, SETTINGS) as writer:
        assert writer.missing == [0, 3, 6]
        for each in ROWS[::-1]:
            writer.append(each)
    return path


def test_what_was_written_is_read_in_order(table):
    found = read_falsification(table)
    assert list(found.rows) == ROWS
    assert found.settings == SETTINGS
    assert found.missing == []
    assert found.within == [ROWS[2]]
    assert not is_log(table)
    assert not table.with_name(table.name + ".lock").exists()


def test_a_table_is_resumed_after_its_last_whole_line(table):
    whole = table.read_bytes()
    table.write_bytes(whole[: whole.rindex(b"\n", 0, -1) + 9])
    with FalsificationWriter(table, SETTINGS) as writer:
        assert writer.missing == [0]
        writer.append(ROWS[0])
        assert writer.falsification.missing == []
        assert [each.idx for each in writer.falsification.rows] == [0, 3, 6]
    assert table.read_bytes() == whole


def test_one_process_at_a_time(table):
    with FalsificationWriter(table, SETTINGS), pytest.raises(UserError, match="another process"):
        FalsificationWriter(table, SETTINGS)


def test_other_settings_are_refused(table):
    with pytest.raises(UserError, match="other settings: steps is 20, not 40"):
        FalsificationWriter(table, dataclasses.replace(SETTINGS, steps=40))
    settings_path(table).unlink()
    with pytest.raises(UserError, match=r"exists without log\.falsified\.tsv\.json"):
        FalsificationWriter(table, SETTINGS)


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
    with pytest.raises(UserError, match="stands twice"):
        read_falsification(table)
    table.write_text("idx\tlabel\n")
    with pytest.raises(UserError, match="not a falsification"):
        read_falsification(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 21}, "altered after it was written"),
        ({"format_version": 2}, "altered"),
    ],
)
def test_altered_settings_are_refused(table, change, message):
    beside = settings_path(table)
    beside.write_text(json.dumps(json.loads(beside.read_text()) | change))
    with pytest.raises(UserError, match=message):
        read_falsification(table)


def test_flips_allowed_are_a_quantile_of_the_binomial():
    for count in (1, 10, 100, 500):
        settings = dataclasses.replace(SETTINGS, examined=count)
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
    assert falsification_beside(log.path) == tmp_path / "log.falsified.tsv"
