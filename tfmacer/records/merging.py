"""Joining the shards of one certification run."""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfmacer.errors import UserError
from tfmacer.records import rows
from tfmacer.records.logs import Log, check_rows, read_log, settings_path
from tfmacer.records.runs import write_atomically
from tfmacer.records.settings import LogSettings, parse_shard

_ENVIRONMENTS_DIFFER = (
    "the shards were made in different environments: votes drawn again in one of them may differ "
    "where two logits tie within rounding"
)


def merge(shards: Iterable[Path], out: Path) -> Log:
    """Joins the shards of one run into the log that an undivided run would have made.

    Args:
      shards: logs made with `shard` 0/N to N-1/N, each once, in any order.
      out: the log to write; must not exist.

    Raises:
      UserError: a shard is not ours, not finished or altered; settings differ; a shard is missing
        or stands twice; `out` exists.
    """
    if out.exists():
        raise UserError(f"{out}: exists; choose another file or remove it")
    logs = [read_log(path) for path in shards]
    if not logs:
        raise UserError("name the shards to merge, LOG.tsv of each")
    settings = [_checked(log, logs[0]) for log in logs]
    _check_numbers(logs, settings)
    warnings = [warning for one in settings for warning in one.warnings]
    environment = settings[0].environment
    if any(one.environment != environment for one in settings):
        environment = {f"shard {one.shard}": dict(one.environment) for one in settings}
        warnings.append(_ENVIRONMENTS_DIFFER)
    whole = dataclasses.replace(
        settings[0],
        shard=None,
        environment=environment,
        warnings=tuple(dict.fromkeys(warnings)),
    )
    records = sorted((r for log in logs for r in log.records), key=lambda record: record.idx)
    lines = [rows.to_line(record, whole.rule.soft) for record in records]
    text = "\n".join(["\t".join(rows.columns(whole.rule.soft)), *lines]) + "\n"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(settings_path(out), whole.to_json())
        write_atomically(out, text)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    return Log(out, tuple(records), whole)


def _checked(log: Log, first: Log) -> LogSettings:
    """The settings of a finished, unaltered shard that fits the first one."""
    if log.settings is None or first.settings is None:
        raise UserError(f"{log.path}: not a log of tfmacer: {settings_path(log.path)} is missing")
    if log.settings.shard is None:
        raise UserError(f"{log.path}: not a shard: it was made without --shard")
    differing = log.settings.differences(first.settings, besides=("shard", "environment"))
    if differing:
        raise UserError(f"{log.path}: settings differ from {first.path}: {'; '.join(differing)}")
    if log.missing:
        raise UserError(
            f"{log.path}: not finished: {len(log.missing)} images are missing, "
            f"the first is idx {log.missing[0]}"
        )
    check_rows(log)
    return log.settings


def _check_numbers(logs: Sequence[Log], settings: Sequence[LogSettings]) -> None:
    """Refuses shards of different divisions, one that stands twice, and gaps."""
    _, parts = parse_shard(str(settings[0].shard))
    by_number: dict[int, Path] = {}
    for log, one in zip(logs, settings, strict=True):
        number, of = parse_shard(str(one.shard))
        if of != parts:
            raise UserError(f"{log.path}: one of {of} shards, {logs[0].path} is one of {parts}")
        if number in by_number:
            raise UserError(f"{log.path}: holds shard {one.shard}, and so does {by_number[number]}")
        by_number[number] = log.path
    if gaps := [f"{number}/{parts}" for number in range(parts) if number not in by_number]:
        raise UserError(f"shards are missing: {', '.join(gaps)}")
