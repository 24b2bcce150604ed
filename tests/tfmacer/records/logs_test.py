import errno
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import made_logs
import published_logs
import pytest

from tfmacer.common.errors import UserError
from tfmacer.guarantee.rule import Rule
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import is_log, read_log, settings_path
from tfmacer.records.merging import merge

ROOT = Path(__file__).parents[3]
HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime"


def same_rows(path):
    """The log's lines sorted by idx, without `time`."""
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    return sorted(
        ([cell for i, cell in enumerate(line) if i != 5] for line in lines[1:]),
        key=lambda cells: int(cells[0]),
    )


@pytest.mark.parametrize("rule", [Rule(n=2000), Rule(n=2000, bound="hoeffding")], ids=str)
def test_what_is_written_is_read_back_sorted(tmp_path, rule):
    settings = made_logs.settings(rule)
    path = tmp_path / "deep" / "log.tsv"
    with LockedTable(path, settings) as writer:
        order = list(writer.missing)
        random.Random(0).shuffle(order)
        for idx in order:
            writer.append(made_logs.record(settings, idx))
        assert not writer.missing
        assert [record.idx for record in writer.rows] == order
    log = read_log(path)
    assert [record.idx for record in log.records] == list(range(40))
    assert log.settings == settings
    assert log.unfinished is None
    log.check()
    assert sorted(p.name for p in path.parent.iterdir()) == ["log.tsv", "log.tsv.json"]


def test_each_row_is_on_disk_when_append_returns(tmp_path):
    settings = made_logs.settings()
    with LockedTable(tmp_path / "log.tsv", settings) as writer:
        for count, idx in enumerate(list(writer.missing)[:5], 1):
            writer.append(made_logs.record(settings, idx))
            assert len(read_log(writer.path).records) == count


def test_a_row_is_appended_once_and_for_a_selected_image(tmp_path):
    settings = made_logs.settings(skip=2)
    with LockedTable(tmp_path / "log.tsv", settings) as writer:
        writer.append(made_logs.record(settings, 4))
        for idx in (4, 3, 40):
            with pytest.raises(ValueError, match=f"idx {idx}"):
                writer.append(made_logs.record(settings, idx))
    assert [record.idx for record in read_log(tmp_path / "log.tsv").records] == [4]


def test_a_finished_log_opens_with_nothing_missing_and_stays_as_it_is(tmp_path):
    path = tmp_path / "log.tsv"
    settings = made_logs.settings(total=5)
    made_logs.write(path, settings)
    before = path.read_bytes()
    with LockedTable(path, settings) as writer:
        assert not writer.missing
        assert len(writer.rows) == 5
    assert path.read_bytes() == before


def test_cut_off_anywhere_it_resumes_to_the_same_log(tmp_path):
    """A kill or a crash leaves a prefix of the file; every prefix must resume."""
    settings = made_logs.settings(total=3)
    whole = tmp_path / "whole.tsv"
    made_logs.write(whole, settings)
    data = whole.read_bytes()
    path = tmp_path / "cut.tsv"
    settings_path(path).write_bytes(settings_path(whole).read_bytes())
    ends = [place for place, byte in enumerate(data) if byte == ord("\n")]
    for size in sorted({*range(0, len(data), 9), *ends, *(end + 1 for end in ends)}):
        path.write_bytes(data[:size])
        if size > ends[0]:
            assert len(read_log(path).records) == data[:size].count(b"\n") - 1
        made_logs.write(path, settings)
        assert same_rows(path) == same_rows(whole), size


def test_settings_without_a_log_resume(tmp_path):
    settings = made_logs.settings(total=3)
    settings_path(tmp_path / "log.tsv").write_text(settings.to_json())
    assert len(made_logs.write(tmp_path / "log.tsv", settings).records) == 3


APPENDER = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
import made_logs
from tfmacer.records.locked_table import LockedTable
settings = made_logs.settings(total=150)
with LockedTable(Path(sys.argv[1]), settings) as writer:
    for idx in reversed(list(writer.missing)):
        writer.append(made_logs.record(settings, idx))
