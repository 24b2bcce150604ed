"""Joining the shards, or the workers' parts, of one certification run."""

import collections
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tfmacer.common.errors import UserError
from tfmacer.records.logs import Log, read_log, settings_path
from tfmacer.records.partial_results import PartialResult
from tfmacer.records.rows import Record
from tfmacer.records.runs import read_text, write_atomically
from tfmacer.records.settings import LogSettings, parse_shard
from tfmacer.records.tables import gaps
from tfmacer.records.verification import verify_log

_ENVIRONMENTS_DIFFER = (
    "the parts were made in different environments: votes drawn again in one of them may differ "
    "where two logits tie within rounding"
)
# How many missing shards are named.
_NAMED = 5


def merge(shards: Iterable[Path], out: Path) -> Log:
    """Joins the shards of one run into the log that an undivided run would have made.

    Args:
      shards: logs made with `shard` 0/N to N-1/N, each once, in any order.
      out: the log to write; must not exist.

    Raises:
      UserError: a shard is not a log of tfmacer, not finished or altered, or its rows do not
        follow from their votes; settings differ; a shard is missing or given twice; `out` exists,
        or other settings beside it than a merge of the same shards, cut short, has left.
    """
    _refuse_existing(out)
    logs = [read_log(path) for path in shards]
    if not logs:
        raise UserError("name the shards to merge, LOG.tsv of each")
    settings = [_checked(log, logs[0]) for log in logs]
    _check_numbers(logs, settings)
    warnings = [warning for one in settings for warning in one.warnings]
    whole = dataclasses.replace(
        settings[0],
        images=dataclasses.replace(settings[0].images, shard=None),
        warnings=tuple(dict.fromkeys(warnings)),
    )
    environments = {f"shard {one.images.shard}": one.environment for one in settings}
    whole = _made_in(environments, whole)
    beside = settings_path(out)
    if beside.exists() and read_text(beside) != whole.to_json():
        _refuse_existing(beside)
    return _write(out, (record for log in logs for record in log.records), whole)


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise UserError(f"{path}: exists; choose another file or remove it")


def join(parts: Sequence[PartialResult], number: int, settings: LogSettings, out: Path) -> Log:
    """Writes one log of a distributed run, as an undivided run would have made it.

    Args:
      parts: of the whole run, in any order.
      number: which of the logs that the parts hold rows of.
      settings: of that log; the environment is taken from the parts.
      out: the log to write.

    Raises:
      UserError: an image is missing or there twice, or a row does not follow from its votes; it
        cannot be written.
    """
    records = [record for part in parts for record in part.records[number]]
    counted = collections.Counter(record.idx for record in records)
    if doubled := [idx for idx, count in counted.items() if count > 1]:
        raise UserError(f"{out}: idx {min(doubled)} is there twice among the parts")
    if missing := gaps(settings.indices, records):
        raise UserError(f"{out}: not finished: {missing}")
    different: list[Mapping[str, Any]] = []
    for part in parts:
        if part.environment not in different:
            different.append(part.environment)
    environments = {f"worker {i}": each for i, each in enumerate(different, 1)}
    return _write(out, records, _made_in(environments, settings))


def _made_in(environments: Mapping[str, Mapping[str, Any]], settings: LogSettings) -> LogSettings:
    """The settings of a log whose rows were made in these environments."""
    environment: Mapping[str, Any] = next(iter(environments.values()))
    warnings = settings.warnings
    if any(other != environment for other in environments.values()):
        environment = {name: dict(each) for name, each in environments.items()}
        warnings = (*warnings, _ENVIRONMENTS_DIFFER)
    return dataclasses.replace(settings, environment=environment, warnings=warnings)


def _write(out: Path, records: Iterable[Record], settings: LogSettings) -> Log:
    """Writes a log, sorted by idx."""
    records = sorted(records, key=lambda record: record.idx)
    log = Log(out, tuple(records), settings)
    if (wrong := verify_log(log)) is not None:
        raise UserError(f"{out}: not written: {wrong}")
    lines = [settings.to_line(record) for record in records]
    text = "\n".join(["\t".join(settings.columns), *lines]) + "\n"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(settings_path(out), settings.to_json())
        write_atomically(out, text)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{out}: cannot be written: {reason}") from error
    return log


def _checked(log: Log, first: Log) -> LogSettings:
    """The settings of a finished, unaltered shard that fits the first one."""
    if log.settings is None or first.settings is None:
        raise UserError(f"{log.path}: not a log of tfmacer: {settings_path(log.path)} is missing")
    if log.settings.images.shard is None:
        raise UserError(f"{log.path}: not a shard: it was made without --shard")
    differing = log.settings.differences(first.settings, ignoring=("shard", "environment"))
    if differing:
        raise UserError(f"{log.path}: settings differ from {first.path}: {'; '.join(differing)}")
    if missing := log.unfinished:
        raise UserError(f"{log.path}: not finished: {missing}")
    log.check()
    return log.settings


def _check_numbers(logs: Sequence[Log], settings: Sequence[LogSettings]) -> None:
    """Refuses shards of different divisions, one given twice, and gaps."""
    _, parts = parse_shard(str(settings[0].images.shard))
    by_number: dict[int, Path] = {}
    for log, one in zip(logs, settings, strict=True):
        shard = str(one.images.shard)
        number, of = parse_shard(shard)
        if of != parts:
            raise UserError(f"{log.path}: one of {of} shards, {logs[0].path} is one of {parts}")
        if number in by_number:
            raise UserError(f"{log.path}: holds shard {shard}, and so does {by_number[number]}")
        by_number[number] = log.path
    lacking = (f"{number}/{parts}" for number in range(parts) if number not in by_number)
    if named := list(itertools.islice(lacking, _NAMED)):
        more = parts - len(by_number) - len(named)
        raise UserError(
            f"shards are missing: {', '.join(named)}" + (f" and {more} more" if more else "")
        )
