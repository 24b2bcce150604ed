"""The audit log is written when the call is over, not before, and nothing of it can vanish."""

import dataclasses
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_backend import SMOOTHING

from serving.sidecar import audit
from serving.sidecar.audit import AuditLog
from tfmacer import verify
from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.records import chain, locked_file
from tfmacer.records.audit import read_audit_log, verify_entry
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.records.sealing import pixels_digest

RULE = Rule(n=1000, block_size=64, bound="late_spending")


class FakeContext:
    """Keeps its callbacks until the call ends."""

    def __init__(self, *, ended: bool) -> None:
        self.ended = ended
        self.callbacks: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if not self.ended:
            self.callbacks.append(callback)
        return not self.ended


def made(number: int = 0) -> AuditEntry:
    """A certificate with noise of its own."""
    counts = Counts(select_counts=(100, 0, 0), counts=(990, 10, 0), n0=100, n=1000)
    values = np.full((4, 4, 1), 0.5, np.float32)
    return AuditEntry(
        certificate_id=f"c{number}",
        time="2026-01-01T00:00:00+00:00",
        request_id="r",
        client="ipv4:127.0.0.1",
        pixels_sha256=pixels_digest(values),
        pixels=values,
        model_name="m",
        model_version=3,
        smoothing=SMOOTHING,
        select_seed=np.array([number, -2], np.int32),
        estimate_seed=np.array([number, 4], np.int32),
        certificate=certify(counts, RULE, SMOOTHING.distribution),
    )


def write(path: Path, *numbers: int, **options) -> AuditLog:
    """Writes entries as one sidecar would in its life; the log, closed."""
    log = AuditLog(path, **({"pixels": True} | options))
    for number in numbers:
        log.after(FakeContext(ended=True), made(number))  # type: ignore[arg-type]
    log.close()
    return log


def wait(log: AuditLog) -> None:
    """Until the first entry is written."""
    limit = time.monotonic() + 60
    while log.head.number < 1:
        assert time.monotonic() < limit
        time.sleep(0.005)


def numbers(path: Path) -> list[int]:
    """Which entries the log holds; each must be right."""
    found = list(read_audit_log(path))
    assert [verify_entry(entry) for entry in found] == [None] * len(found)
    return [entry.place.link.number for entry in found if entry.place]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def test_nothing_is_written_before_the_end(path: Path) -> None:
    log, context = AuditLog(path, pixels=False), FakeContext(ended=False)
    log.after(context, made(1))  # type: ignore[arg-type]
    assert path.read_text() == ""
    for callback in context.callbacks:
        callback()
    log.close()
    record = json.loads(path.read_text())
    assert record["select_seed"] == [1, -2]
    assert record["estimate_seed"] == [1, 4]


def test_the_end_of_a_call_does_not_wait_for_the_disk(path: Path, monkeypatch) -> None:
    free = threading.Event()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: free.wait(60) and fsync(file))
    failures: list[None] = []
    log = AuditLog(path, pixels=True, on_failure=lambda: failures.append(None))
    for number in range(5):
        log.after(FakeContext(ended=True), made(number))  # type: ignore[arg-type]
    assert log.head.number == 0
    free.set()
    log.close()
    assert log.head.number == 5
    assert failures == []


def test_what_a_dead_disk_makes_wait_is_bounded_and_counted(path: Path, monkeypatch, caplog):
    free = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda file: free.wait(60))
    monkeypatch.setattr(audit, "_MOST_WAITING", 2)
    failures: list[None] = []
    log = AuditLog(path, pixels=True, on_failure=lambda: failures.append(None))
    for number in range(9):
        log.after(FakeContext(ended=True), made(number))  # type: ignore[arg-type]
    free.set()
    log.close()
    assert 2 <= log.head.number <= 3  # one may have been with the disk already
    assert len(failures) == 9 - log.head.number
    assert "is not in the audit log: 2 entries wait for the disk" in caplog.text