"""


def appender(path):
    return [sys.executable, "-c", APPENDER, str(path), str(ROOT), str(ROOT / "tests" / "support")]


def test_killed_and_resumed_every_image_stands_once(tmp_path):
    path = tmp_path / "log.tsv"
    moments = random.Random(1)
    for _ in range(3):
        rows = path.read_text().count("\n") if path.exists() else 0
        with subprocess.Popen(appender(path)) as process:
            while process.poll() is None:
                if path.exists() and path.read_text().count("\n") > rows + moments.randint(2, 30):
                    process.send_signal(signal.SIGKILL)
                    break
                time.sleep(0.002)
    assert subprocess.run(appender(path)).returncode == 0
    made_logs.write(tmp_path / "whole.tsv", made_logs.settings(total=150))
    assert same_rows(path) == same_rows(tmp_path / "whole.tsv")


def test_a_second_writer_is_refused_and_harms_nothing(tmp_path):
    path = tmp_path / "log.tsv"
    settings = made_logs.settings(total=150)
    with LockedTable(path, settings) as writer:
        writer.append(made_logs.record(settings, 7))
        other = subprocess.run(appender(path), capture_output=True, text=True)
        assert other.returncode != 0
        assert f"{path}: another process is writing this file" in other.stderr
        with pytest.raises(UserError, match="another process is writing this file"):
            LockedTable(path, settings)
        writer.append(made_logs.record(settings, 8))
    assert [record.idx for record in read_log(path).records] == [7, 8]
    assert subprocess.run(appender(path)).returncode == 0


def test_the_lock_is_free_after_a_refusal(tmp_path):
    path = tmp_path / "log.tsv"
    made_logs.write(path, made_logs.settings(total=3))
    with pytest.raises(UserError, match="other settings"):
        LockedTable(path, made_logs.settings(total=3, seed=9))
    with LockedTable(path, made_logs.settings(total=3)):
        pass


def test_other_settings_are_refused_and_named(tmp_path):
    path = tmp_path / "log.tsv"
    made_logs.write(path, made_logs.settings(), images=3)
    before = path.read_bytes()
    with pytest.raises(UserError) as error:
        LockedTable(path, made_logs.settings(Rule(n=3000), seed=4, sigma=0.25))
    for text in (str(path), "sigma is 0.5, not 0.25", "n is 2000, not 3000", "seed is 3, not 4"):
        assert text in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_warnings_may_differ(tmp_path):
    made_logs.write(tmp_path / "log.tsv", made_logs.settings(total=5), images=2)
    settings = made_logs.settings(total=5, warnings=("reworded",))
    assert made_logs.write(tmp_path / "log.tsv", settings).unfinished is None


def test_a_file_without_settings_is_not_overwritten(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text("precious\n")
    with pytest.raises(UserError, match=r"exists without log\.tsv\.json"):
        LockedTable(path, made_logs.settings())
    assert path.read_text() == "precious\n"


def corruptions(lines):
    """Complete lines that no writer wrote."""
    middle = lines[2]
    return {
        "half a line": [*lines[:2], middle[: len(middle) // 2], *lines[3:]],
        "a line of zeros": [*lines[:2], "\0" * 40, *lines[3:]],
        "an empty line": [*lines[:2], "", *lines[2:]],
        "two lines in one": [*lines[:2], middle + lines[3], *lines[4:]],
        "a line twice": [*lines, middle],
        "a wrong digest": [*lines[:2], middle[:-1] + "0x"[middle[-1] == "0"], *lines[3:]],
        "an altered radius": [*lines[:2], middle.replace("0.", "1.", 1), *lines[3:]],
        "another header": [lines[0].replace("clean", "dirty"), *lines[1:]],
        "no header": lines[1:],
    }


@pytest.mark.parametrize("what", corruptions(["a\tb"] * 6))
def test_corrupt_complete_lines_are_refused_and_left_alone(tmp_path, what):
    path = tmp_path / "log.tsv"
    settings = made_logs.settings(total=8)
    made_logs.write(path, settings, images=6)
    path.write_text("\n".join(corruptions(path.read_text().splitlines())[what]) + "\n")
    before = path.read_bytes()
    with pytest.raises(UserError) as error:
        LockedTable(path, settings)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_row_of_another_image_is_refused(tmp_path):
    path = tmp_path / "log.tsv"
    made_logs.write(path, made_logs.settings())
    beside = settings_path(path)
    beside.write_text(made_logs.settings(skip=2).to_json())
    with pytest.raises(UserError, match="idx 1 is corrupt or was altered"):
        LockedTable(path, made_logs.settings(skip=2))


def test_a_full_disk_is_one_clear_line_and_no_part_of_a_row(tmp_path, monkeypatch):
    path = tmp_path / "log.tsv"
    settings = made_logs.settings(total=6)
    write = os.write
    with LockedTable(path, settings) as writer:
        writer.append(made_logs.record(settings, 0))
        before = path.read_bytes()

        def half_then_full(file, data):
            if len(data) < 20:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(file, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", half_then_full)
        with pytest.raises(UserError, match="log.tsv: cannot be written: No space left on device"):
            writer.append(made_logs.record(settings, 1))
        assert path.read_bytes() == before
        assert 1 in writer.missing
        monkeypatch.undo()
        writer.append(made_logs.record(settings, 1))
    assert made_logs.write(path, settings).unfinished is None


LIMITED = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
"""


