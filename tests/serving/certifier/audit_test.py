"""The audit log is written when the call is over, not before."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fake_backend import SMOOTHING

from serving.certifier.audit import AuditLog, Entry
from serving.certifier.requests import Image
from tfmacer.errors import UserError
from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.smoothing import law
from tfmacer.votes.driver import Task
from tfmacer.votes.endpoint import ServedModel


class FakeContext:
    """Keeps its callbacks until the call ends."""

    def __init__(self, *, ended: bool) -> None:
        self.ended = ended
        self.callbacks: list[Callable[[], None]] = []

    def add_callback(self, callback: Callable[[], None]) -> bool:
        if not self.ended:
            self.callbacks.append(callback)
        return not self.ended


@pytest.fixture
def entry() -> Entry:
    rule = Rule(n=1000, block_size=64)
    counts = Counts(select_counts=(100, 0, 0), counts=(990, 10, 0), n0=100, n=1000)
    values = np.full((4, 4, 1), 0.5, np.float32)
    return Entry(
        certificate_id="c",
        request_id="r",
        client="ipv4:127.0.0.1",
        image=Image(values, "00"),
        model=ServedModel(name="m", version=3, smoothing=SMOOTHING),
        rule=rule,
        task=Task(0, values, np.array([1, -2], np.int32), np.array([3, 4], np.int32)),
        certificate=certify(counts, rule, law("gaussian", sigma=0.5, params={}, dimension=16)),
    )


def test_nothing_is_written_before_the_end(entry: Entry, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log, context = AuditLog(path, pixels=False), FakeContext(ended=False)
    log.after(context, entry)  # type: ignore[arg-type]
    assert path.read_text() == ""
    for callback in context.callbacks:
        callback()
    record = json.loads(path.read_text())
    assert record["select_seed"] == [1, -2]
    assert record["estimate_seed"] == [3, 4]
    log.close()


def test_a_call_that_has_ended_is_written_at_once(entry: Entry, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path, pixels=False)
    log.after(FakeContext(ended=True), entry)  # type: ignore[arg-type]
    assert json.loads(path.read_text())["certificate_id"] == "c"
    log.close()


def test_an_old_log_is_continued(entry: Entry, tmp_path: Path) -> None:
    path = tmp_path / "audit"
    for _ in range(2):
        log = AuditLog(path, pixels=True)
        log.after(FakeContext(ended=True), entry)  # type: ignore[arg-type]
        log.close()
    assert len(path.read_text().splitlines()) == 2


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"--audit_log={tmp_path}: cannot be written"):
        AuditLog(tmp_path, pixels=True)


def test_an_entry_that_cannot_be_written_is_reported(entry: Entry, tmp_path, caplog) -> None:
    failures: list[None] = []
    log = AuditLog(tmp_path / "audit", pixels=True, on_failure=lambda: failures.append(None))
    log.close()  # as for a call that outlives the drain
    log.after(FakeContext(ended=True), entry)  # type: ignore[arg-type]
    assert len(failures) == 1
    assert "certificate c is not in the audit log: " in caplog.text
