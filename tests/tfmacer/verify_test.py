import dataclasses
import json
import shutil

import made_logs
import numpy as np
import pytest
from PIL import Image

from tfmacer import certify, verify
from tfmacer.data.datasets import load_split
from tfmacer.guarantee.rule import Rule
from tfmacer.records import rows
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import read_log, settings_path
from tfmacer.records.sealing import pixels_digest

RULES = {
    "hard": Rule(n=2000, bilateral=True),
    "soft": Rule(n=2000, bound="bernstein"),
}


@pytest.fixture(params=RULES)
def path(request, tmp_path):
    path = tmp_path / "log.tsv"
    made_logs.write(path, made_logs.settings(RULES[request.param], total=12))
    return path


COLUMNS = rows.columns(soft=True, images=True)


def run(*arguments):
    return verify.main([str(argument) for argument in arguments])


def edit(path, place, column, text):
    """Changes one cell of the file by hand; its old text."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    k = lines[0].index(column)
    old, lines[place + 1][k] = lines[place + 1][k], text
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    return old


def test_a_good_log(path, capsys):
    assert run(path) == 0
    assert capsys.readouterr().out == f"{path}: 12 records verified, images not looked at\n"


def other_text(column, text):
    """Other texts of a cell that could stand there, above and below where it is a number."""
    if column in ("select_counts", "counts"):
        votes = {int(k): int(v) for k, v in (part.split(":") for part in text.split(","))}
        top = max(votes, key=lambda k: votes[k])
        moved = [(top, -1), ((top + 1) % 4, 1)]
        for sign in (1, -1):
            changed = dict(votes)
            for k, by in moved:
                changed[k] = changed.get(k, 0) + sign * by
            if min(changed.values()) >= 0:
                yield ",".join(f"{k}:{v}" for k, v in sorted(changed.items()) if v)
    elif column in ("select_sums", "sums", "square_sums"):
        first, *others = text.split(",")
        k, _, value = first.partition(":")
        for factor in (1 + 1e-9, 1 - 1e-9):
            yield ",".join([f"{k}:{float(value) * factor!r}", *others])
    elif column == "radius":
        yield f"{float(text) + 1e-9:.9f}"
        yield f"{max(float(text) - 1e-9, 0) or 0.1:.9f}"
    elif column in ("p_lower", "p_upper_second"):
        yield repr(0.5 if text == "-" else float(text) + 1e-15 + 1e-15 * float(text))
        yield "-" if column == "p_upper_second" and text != "-" else repr(0.25)
    elif column in ("correct", "stopped_early"):
        yield "10"[int(text)]
    elif column == "bound":
        yield "hoeffding"
    elif column == "digest":
        yield "0" * 16
    elif column == "pixels_sha256":
        yield "0" * 64
    elif column == "name":
        yield "other.png"
    else:
        yield str(int(text) + 1)
        yield str(int(text) - 1)


@pytest.mark.parametrize("column", [c for c in COLUMNS if c != "time"])
@pytest.mark.parametrize("place", [0, 5, 11])
def test_an_altered_cell_is_found_whichever_way(path, column, place, capsys):
    header, *lines = (line.split("\t") for line in path.read_text().splitlines())
    if column not in header:
        assert column in ("select_sums", "sums", "square_sums")
        return
    cells = dict(zip(header, lines[place], strict=True))
    for text in other_text(column, cells[column]):
        assert text != cells[column]
        edit(path, place, column, text)
        assert run(path) == 1, text
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {path}")
        assert "idx" in line or column in line
        edit(path, place, column, cells[column])
        assert run(path) == 0
        capsys.readouterr()


def test_the_time_may_change(path):
    edit(path, 3, "time", "1:00:00.000000")
    assert run(path) == 0


def test_the_first_row_and_field_that_differ_are_named(path, capsys):
    edit(path, 9, "radius", "9.000000000")
    edit(path, 4, "radius", "8.000000000")
    assert run(path) == 1
    error = capsys.readouterr().err
    assert f"{path}: idx 4: radius is 8.0, it should be" in error


@pytest.mark.parametrize("change", ["twice", "cut", "swapped", "added"])
def test_altered_lines_are_found(path, change, capsys):
    header, *lines = path.read_text().splitlines()
    swapped = [lines[0].replace("0\t", "1\t", 1), lines[1].replace("1\t", "0\t", 1)]
    lines = {
        "twice": [*lines, lines[3]],
        "cut": [lines[0][:40], *lines[1:]],
        "swapped": [*swapped, *lines[2:]],
        "added": [*lines, lines[3].replace("3\t", "12\t", 1)],
    }[change]
    path.write_text("\n".join([header, *lines]) + "\n")
    assert run(path) == 1
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("seal", [False, True], ids=["digest left", "digest made to fit"])
@pytest.mark.parametrize("factor", [0.5, 2.0])
@pytest.mark.parametrize("field", ["alpha", "sigma", "n", "n0"])
def test_altered_settings_are_found_whichever_way(path, field, factor, seal, capsys):
    beside = settings_path(path)
    if seal:
        settings = read_log(path).settings
        value = type(settings.fields()[field])(settings.fields()[field] * factor)
        beside.write_text(made_logs.changed(settings, **{field: value}).to_json())
    else:
        fields = json.loads(beside.read_text())
        beside.write_text(json.dumps(fields | {field: fields[field] * factor}))
    assert run(path) == 1
    error = capsys.readouterr().err
    assert str(path) in error
    # By its idx, or by its line where that is already not what such settings write.
    assert ("idx 0: " in error or f"{path}:2: " in error) == seal


def test_an_unfinished_log_is_verified_as_far_as_it_goes(tmp_path, capsys):
    path = tmp_path / "log.tsv"
    made_logs.write(path, made_logs.settings(total=12), images=5)
    with open(path, "a") as file:
        file.write("7\t1\t1\t0.")
    assert run(path) == 0
    out = capsys.readouterr().out
    assert f"{path}: unfinished: 7 of 12 images have no row, the first is idx 5" in out
    assert f"{path}: 5 records verified" in out
    assert run(path, "--complete") == 1
    assert "unfinished: 7 of 12 images" in capsys.readouterr().err


def test_a_selection_beyond_memory_is_counted(tmp_path, capsys):
    path = tmp_path / "log.tsv"
    small, huge = (made_logs.settings(total=total) for total in (2, 10**12))
    made_logs.write(path, small)
    lines = [huge.to_line(huge.sealed(record)) for record in read_log(path).records]
    path.write_text("\n".join(["\t".join(huge.columns), *lines]) + "\n")
    settings_path(path).write_text(huge.to_json())
    assert run(path) == 0
    assert f"unfinished: {10**12 - 2} of {10**12} images have no row" in capsys.readouterr().out
    assert run(path, "--complete") == 1


def test_a_row_taken_out_is_reported(path, capsys):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:4], *lines[5:]]))
    assert run(path) == 0
    assert "unfinished: 1 of 12 images have no row, the first is idx 3" in capsys.readouterr().out
    assert run(path, "--complete") == 1


def test_several_logs_are_all_verified(path, capsys):
    bad = path.with_name("bad.tsv")
    shutil.copy(path, bad)
    shutil.copy(settings_path(path), settings_path(bad))
    edit(bad, 2, "clean", "9")
    assert run(bad, path) == 1
    captured = capsys.readouterr()
    assert f"{path}: 12 records verified" in captured.out
    assert f"{bad}:4: corrupt line: clean is 9, not 0 to 3" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the logs to verify"),
        (["none.tsv"], "none.tsv: cannot be read"),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


# The images at hand.


@pytest.fixture
def folder(tmp_path):
    """A dataset of six pictures in two classes, and a log of them."""
    for i in range(6):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), 40 * i, np.uint8)).save(path)
    name = f"folder:{tmp_path / 'photos'}"
    settings = made_logs.settings(total=6, dataset=name, class_names=("a", "b"))
    split = load_split(name, "test")
    images, labels = split.take(range(6))
    with LockedTable(tmp_path / "log.tsv", settings) as writer:
        for idx, (image, label) in enumerate(zip(images, labels, strict=True)):
            made = made_logs.record(settings, idx, label=int(label))
            pixels, named = pixels_digest(image), split.image_name(idx)
            writer.append(dataclasses.replace(made, pixels_sha256=pixels, name=named))
    return tmp_path / "log.tsv", name


def test_a_log_is_compared_with_the_images_of_a_dataset(folder, capsys):
    log, name = folder
    assert run(log, f"--dataset={name}") == 0
    assert f"6 records verified, images compared with {name}" in capsys.readouterr().out
    photos = log.with_name("photos")
    Image.fromarray(np.full((2, 2), 41, np.uint8)).save(photos / "b" / "1.png")
    assert run(log) == 0
    capsys.readouterr()
    assert run(log, f"--dataset={name}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "idx 3 (b/1.png) was certified with pixels of SHA-256" in line


def test_a_log_is_compared_with_the_labels_of_a_dataset(folder, capsys):
    log, name = folder
    photos = log.with_name("photos")
    (photos / "a" / "4.png").rename(photos / "b" / "0.png")
    assert run(log, f"--dataset={name}") == 1
    assert "idx 2 (b/0.png) was certified with label 0, the image at hand has 1" in (
        capsys.readouterr().err
    )
    (photos / "a" / "2.png").unlink()
    assert run(log, f"--dataset={name}") == 1
    assert "has 5 images in test, the log was made from 6" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("altered", "said"),
    [
        ({"name": "b/5.png"}, "idx 0 (a/0.png) was certified with name b/5.png"),
        ({"class_names": ("b", "a")}, "class_names are ('b', 'a'), the dataset's ('a', 'b')"),
    ],
)
def test_a_log_is_compared_with_the_names_of_a_dataset(folder, tmp_path, capsys, altered, said):
    log, name = folder
    known = read_log(log)
    names = {key: value for key, value in altered.items() if key == "class_names"}
    with LockedTable(tmp_path / "altered.tsv", made_logs.changed(known.settings, **names)) as new:
        for record in known.records:
            new.append(dataclasses.replace(record, name=altered.get("name", record.name)))
    assert run(tmp_path / "altered.tsv") == 0
    assert run(tmp_path / "altered.tsv", f"--dataset={name}") == 1
    assert said in capsys.readouterr().err


def test_a_log_of_the_first_version_is_compared_by_its_labels(folder, tmp_path, capsys):
    log, name = folder
    known = read_log(log)
    first = dataclasses.replace(known.settings, format_version=1)
    with LockedTable(tmp_path / "first.tsv", first) as writer:
        for record in known.records:
            writer.append(record)
    assert run(tmp_path / "first.tsv", f"--dataset={name}") == 0
    assert "format version 1, which does not record the pixels" in capsys.readouterr().out


# Drawing again.


@pytest.fixture
def certified(tiny_run, tmp_path, monkeypatch):
    """A log certified by the command from a small network."""
    # TensorFlow is already running in the tests' process and keeps its thread counts.
    monkeypatch.setattr("tfmacer.votes.devices.use_threads", lambda *_: None)
    path = tmp_path / "log.tsv"
    plan = ["--num_examples=6", "--skip=150", "--n=1000", "--bound=bernstein", "--beta=2"]
    assert certify.main([f"--run_dir={tiny_run}", f"--out={path}", *plan]) == 0
    return path


def test_votes_are_drawn_again_from_the_run(certified, tiny_run, capsys):
    assert run(certified, "--replay", f"--run_dir={tiny_run}") == 0
    assert f"{certified}: 6 records verified, all votes drawn again" in capsys.readouterr().out


def test_a_record_that_only_drawing_again_can_refute_is_found(certified, tiny_run, capsys):
    """Another image's votes and label under a digest that was made to fit."""
    log = read_log(certified)
    moved = dataclasses.replace(log.records[1], idx=log.records[0].idx)
    sealed = log.settings.sealed(moved)
    lines = certified.read_text().splitlines()
    old = log.settings.to_line(log.records[0])
    lines[lines.index(old)] = log.settings.to_line(sealed)
    certified.write_text("\n".join(lines) + "\n")
    assert run(certified) == 0
    assert run(certified, "--replay", f"--run_dir={tiny_run}") == 1
    assert f"{certified}: idx 0: " in capsys.readouterr().err