def test_an_old_log_is_continued(path: Path) -> None:
    heads = [write(path, 1).head, write(path, 2, 3).head]
    assert numbers(path) == [1, 2, 3]
    assert [head.number for head in heads] == [1, 3]
    assert verify.main([f"--audit_log={path}", f"--audit_head={heads[1].digest}"]) == 0
    assert verify.main([f"--audit_log={path}", f"--audit_head={heads[0].digest}"]) == 0


def test_a_log_of_an_older_version_is_continued(path: Path, capsys) -> None:
    entry, rule = made(1), Rule(n=1000, block_size=64)
    certificate = certify(entry.certificate.draws, rule, SMOOTHING.distribution)
    older = dataclasses.replace(entry, certificate=certificate)
    fields = older.fields(pixels=True)
    del fields["made_with"]
    path.write_text(json.dumps(fields) + "\n")
    assert write(path, 2).head.number == 1
    assert verify.main([f"--audit_log={path}"]) == 0
    assert "before it 1 entries have no digest" in capsys.readouterr().out


@pytest.mark.parametrize("cut", [1, 30, 10_000])
def test_a_torn_end_is_cut_off_and_never_glued(path: Path, cut: int) -> None:
    write(path, 1, 2, 3)
    whole = path.read_bytes()
    torn = whole[: max(len(whole) - cut, 5)]
    path.write_bytes(torn)
    left = torn.count(b"\n")
    assert write(path, 4).head.number == left + 1
    assert numbers(path) == list(range(1, left + 2))


OTHERS = ["a\n", "{}\n", '{"a": 1}\n', "\n", "\ufffd\n", "a", "a\nno end", '{"a": 1}']


@pytest.mark.parametrize("text", OTHERS)
def test_no_other_file_is_continued_or_touched(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)
    with pytest.raises(UserError, match=f"^--audit_log={path}: begins with b.*no audit log"):
        AuditLog(path, pixels=True)
    assert path.read_text() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    path.write_text("")
    assert write(path, 1).head.number == 1  # nothing of the failed start holds it


def test_an_altered_end_is_not_continued(path: Path) -> None:
    write(path, 1)
    text = path.read_text()
    path.write_text(text.replace('"client": "ipv4:127.0.0.1"', '"client": "ipv4:127.0.0.2"'))
    with pytest.raises(UserError, match="its last line is not an audit entry: altered"):
        AuditLog(path, pixels=True)


def test_one_sidecar_at_a_time(path: Path) -> None:
    log = AuditLog(path, pixels=True)
    with pytest.raises(UserError, match=f"^--audit_log={path}: another process is writing"):
        AuditLog(path, pixels=True)
    log.close()
    assert write(path, 1).head.number == 1


def test_only_regular_files(tmp_path: Path) -> None:
    pipe, link, device = tmp_path / "pipe", tmp_path / "link", Path("/dev/null")
    os.mkfifo(pipe, 0o644)
    (tmp_path / "file").touch(0o644)
    link.symlink_to(tmp_path / "file")
    for path in (tmp_path, pipe, device, link):
        before = stat.S_IMODE(path.stat().st_mode)
        with pytest.raises(UserError, match=rf"^--audit_log={path}: (not a regular|a symbolic)"):
            AuditLog(path, pixels=True)
        assert stat.S_IMODE(path.stat().st_mode) == before
    assert not Path("/dev/null.lock").exists()
    with pytest.raises(UserError, match=r"^--audit_log=/proc/none/a: cannot be written"):
        AuditLog(Path("/proc/none/a"), pixels=True)


@pytest.mark.parametrize("there", [True, False])
def test_only_its_owner_can_read_it(path: Path, there: bool) -> None:
    if there:
        path.touch(0o666)
        path.chmod(0o666)
    write(path, 1, 2, 3, max_bytes=10)
    for file in (path, *chain.rotated(path)):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