@pytest.mark.parametrize("limit", [0, 600, 1200, 1300, 3000])
def test_a_file_that_cannot_grow_keeps_its_whole_rows(tmp_path, limit):
    """The kernel itself cuts the write short, at whatever byte."""
    path = tmp_path / "log.tsv"
    command = appender(path)
    command[2] = LIMITED + command[2]
    command.insert(3, str(limit))
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "cannot be written: File too large" in refused.stderr.splitlines()[-1]
    assert {file.name for file in tmp_path.iterdir()} <= {"log.tsv", "log.tsv.json"}
    if path.exists():
        assert path.stat().st_size <= limit
        assert path.read_bytes()[-1:] in (b"\n", b"")
    made_logs.write(path, made_logs.settings(total=150))
    assert read_log(path).unfinished is None


@pytest.mark.parametrize("where", ["folder", "file/log.tsv"])
def test_a_path_that_cannot_be_a_log_is_one_clear_line(tmp_path, where):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    path = tmp_path / where
    with pytest.raises(UserError, match=str(path)) as error:
        LockedTable(path, made_logs.settings())
    assert "\n" not in str(error.value)


def test_a_path_with_nul_is_one_clear_line(tmp_path):
    path = tmp_path / "a\0.tsv"
    assert not is_log(path)
    for use in (read_log, lambda path: LockedTable(path, made_logs.settings())):
        with pytest.raises(UserError, match=r"a\\x00.tsv: cannot be \w+: embedded null"):
            use(path)
    shard = made_logs.write(tmp_path / "0.tsv", made_logs.settings(shard="0/1")).path
    with pytest.raises(UserError, match=r"a\\x00.tsv: cannot be written: embedded null"):
        merge([shard], path)


# Other projects' logs.