def resealed(certified, path, **settings):
    """The log with other settings and every digest made to fit, as anyone can."""
    log = read_log(certified)
    with LockedTable(path, made_logs.changed(log.settings, **settings)) as writer:
        for record in log.records:
            writer.append(record)
    return path


@pytest.mark.parametrize("threads", ["2", 10**6, -1, True, None, [1]])
def test_threads_that_no_log_may_ask_for_are_refused(
    certified, tiny_run, tmp_path, capsys, threads
):
    path = resealed(certified, tmp_path / "l.tsv", environment={"intra_op_threads": threads})
    assert run(path, "--replay", f"--run_dir={tiny_run}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: intra_op_threads is {threads!r}, not 0 to 1024" in line


def test_threads_of_merged_shards_are_those_to_draw_with(
    certified, tiny_run, tmp_path, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr(
        "tfmacer.votes.devices.use_threads", lambda threads, *_: asked.append(threads)
    )
    for name, threads in (("same", (4, 4)), ("other", (2, 4))):
        shards = {
            f"shard {i}/2": {"intra_op_threads": each, "versions": {"tensorflow": f"2.{i}"}}
            for i, each in enumerate(threads)
        }
        path = resealed(certified, tmp_path / f"{name}.tsv", environment=shards)
        assert run(path, "--replay", f"--run_dir={tiny_run}") == 0
    assert asked == [4, 2]
    out = capsys.readouterr().out
    assert "same.tsv: made with TensorFlow 2.0, 2.1, here " in out
    assert "same.tsv: its parts" not in out
    assert "other.tsv: its parts were drawn with intra_op_threads of 2, 4, here 2: votes" in out


def test_versions_that_are_none_stop_nothing(certified, tiny_run, tmp_path):
    path = resealed(certified, tmp_path / "l.tsv", environment={"versions": "2"})
    assert run(path, "--replay", f"--run_dir={tiny_run}") == 0


def test_pixels_that_were_not_those_certified_are_found_though_sealed(
    certified, tiny_run, tmp_path, capsys
):
    log = read_log(certified)
    with LockedTable(tmp_path / "l.tsv", log.settings) as writer:
        for record in log.records:
            writer.append(dataclasses.replace(record, pixels_sha256="0" * 64))
    assert run(tmp_path / "l.tsv") == 0
    assert run(tmp_path / "l.tsv", "--replay", f"--run_dir={tiny_run}") == 1
    assert "idx 0: pixels_sha256 is 0000" in capsys.readouterr().err


def test_a_log_that_names_no_model_is_not_drawn_again(certified, tiny_run, tmp_path, capsys):
    path = resealed(certified, tmp_path / "l.tsv", model_digest="unknown")
    assert run(path) == 0
    assert run(path, "--replay", f"--run_dir={tiny_run}") == 1
    assert "model_digest is unknown: the records do not say of which model" in (
        capsys.readouterr().err
    )


def test_a_log_runs_no_command(certified, tiny_run, tmp_path, monkeypatch, capsys):
    """A dataset and a split that are a function and its argument."""
    monkeypatch.chdir(tmp_path)
    path = resealed(certified, tmp_path / "theirs.tsv", dataset="os:system", split="touch theirs")
    capsys.readouterr()
    assert run(path, "--replay", f"--run_dir={tiny_run}") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path}: records the dataset 'os:system'" in line
    assert line.endswith("give --dataset")
    assert run(path, "--replay", f"--run_dir={tiny_run}", "--dataset=mnist5k") == 1
    assert "records the split 'touch theirs', which is no name of one: give --split" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "theirs").exists()
    images = ["--dataset=mnist5k", "--split=test"]
    # The rows' digests are those of the settings that were edited.
    assert run(path, "--replay", f"--run_dir={tiny_run}", *images) == 0
    out = capsys.readouterr().out
    assert f"{path}: records 'os:system', 'touch theirs'; read are mnist5k, test" in out


