"""Audit logs as a sidecar writes them, of a classifier that does not exist."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.records import chain
from tfmacer.records.audit_entries import AuditEntry
from tfmacer.records.chain import BEGINNING
from tfmacer.records.runs import Smoothing
from tfmacer.records.sealing import pixels_digest

SMOOTHING = Smoothing(
    sigma=0.5, num_classes=3, input_shape=(2, 2, 1), model_digest="ab" * 32, block_size=64
)
RULE = Rule(bound="late_spending", n=1000, block_size=64)


def fields(
    number: int = 0,
    *,
    smoothing: Smoothing = SMOOTHING,
    rule: Rule = RULE,
    counts: tuple[int, ...] = (985, 10, 5),
    select_counts: tuple[int, ...] | None = None,
) -> dict:
    """The fields of one entry, without its place in the chain; each number has other noise."""
    drawn = Counts(
        select_counts=select_counts or (rule.n0, *(0 for _ in counts[1:])),
        counts=counts,
        n0=rule.n0,
        n=sum(counts),
    )
    levels = np.arange(number, number + 4, dtype=np.float32).reshape(smoothing.input_shape)
    pixels = levels / np.float32(255)
    return AuditEntry(
        certificate_id=f"{number:032x}",
        time="2026-01-01T00:00:00+00:00",
        request_id="r",
        client="ipv4:127.0.0.1",
        pixels_sha256=pixels_digest(pixels),
        pixels=pixels,
        model_name="m",
        model_version=3,
        smoothing=smoothing,
        select_seed=np.array([number, 1], np.int32),
        estimate_seed=np.array([number, 2], np.int32),
        certificate=certify(drawn, rule, smoothing.distribution),
    ).fields()


def older(entry: dict) -> dict:
    """An entry as versions before the chain wrote it."""
    return {name: value for name, value in entry.items() if name != "made_with"}


def write(path: Path, entries: Iterable[dict], last: chain.Link = BEGINNING) -> chain.Link:
    """Appends entries to a chain; returns its last link."""
    with open(path, "a", encoding="utf-8") as file:
        for entry in entries:
            line, last = chain.to_line(entry, last)
            file.write(line + "\n")
    return last