def test_a_published_log_is_read_as_it_is(tmp_path):
    path = tmp_path / "sigma_0.25"
    path.write_text(f"{HEADER}\n20\t7\t-1\t0.0\t0\t15.6\n0\t3\t3\t0.378\t1\t0:02:32.717239\n")
    log = read_log(path)
    assert log.settings is None
    assert [record.idx for record in log.records] == [0, 20]
    assert log.records[0].radius == 0.378
    assert log.records[0].seconds == pytest.approx(152.717239)
    assert log.records[1].predict == -1
    assert log.records[1].draws is None
    assert (log.unfinished, log.altered) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        f"{HEADER}\r\n0\t1\t1\t0.5\t1\t1.0\r\n",
        f"{HEADER}\n0\t1\t1\t0.5\t1\t1.0",
        f"{HEADER}\n\n0\t1\t1\t0.5\t1\t1.0\n\n",
        "idx\tlabel\tpredict\tradius\tcorrect\n0\t1\t1\t0.5\t1\n",
        f"{HEADER}\tnote\n0\t1\t1\t0.5\t1\t1.0\thard\n",
        f"{HEADER}\n0\t1\t1\t0.5\tTrue\t0:00:14.451090\n",
        f"{HEADER}\n 0\t1 \t1\t +.5e0\t1\t1\n",
    ],
    ids=[
        "carriage returns", "no last newline", "empty lines", "no time", "further columns",
        "truth in words", "padded",
    ],
)  # fmt: skip
def test_variants_of_the_published_format(tmp_path, text):
    path = tmp_path / "log"
    path.write_bytes(text.encode())
    (record,) = read_log(path).records
    assert (record.idx, record.label, record.radius, record.correct) == (0, 1, 0.5, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a certification log"),
        ("idx\tlabel\tpredict\tcorrect\ttime\n", "not a certification log"),
        (f"{HEADER}\n0\t1\t1\t0.5\t1\n", "log:2: corrupt line: 5 columns, not 6"),
        (f"{HEADER}\n1\t1\t1\t.5\t1\t1\n0\t1\t1\t0.37", "log:3: corrupt line: 4 columns, not 6"),
        (f"{HEADER}\n# sigma 0.25\n0\t1\t1\t0.5\t1\t1.0\n", "log:2: .*'# sigma 0.25'"),
        (
            f"{HEADER}\n0\t1\t1\t0.5\t1\t1.0\n\n0\t1\t1\t0.5\t1\t1.0\n",
            "log:4: idx 0 is there twice, first in line 2",
        ),
        (f"{HEADER}\tradius\n0\t1\t1\t.5\t1\t1\t9\n", "log:1: the column 'radius' is there twice"),
    ],
)
def test_what_is_no_log_is_refused_with_its_place(tmp_path, text, message):
    path = tmp_path / "log"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_log(path)


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("0 3 3 -9.51 1 1", "radius is -9.51, a certified radius is 0 or more"),
        ("0 3 3 inf 1 1", "radius is 'inf', not a finite number"),
        ("0 3 3 1e101 1 1", "radius is 1e101, which is no distance of images"),
        ("0 3 3 nan 1 1", "radius is 'nan', not a finite number"),
        ("0 3 3 1e999 1 1", "radius is '1e999', not a finite number"),
        ("0 3 3 1_0 1 1", "radius is '1_0', not a finite number"),
        ("0 3 3 big 1 1", "radius is 'big', not a finite number"),
        ("0 3 -1 0.2 0 1", "radius is 0.2, but predict is -1"),
        ("0 7 5 0.3 1 1", "correct is 1, but label is 7 and predict is 5"),
        ("0 7 7 0.3 0 1", "correct is 0, but label is 7 and predict is 7"),
        ("0 7 7 0.3 False 1", "correct is False, but label is 7 and predict is 7"),
        ("0 -1 -1 0 1 1", "correct is 1, but label is -1 and predict is -1"),
        ("0 3 3 0.3 2 1", "correct is '2', not one of 0, 1, False, True"),
        ("0 3 3 0.3 nan 1", "correct is 'nan', not one of 0, 1, False, True"),
        ("0 3 3 0.3 tru 1", "correct is 'tru', not one of 0, 1, False, True"),
        ("-1 3 3 0.3 1 1", "idx is -1, positions begin at 0"),
        ("0 -2 3 0.3 0 1", "label is -2 and predict 3"),
        ("0 3 -2 0 0 1", "label is 3 and predict -2"),
        ("0 3.0 3 0.3 1 1", "label is '3.0', not a whole number"),
        ("\u0663 3 3 0.3 1 1", "idx is '\u0663', not a whole number"),
        ("9" * 30 + " 3 3 0.3 1 1", "not a whole number"),
        ("0 3 3 0.3 1 -1", "time is '-1', less than 0"),
        ("0 3 3 0.3 1 0:0", "time is '0:0', not a finite number"),
        (f"0 3 3 0.3 1 {'9' * 400}:00:00", "time is '999"),
    ],
)
def test_a_row_that_cannot_be_true_is_refused_with_its_line(tmp_path, cells, message):
    path = tmp_path / "log"
    path.write_text(f"{HEADER}\n1\t3\t-1\t0.0\t0\t1\n" + cells.replace(" ", "\t") + "\n")
    with pytest.raises(UserError) as error:
        read_log(path)
    assert str(error.value).startswith(f"{path}:3: corrupt line: ")
    assert message in str(error.value)


