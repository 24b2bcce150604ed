import random
import shutil

import made_logs
import pytest

from tfmacer.guarantee.rule import Rule
from tfmacer.records.logs import read_log, settings_path
from tfmacer.report.cautions import warnings
from tfmacer.report.comparison import name_runs, paired_differences, seed_groups
from tfmacer.report.copies import repeated, repetitions
from tfmacer.report.summary import Run

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


def write(tmp_path, name, **others):
    rule = others.pop("rule", Rule(n=2000))
    path = tmp_path / f"{name}.tsv"
    return Run(name, made_logs.write(path, made_logs.settings(rule, **others)))


def published(path, seed, rows=range(40), *, order=0, seconds=1):
    """A log of another project, of a network that the seed stands for."""
    chance = random.Random(seed)
    lines = []
    for idx in range(max(rows) + 1):
        right, radius = chance.random() < 0.8, chance.uniform(0, 1)
        predict = idx % 10 if right else -1
        line = f"{idx}\t{idx % 10}\t{predict}\t{radius * right:.3}\t{int(right)}\t{seconds}\n"
        lines += [line] if idx in rows else []
    random.Random(order).shuffle(lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(HEADER + "".join(lines))
    return read_log(path)


@pytest.mark.parametrize(
    ("rows", "others", "images"),
    [
        (range(40), {}, 40),
        (range(40), {"order": 5, "seconds": 2}, 40),
        (range(0, 40, 2), {}, 20),
        (range(15, 55), {}, 25),
        (range(3), {}, 3),
        (range(25, 65), {}, 0),
        (range(21, 61), {}, 0),
    ],
    ids=["copied", "reordered", "every second", "overlapping", "a few", "too few", "still too few"],
)
def test_a_published_log_is_known_by_its_rows(tmp_path, rows, others, images):
    first = Run("a", published(tmp_path / "a", 1))
    second = Run("b", published(tmp_path / "b", 1, rows, **others))
    assert repeated(second, first) == repeated(first, second) == images


def test_another_format_version_is_no_other_run(tmp_path):
    first = write(tmp_path, "a", format_version=1)
    second = write(tmp_path, "b", class_names=("a", "b", "c", "d"))
    assert repeated(second, first) == 40
    assert repeated(second, write(tmp_path, "c", format_version=1, seed=9)) == 0


def test_networks_that_differ_in_one_row_are_two(tmp_path):
    log = published(tmp_path / "a", 1)
    changed = log.path.read_text().replace("\t0\t0\t0.", "\t0\t0\t1.", 1)
    (tmp_path / "b").write_text(changed)
    assert changed != log.path.read_text()
    assert repeated(Run("a", log), Run("b", read_log(tmp_path / "b"))) == 0
    other = Run("c", published(tmp_path / "c", 2))
    assert repeated(Run("a", log), other) == 0


def test_copies_are_no_seeds(tmp_path):
    """Three seeds, of which two are one and the same, under another name and in another order."""
    logs = [
        published(tmp_path / "seed0" / "log", 1),
        published(tmp_path / "seed1" / "log", 2),
        published(tmp_path / "seed2" / "log", 1, order=3, seconds=2),
    ]
    runs = name_runs(logs)
    (group,) = seed_groups(runs)
    assert [run.name for run in group.runs] == ["seed0", "seed1"]
    assert seed_groups([runs[0], runs[2]]) == []
    assert [(pair.first.name, pair.second.name) for pair in paired_differences(runs, [0.0])] == [
        ("seed1", "seed0"),
        ("seed2", "seed1"),
    ]
    said = "seed2: repeats seed0 on 40 images (the same rows, or the same draws): no further seed"
    assert any(said in text for text in warnings(runs))


def test_our_logs_are_known_by_model_seed_and_rule(tmp_path):
    first = write(tmp_path, "first")
    shutil.copy(first.log.path, tmp_path / "copy.tsv")
    shutil.copy(settings_path(first.log.path), tmp_path / "copy.tsv.json")
    copy = Run("copy", read_log(tmp_path / "copy.tsv"))
    part = write(tmp_path, "part", start=5, skip=3)
    others = [
        write(tmp_path, "other", model_digest="b" * 64),
        write(tmp_path, "again", seed=4),
        write(tmp_path, "more", rule=Rule(n=3000)),
    ]
    found = repetitions([first, *others, copy, part])
    assert [(each.run.name, each.of.name, each.images) for each in found] == [
        ("copy", "first", 40),
        ("part", "first", 12),
    ]
    assert [run.name for group in seed_groups([first, copy, others[1]]) for run in group.runs] == [
        "first",
        "again",
    ]
    assert seed_groups([first, copy]) == []
    assert paired_differences([first, part], [0.0]) == []


def test_our_log_without_its_settings_is_still_a_copy(tmp_path):
    ours = write(tmp_path, "ours")
    lines = [line.split("\t")[:6] for line in ours.log.path.read_text().splitlines()]
    (tmp_path / "bare").write_text("".join("\t".join(line) + "\n" for line in lines))
    assert repeated(Run("bare", read_log(tmp_path / "bare")), ours) == 40