class TestRotation:
    def test_the_chain_goes_on_across_files(self, path: Path, capsys) -> None:
        write(path, 1)
        size = path.stat().st_size
        write(path, 2, 3, max_bytes=2 * size + 20)
        head = write(path, 4, 5, max_bytes=2 * size + 20).head
        assert [file.name for file in chain.rotated(path)] == [
            "audit.jsonl.000000000002",
            "audit.jsonl.000000000004",
        ]
        assert numbers(path) == [1, 2, 3, 4, 5]
        assert numbers(chain.rotated(path)[1]) == [3, 4]
        assert verify.main([f"--audit_log={path}", f"--audit_head={head.digest}"]) == 0
        assert f"begins with entry 1 and ends with entry 5, digest {head.digest}" in (
            capsys.readouterr().out
        )

    def test_only_so_many_are_kept(self, path: Path, capsys) -> None:
        log = write(path, *range(9), max_bytes=1, keep=2)
        assert len(chain.rotated(path)) == 2
        assert numbers(path) == [7, 8, 9]
        assert verify.main([f"--audit_log={path}", f"--audit_head={log.head.digest}"]) == 0
        assert "the chain begins with entry 7, after digest " in capsys.readouterr().out
        write(path, 10, max_bytes=1)  # without a number all are
        assert numbers(path) == [7, 8, 9, 10]

    def test_only_files_of_its_own_are_removed(self, path: Path) -> None:
        write(path, 0)
        other = path.with_name(f"{path.name}.000000000000")
        other.write_text("notes\n")
        write(path, *range(1, 9), max_bytes=1, keep=2)
        assert other.read_text() == "notes\n"

    def test_a_file_taken_out_shows(self, path: Path, capsys) -> None:
        write(path, *range(4), max_bytes=1)
        chain.rotated(path)[1].unlink()
        assert verify.main([f"--audit_log={path}"]) == 1
        assert f"{path}.000000000003:1: certificate c2: it is entry 3" in capsys.readouterr().err

    def test_a_kill_between_two_files(self, path: Path) -> None:
        log = write(path, 1, 2)
        path.rename(chain.rotated_name(path, log.head))
        assert write(path, 3).head.number == 3
        assert numbers(path) == [1, 2, 3]

    @pytest.mark.parametrize("text", [b"", b"\xff\n", b"{}\n"])
    def test_a_kill_between_two_files_and_no_entry_in_the_first(self, path: Path, text) -> None:
        chain.rotated_name(path, chain.Link(7, "")).write_bytes(text)
        with pytest.raises(UserError, match=f"^--audit_log={path}.000000000007: its last line"):
            AuditLog(path, pixels=True)

    def test_it_goes_on_where_it_cannot_be_renamed(self, path: Path, caplog) -> None:
        write(path, 1)
        chain.rotated_name(path, chain.Link(1, "")).mkdir()
        assert write(path, 2, max_bytes=1).head.number == 2
        assert "cannot be rotated: " in caplog.text
        assert len(path.read_text().splitlines()) == 2