def test_all_wrong_lines_are_named(tmp_path):
    path = tmp_path / "log"
    rows = [("-9.51", 1), ("0.3", 1), ("0.3", 0), ("0.3", 1)]
    lines = [f"{i}\t3\t3\t{radius}\t{correct}\t1" for i, (radius, correct) in enumerate(rows)]
    path.write_text("\n".join([HEADER, *lines, lines[1], ""]))
    with pytest.raises(UserError) as error:
        read_log(path)
    assert str(error.value) == (
        f"{path}:2: corrupt line: radius is -9.51, a certified radius is 0 or more; "
        "wrong as well: line 4, 6"
    )
    path.write_text("\n".join([HEADER, *["x"] * 20, ""]))
    with pytest.raises(UserError, match=r"wrong as well: line 3, 4, 5, 6, 7, and 14 more$"):
        read_log(path)


def test_our_log_needs_its_settings(tmp_path):
    made_logs.write(tmp_path / "log.tsv", made_logs.settings(total=3))
    settings_path(tmp_path / "log.tsv").unlink()
    with pytest.raises(UserError, match=r"its settings, log\.tsv\.json, are missing"):
        read_log(tmp_path / "log.tsv")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("table", r"log\.tsv: was removed"),
        ("settings", r"log\.tsv\.json: cannot be read: No such file"),
        ("edit", r"log\.tsv\.json: was changed while"),
    ],
)
def test_a_log_removed_or_edited_meanwhile_is_not_done(tmp_path, what, message):
    path = tmp_path / "log.tsv"
    settings = made_logs.settings(total=2)

    def write():
        with LockedTable(path, settings) as writer:
            for idx in list(writer.missing):
                writer.append(made_logs.record(settings, idx))
            if what == "edit":
                settings_path(path).write_text(made_logs.settings(total=3).to_json())
            else:
                (path if what == "table" else settings_path(path)).unlink()

    with pytest.raises(UserError, match=message):
        write()
    assert not path.with_name("log.tsv.lock").exists()


def test_a_log_of_the_first_version_is_read_and_not_resumed(tmp_path):
    first = made_logs.settings(total=4, format_version=1)
    log = made_logs.write(tmp_path / "log.tsv", first, images=3)
    log.check()
    assert log.settings == first
    assert '"class_names"' not in settings_path(log.path).read_text()
    before = log.path.read_bytes()
    with pytest.raises(UserError, match="log.tsv: .* only since version 2 do logs record the pix"):
        LockedTable(log.path, made_logs.settings(total=4))
    assert log.path.read_bytes() == before


def test_a_selection_beyond_memory_is_counted(tmp_path):
    path = tmp_path / "log.tsv"
    huge = made_logs.settings(total=10**12)
    lines = ["\t".join(huge.columns)]
    lines += [huge.to_line(huge.sealed(made_logs.record(huge, idx))) for idx in (0, 3)]
    path.write_text("\n".join(lines) + "\n")
    settings_path(path).write_text(huge.to_json())
    found = read_log(path)
    assert found.unfinished == f"{10**12 - 2} of {10**12} images have no row, the first is idx 1"
    assert found.altered is None


def test_classes_beyond_memory_are_refused(tmp_path):
    with pytest.raises(UserError, match="num_classes must be 2 to 1048576, got 1000000000000"):
        made_logs.smoothing(num_classes=10**12)
    path = tmp_path / "log.tsv"
    made_logs.write(path, made_logs.settings(total=2))
    many = made_logs.settings(total=2, num_classes=2**20)
    settings_path(path).write_text(many.to_json())
    path.write_text(path.read_text() + "\n" * 1000)
    with pytest.raises(UserError, match="1048576 classes each do not fit into memory"):
        read_log(path)


def test_missing_and_binary_files_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="none.tsv: cannot be read: No such file"):
        read_log(tmp_path / "none.tsv")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match="picture.png: cannot be read: not UTF-8"):
        read_log(tmp_path / "picture.png")
    assert not is_log(tmp_path / "picture.png")
    assert not is_log(tmp_path)


@pytest.mark.parametrize("name", published_logs.LOGS)
def test_published_logs_of_two_papers(name, tmp_path):
    log = read_log(published_logs.write(tmp_path, name))
    assert len(log.records) == (6 if name.startswith("cohen") else 20)
    assert all(record.correct == (record.predict == record.label) for record in log.records)
    assert log.records[0].seconds == {"cohen_cifar10": 15.4, "cohen_imagenet": 152.717239}.get(
        name, pytest.approx(1.4, abs=0.01)
    )
    assert is_log(log.path)
