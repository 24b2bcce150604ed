import dataclasses
import shutil

import made_logs
import pytest

from tfmacer import merge as command
from tfmacer.common.errors import UserError
from tfmacer.guarantee.rule import Rule
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import read_log, settings_path
from tfmacer.records.merging import merge

RULE = Rule(n=2000, bound="bernstein")


def shard(folder, i, parts=3, rule=RULE, images=None, **others):
    path = folder / f"shard{i}of{parts}.tsv"
    made_logs.write(path, made_logs.settings(rule, shard=f"{i}/{parts}", **others), images=images)
    return path


def shards(folder, parts=3, **others):
    return [shard(folder, i, parts, **others) for i in range(parts)]


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_merged_shards_are_the_log_of_the_undivided_run(tmp_path, parts):
    """Byte for byte: rows, digests and settings (of which 50 shards have empty ones)."""
    whole = made_logs.write(tmp_path / "whole.tsv", made_logs.settings(RULE))
    merge(reversed(shards(tmp_path, parts)), tmp_path / "out" / "merged.tsv")
    merged = tmp_path / "out" / "merged.tsv"
    assert merged.read_bytes() == whole.path.read_bytes()
    assert settings_path(merged).read_bytes() == settings_path(whole.path).read_bytes()
    with LockedTable(merged, made_logs.settings(RULE)) as writer:
        assert not writer.missing


def test_merged_rows_are_sorted_and_verified(tmp_path):
    log = merge(shards(tmp_path, skip=3, start=1), tmp_path / "merged.tsv")
    assert [record.idx for record in log.records] == list(range(1, 40, 3))
    read_log(tmp_path / "merged.tsv").check()


def refused(paths, out, message):
    with pytest.raises(UserError, match=message) as error:
        merge(paths, out)
    assert "\n" not in str(error.value)
    assert not out.exists()


def test_a_gap_is_refused(tmp_path):
    paths = shards(tmp_path)
    refused([paths[0], paths[2]], tmp_path / "out.tsv", "shards are missing: 1/3")


def test_a_duplicate_is_refused(tmp_path):
    paths = shards(tmp_path)
    refused([*paths, paths[1]], tmp_path / "out.tsv", r"holds shard 1/3, and so does")


def test_an_unfinished_shard_is_refused(tmp_path):
    paths = [shard(tmp_path, 0), shard(tmp_path, 1, images=3), shard(tmp_path, 2)]
    refused(paths, tmp_path / "out.tsv", "shard1of3.tsv: not finished: 10 of 13 images have no row")


def test_shards_beyond_number_are_not_listed(tmp_path):
    path = shard(tmp_path, 0, 10**12)
    refused([path], tmp_path / "out.tsv", f"1/{10**12}, .* and {10**12 - 6} more")


def test_shards_of_other_divisions_are_refused(tmp_path):
    paths = [shard(tmp_path, 0, 2), shard(tmp_path, 1, 3)]
    refused(paths, tmp_path / "out.tsv", "one of 3 shards, .* is one of 2")


@pytest.mark.parametrize(
    "others",
    [{"seed": 4}, {"rule": Rule(n=3000, bound="bernstein")}, {"sigma": 1.0}, {"model_digest": "b"}],
)
def test_other_settings_are_refused_and_named(tmp_path, others):
    paths = [shard(tmp_path, 0), shard(tmp_path, 1), shard(tmp_path, 2, **others)]
    field = next(iter(others)).replace("rule", "n")
    refused(paths, tmp_path / "out.tsv", f"shard2of3.tsv: settings differ from .*: {field} is")


def test_shards_of_the_first_version_are_joined_among_themselves(tmp_path):
    paths = [shard(tmp_path, i, format_version=1) for i in range(3)]
    log = merge(paths, tmp_path / "out.tsv")
    assert log.settings.format_version == 1
    assert read_log(log.path).records == log.records
    newer = shard(tmp_path / "newer", 2)
    refused([*paths[:2], newer], tmp_path / "new.tsv", "shard2of3.tsv: settings differ .* is 2, no")