def test_a_log_downloads_nothing(certified, tiny_run, tmp_path, downloads, capsys):
    theirs = {"dataset": "cifar10", "split": "test"}
    path = resealed(certified, tmp_path / "theirs.tsv", **theirs)
    replayed = [path, "--replay", f"--run_dir={tiny_run}", f"--data_dir={tmp_path}"]
    capsys.readouterr()
    assert run(*replayed) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"dataset 'cifar10' is not in {tmp_path}" in line
    assert line.endswith("give --data_dir, or --dataset=cifar10 to download it")
    assert not downloads
    assert run(*replayed, "--dataset=cifar10") == 1
    assert downloads == ["cifar10"]


def test_a_folder_is_named_on_the_command_line(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tfmacer.votes.devices.use_threads", lambda *_: None)
    (tmp_path / "photos").mkdir()
    for number, pixels in enumerate(load_split("mnist5k", "test").take([0, 1])[0]):
        image = Image.fromarray((pixels[:, :, 0] * 255).round().astype("uint8"))
        image.save(tmp_path / "photos" / f"{number}.png")
    folder, path = f"--dataset=folder:{tmp_path / 'photos'}", tmp_path / "log.tsv"
    assert certify.main([f"--run_dir={tiny_run}", folder, f"--out={path}", "--n=500"]) == 0
    capsys.readouterr()
    assert run(path, "--replay", f"--run_dir={tiny_run}") == 1
    assert "no code and no paths: give --dataset" in capsys.readouterr().err
    assert run(path, "--replay", f"--run_dir={tiny_run}", folder) == 0
    assert "2 records verified, all votes drawn again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["LOG", "--split=test"], "--split goes with --dataset or --replay"),
        (["LOG", "--data_dir=a"], "--data_dir goes with --dataset or --replay"),
        (["--audit_log=LOG", "--data_dir=a"], "--data_dir is for logs, an --audit_log keeps its"),
        (["LOG", "--replay"], "--replay needs exactly one of --run_dir, --saved_model and"),
        (["LOG", "--replay", "--run_dir=a", "--server=b"], "got --run_dir, --server"),
        (["LOG", "--run_dir=a"], "--run_dir is for --replay"),
        (["LOG", "--replay", "--server=localhost:1"], "--model_name goes with --server"),
        (
            ["LOG", "--replay", "--server=tf:8500", "--model_name=m"],
            "--server=tf:8500: not a loopback address",
        ),
        (["LOG", "--tls"], "--tls goes with --server"),
        (["LOG", "--replay", "--run_dir=nowhere"], "nowhere: not a finished run directory"),
        (["LOG", "--replay", "--saved_model=nowhere"], "--saved_model=nowhere: no such directory"),
    ],
)
def test_mistakes_about_the_source_are_one_line(path, capsys, arguments, message):
    assert run(*(argument.replace("LOG", str(path)) for argument in arguments)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
