"""A whole distributed run, from the command's side: parts made, lost ones again, logs joined."""

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

from tfmacer.certification.examples import Examples, check_images
from tfmacer.certification.progress import CertificationProgress
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.distributed.job import Job
from tfmacer.distributed.partial_results import PartialResults
from tfmacer.distributed.runners import WorkerLostError, run_pipeline
from tfmacer.records.locked_file import LockedFile
from tfmacer.records.logs import read_log
from tfmacer.records.merging import join
from tfmacer.records.partial_results import PartialResult
from tfmacer.records.rows import Record
from tfmacer.records.settings import LogSettings
from tfmacer.records.tables import read_settings, settings_path

# A block that is lost as often as this is not tried again; Beam's own runners do as much.
_ATTEMPTS = 4


def certify_logs(
    job: Job,
    paths: Sequence[Path],
    runner: str,
    options: Sequence[str],
    examples: Examples,
    part_timeout: float | None = None,
) -> None:
    """Certifies through a Beam pipeline; the logs are written when all of it is done.

    Args:
      job: what is certified.
      paths: the log of each of its settings.
      runner: `direct`, `flink`, `spark`, `dataflow`, or another that Beam knows.
      options: of the pipeline, as `NAME=VALUE` or `NAME`.
      examples: the images as they are here; workers read their own.
      part_timeout: seconds in which at least one part must appear, or the pipeline is cancelled
        and what is missing begun again, by other runners than the direct one; None waits as long
        as the runner does.

    Raises:
      UserError: a log or the parts were made with other settings or of other images; the pipeline
        fails.
    """
    with contextlib.ExitStack() as stack:
        for path in paths:
            stack.enter_context(LockedFile(path))
        unwritten = [
            number
            for number, (path, settings) in enumerate(zip(paths, job.settings, strict=True))
            if not _is_finished(path, settings, examples)
        ]
        total = len(job.settings[0].indices)
        parts = PartialResults(job)
        if unwritten:
            commandline.say(
                f"{total} images in {len(job.blocks)} blocks, by Beam's {runner} runner"
            )
            with CertificationProgress(total, []) as progress:
                parts.on_part = functools.partial(_show, progress)
                parts.look()
                _check_images(parts, examples)
                make_parts(job, parts, runner, options, part_timeout)
            _check_images(parts, examples)
            for number in unwritten:
                join(list(parts.found.values()), number, job.settings[number], paths[number])
            commandline.say(f"{', '.join(map(str, paths))}: done")
        else:
            commandline.say(f"{paths[0]}: finished already, {total} images")
        parts.remove()


def make_parts(
    job: Job,
    parts: PartialResults,
    runner: str,
    options: Sequence[str],
    part_timeout: float | None = None,
) -> None:
    """Makes the missing parts of a job; the arguments are those of `certify_logs`.

    Raises:
      UserError: the pipeline fails, or workers are lost without anything coming of it.
    """

    def lost() -> str | None:
        if part_timeout is None or parts.idle < part_timeout:
            return None
        return f"no part appeared within --part_timeout={part_timeout:g} seconds"

    attempts = 0
    while parts.missing:
        before = len(parts.missing)
        try:
            with parts.watched():
                run_pipeline(job, list(parts.missing), runner, options, lost)
        except WorkerLostError as error:
            attempts = 1 if len(parts.missing) < before else attempts + 1
            if attempts == _ATTEMPTS:
                raise UserError(f"--runner={runner}: {error}, {attempts} times at once") from error
            commandline.note(f"{error}; what it had not finished is drawn again")
        else:
            if parts.missing:
                raise UserError(
                    f"{job.parts_dir}: {len(parts.missing)} parts are missing although the "
                    "pipeline ended well: workers and this machine must see the same directory"
                )


def _check_images(parts: PartialResults, examples: Examples) -> None:
    """Refuses parts that were made of other images than those here."""
    records = [record for part in parts.found.values() for record in part.records[0]]
    _compare(parts.folder, records, examples)


def _compare(path: Path | str, records: Sequence[Record], examples: Examples) -> None:
    check_images(path, records, examples(sorted(record.idx for record in records)))


def _is_finished(path: Path, settings: LogSettings, examples: Examples) -> bool:
    """Whether a log is there; another one, or a part of one, is refused."""
    log = read_log(path) if path.exists() else None
    if log is None and not settings_path(path).exists():
        return False
    found = read_settings(path, LogSettings) if log is None else log.settings
    if found is None:
        raise UserError(f"{path}: exists and is no log of tfmacer; choose another file")
    if differing := found.differences(settings, ignoring=("environment",)):
        raise UserError(
            f"{path}: was made with other settings: {'; '.join(differing)}; choose another file"
        )
    if log is None:  # a join that was cut short has left its settings
        return False
    if missing := log.unfinished:
        raise UserError(
            f"{path}: was begun without --runner, {missing}; finish it without, or choose another "
            "file"
        )
    log.check()
    _compare(path, log.records, examples)
    return True


def _show(progress: CertificationProgress, part: "PartialResult") -> None:
    for record in part.records[0]:
        progress.finished(record, draws=record.draws.n0 + record.draws.n if record.draws else 0)