def test_an_altered_shard_is_refused(tmp_path):
    paths = shards(tmp_path)
    text = paths[1].read_text().splitlines()
    cells = text[1].split("\t")
    cells[3] = "0.123456789"
    paths[1].write_text("\n".join([text[0], "\t".join(cells), *text[2:]]) + "\n")
    refused(paths, tmp_path / "out.tsv", r"shard1of3.tsv: the row of idx 1 is corrupt or was")


def test_a_shard_that_does_not_follow_from_its_votes_is_refused_though_sealed(tmp_path):
    paths = shards(tmp_path)
    log = read_log(paths[1])
    other = tmp_path / "other" / paths[1].name
    with LockedTable(other, log.settings) as writer:
        for record in log.records:
            more = record.radius + (0.5 if record.predict >= 0 else 0.0)
            writer.append(dataclasses.replace(record, radius=round(more, 9)))
    refused(
        [paths[0], other, paths[2]], tmp_path / "out.tsv", r"out.tsv: not written: idx \d+: rad"
    )


def test_a_whole_log_or_another_projects_is_no_shard(tmp_path):
    whole = made_logs.write(tmp_path / "whole.tsv", made_logs.settings(RULE))
    refused([whole.path], tmp_path / "out.tsv", "whole.tsv: not a shard")
    (tmp_path / "other.tsv").write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n")
    refused([tmp_path / "other.tsv"], tmp_path / "out.tsv", "other.tsv: not a log of tfmacer")


@pytest.mark.parametrize("name", ["out.tsv", "out.tsv.json"])
def test_nothing_is_overwritten(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(UserError, match=f"{name}: exists"):
        merge(shards(tmp_path), tmp_path / "out.tsv")
    assert (tmp_path / name).read_text() == "precious"


def test_shards_of_different_machines_are_joined_with_a_warning(tmp_path):
    """A certificate is as valid; only drawing its votes again may differ."""
    environments = [{"intra_op_threads": threads} for threads in (1, 1, 2)]
    paths = [shard(tmp_path, i, environment=each) for i, each in enumerate(environments)]
    log = merge(paths, tmp_path / "out.tsv")
    assert log.settings.environment == {f"shard {i}/3": environments[i] for i in range(3)}
    assert len(log.settings.warnings) == 1
    assert "different environments" in log.settings.warnings[0]
    assert read_log(tmp_path / "out.tsv").settings == log.settings


def test_warnings_of_the_shards_are_kept_once(tmp_path):
    paths = [shard(tmp_path, i, warnings=("contiguous", f"own {i}")) for i in range(3)]
    warnings = merge(paths, tmp_path / "out.tsv").settings.warnings
    assert warnings == ("contiguous", "own 0", "own 1", "own 2")


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out.tsv"
    paths = [str(path) for path in shards(tmp_path)]
    assert command.main([*paths, f"--out={out}"]) == 0
    assert f"{out}: 40 images from 3 shards" in capsys.readouterr().out
    assert command.main([f"--out={out}", *paths]) == 1
    assert "exists" in capsys.readouterr().err


def test_a_merge_that_was_cut_short_is_made_again(tmp_path):
    """Its settings are written first; those of other shards are left alone."""
    out, paths = tmp_path / "out.tsv", shards(tmp_path)
    whole = merge(paths, tmp_path / "whole.tsv")
    shutil.copy(settings_path(whole.path), settings_path(out))
    others = [shard(tmp_path / "others", i, seed=9) for i in range(3)]
    refused(others, out, "out.tsv.json: exists")
    merge(paths, out)
    assert out.read_bytes() == whole.path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.tsv"], "--out is missing"),
        (["--out=o.tsv"], "name the shards to merge"),
        (["--out=o.tsv", "none.tsv"], "none.tsv: cannot be read"),
    ],
)
def test_the_commands_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_shards_rows_are_those_of_the_whole(tmp_path):
    """The digest names what determines a row, not which rows stand beside it."""
    whole = made_logs.write(tmp_path / "whole.tsv", made_logs.settings(RULE))
    part = read_log(shard(tmp_path, 1))
    by_idx = {record.idx: record for record in whole.records}
    assert part.records == tuple(by_idx[record.idx] for record in part.records)
    images = dataclasses.replace(part.settings.images, shard=None)
    assert dataclasses.replace(part.settings, images=images) == whole.settings