class TestFailure:
    """An answer has left by then: what cannot be written is counted and told."""

    def lose(self, log: AuditLog, number: int = 1) -> None:
        log.after(FakeContext(ended=True), made(number))  # type: ignore[arg-type]
        log.close()

    def test_after_the_end(self, path: Path, caplog) -> None:
        failures: list[None] = []
        log = AuditLog(path, pixels=True, on_failure=lambda: failures.append(None))
        log.close()  # as for a call that outlives the drain
        self.lose(log)
        assert len(failures) == 1
        assert "certificate c1 is not in the audit log: the log is closed" in caplog.text

    def test_a_full_disk_loses_one_and_not_the_next(self, path: Path, monkeypatch, caplog) -> None:
        """Half of a line is written, and cannot even be cut off again at once."""
        write(path, 1)
        failures: list[None] = []
        full = [True] * 2
        os_write, truncate = os.write, os.ftruncate

        def failing(file: int, data: bytes) -> int:
            if full:
                if full.pop():
                    os_write(file, data[:50])
                raise OSError(28, "No space left on device")
            return os_write(file, data)

        broken = [True]

        def not_at_first(file: int, size: int) -> None:
            if broken and broken.pop():
                raise OSError(5, "Input/output error")
            truncate(file, size)

        monkeypatch.setattr(locked_file.os, "write", failing)
        monkeypatch.setattr(locked_file.os, "ftruncate", not_at_first)
        log = AuditLog(path, pixels=True, on_failure=lambda: failures.append(None))
        log.after(FakeContext(ended=True), made(2))  # type: ignore[arg-type]
        log.after(FakeContext(ended=True), made(3))  # type: ignore[arg-type]
        log.close()
        assert len(failures) == 1
        assert "certificate c2 is not in the audit log: " in caplog.text
        assert "No space left on device" in caplog.text
        assert [entry.certificate_id for entry in read_audit_log(path)] == ["c1", "c3"]
        assert numbers(path) == [1, 2]

    def test_a_line_that_is_whole_is_not_written_twice(self, path: Path, monkeypatch) -> None:
        """The disk did not confirm it, and it could not be cut off either."""
        failures: list[None] = []
        fsync, broken = os.fsync, [True]

        def failing(file: int) -> None:
            if broken and broken.pop():
                raise OSError(5, "Input/output error")
            fsync(file)

        def refused(file: int, size: int) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(locked_file.os, "fsync", failing)
        monkeypatch.setattr(locked_file.os, "ftruncate", refused)
        log = AuditLog(path, pixels=True, on_failure=lambda: failures.append(None))
        for number in (1, 2):
            log.after(FakeContext(ended=True), made(number))  # type: ignore[arg-type]
        log.close()
        assert failures == []
        assert numbers(path) == [1, 2]

    @pytest.mark.parametrize("how", ["moved", "removed", "emptied"])
    def test_a_file_that_is_taken_away_is_begun_again(self, path: Path, how: str) -> None:
        log = AuditLog(path, pixels=True)
        log.after(FakeContext(ended=True), made(1))  # type: ignore[arg-type]
        wait(log)
        if how == "emptied":
            os.truncate(path, 0)
        else:
            path.rename(path.with_name("aside"))
        self.lose(log, 2)
        (entry,) = read_audit_log(path)
        assert entry.certificate_id == "c2"
        assert entry.place is not None
        assert entry.place.link == log.head
        assert log.head.number == 2

    def test_what_others_write_is_not_continued(self, path: Path, caplog) -> None:
        failures: list[None] = []
        log = AuditLog(path, pixels=True, on_failure=lambda: failures.append(None))
        log.after(FakeContext(ended=True), made(1))  # type: ignore[arg-type]
        wait(log)
        with open(path, "a") as file:
            file.write("{}\n")
        for number in (2, 3):
            log.after(FakeContext(ended=True), made(number))  # type: ignore[arg-type]
        log.close()
        assert len(failures) == 2
        assert "its last line is not an audit entry" in caplog.text
        assert path.read_text().endswith("}\n{}\n")

    def test_no_link_is_followed_later(self, path: Path) -> None:
        failures: list[None] = []
        log = AuditLog(path, pixels=True, on_failure=lambda: failures.append(None))
        other = path.with_name("other")
        other.touch(0o644)
        path.unlink()
        path.symlink_to(other)
        for number in (2, 3):
            log.after(FakeContext(ended=True), made(number))  # type: ignore[arg-type]
        log.close()
        assert len(failures) == 2
        assert other.read_text() == ""
        assert stat.S_IMODE(other.stat().st_mode) == 0o644


def test_the_head_is_told(path: Path, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(audit, "HEAD_SECONDS", 0.0)
    log = write(path, 1, 2, max_bytes=1)
    told = [record for record in caplog.records if hasattr(record, "fields")]
    texts = [record.getMessage() for record in told]
    for word in ("begins", "goes on", "begins a new file", "ends"):
        assert any(f"audit log {path} {word}: entry " in text for text in texts), word
    assert texts[-1] == f"audit log {path} ends: entry 2, digest {log.head.digest}"
    assert told[-1].fields == {"audit_entry": 2, "audit_digest": log.head.digest}
