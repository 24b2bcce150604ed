"""The file of lines: locked, whole after a kill, and never written to when it is not there."""

import os
import stat

import pytest

from tfmacer.common.errors import UserError
from tfmacer.records import locked_file
from tfmacer.records.locked_file import LockedFile


def test_lines_follow_the_header_and_the_last_one_is_known(tmp_path):
    path = tmp_path / "deep" / "file"
    with LockedFile(path) as file:
        assert file.open("head") is None
        file.append("one")
        file.append("two")
    assert path.read_text() == "head\none\ntwo\n"
    with LockedFile(path) as file:
        assert file.open("head") == "two"
        file.append("three")
    assert path.read_text() == "head\none\ntwo\nthree\n"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("chunk", [1, 3, 1 << 16])
@pytest.mark.parametrize(
    ("text", "kept", "last"),
    [
        ("", "", None),
        ("torn", "", None),
        ("\n", "\n", ""),
        ("one\n", "one\n", "one"),
        ("one\ntwo, to", "one\n", "one"),
        ("one\nzwö\n", "one\nzwö\n", "zwö"),
        ("one\n\ntorn", "one\n\n", ""),
    ],
)
def test_a_torn_end_is_cut_off(tmp_path, monkeypatch, text, kept, last, chunk):
    monkeypatch.setattr(locked_file, "_CHUNK", chunk)
    path = tmp_path / "file"
    path.write_text(text)
    with LockedFile(path) as file:
        assert file.open() == last
        assert path.read_text() == kept
        file.append("more")
    assert path.read_text() == f"{kept}more\n"


def test_a_new_file_has_the_mode_asked_for_and_an_old_one_keeps_its_own(tmp_path):
    with LockedFile(tmp_path / "new", mode=0o600) as file:
        file.open()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    (tmp_path / "old").touch(0o640)
    (tmp_path / "old").chmod(0o640)
    with LockedFile(tmp_path / "old", mode=0o600) as file:
        file.open()
    assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o640


def test_only_what_was_asked_for_waits_for_the_disk(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr(os, "fsync", lambda file: waited.append(file))
    for fsync, times in ((False, 0), (True, 2)):
        with LockedFile(tmp_path / f"{fsync}", fsync=fsync) as file:
            file.open("head")
            file.append("line")
        assert len(waited) == times


def test_only_regular_files_are_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(UserError, match="not a regular file"):
            LockedFile(path)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_one_writer_at_a_time(tmp_path):
    with (
        LockedFile(tmp_path / "file"),
        pytest.raises(UserError, match="file: another process is writing this file"),
    ):
        LockedFile(tmp_path / "file")


def replaced(path):
    path.unlink()
    path.write_text("head\none\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda path: path.unlink(),
            r"file: was removed while it was written to \(No such",
        ),
        (lambda path: path.rename(path.with_name("aside")), "file: was removed"),
        (replaced, "file: was replaced by another file"),
        (lambda path: os.truncate(path, 0), "it has 0 bytes instead of 9"),
        (lambda path: path.open("a").write("x\n"), "was changed by another program"),
    ],
)
def test_a_file_that_is_not_there_any_more_is_noticed(tmp_path, change, message):
    path = tmp_path / "file"
    with LockedFile(path) as file:
        file.open("head")
        file.append("one")
        file.check()
        change(path)
        before = path.read_text() if path.exists() else None
        for attempt in (file.check, lambda: file.append("two")):
            with pytest.raises(UserError, match=message):
                attempt()
        assert (path.read_text() if path.exists() else None) == before
    assert not path.with_name("file.lock").exists()


def test_a_file_is_rotated_under_its_lock(tmp_path):
    path, aside = tmp_path / "file", tmp_path / "file.1"
    with LockedFile(path, mode=0o600) as file:
        file.open()
        file.append("one")
        assert file.size == 4
        file.rotate(aside)
        assert file.size == 0
        with pytest.raises(UserError, match="another process is writing this file"):
            LockedFile(path)
        file.append("two")
        with pytest.raises(UserError, match=r"file\.1: exists already"):
            file.rotate(aside)
        file.append("three")
    assert (aside.read_text(), path.read_text()) == ("one\n", "two\nthree\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_opened_once_more_it_goes_on_with_what_is_there(tmp_path):
    path = tmp_path / "file"
    with LockedFile(path) as file:
        file.open()
        file.append("one")
        with path.open("a") as other:
            other.write("two\nto")
        assert file.open() == "two"
        file.append("three")
        path.unlink()
        assert file.open() is None
        file.append("four")
        assert path.read_text() == "four\n"
        path.unlink()
        path.symlink_to("/dev/null")
        with pytest.raises(UserError, match="not a regular file"):
            file.open()
