"""Attacks on the certificates of a log, into a table of findings.

Without TensorFlow until everything that can be checked before is checked.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tfmacer.attacks.plan import Plan
from tfmacer.common import commandline
from tfmacer.common.decimals import down, up
from tfmacer.common.errors import UserError
from tfmacer.common.progress import Progress
from tfmacer.guarantee.rule import check_error_rate
from tfmacer.records.attack_rows import Attacked, AttackSettings
from tfmacer.records.falsifications import (
    RISK,
    Falsification,
    attacked_log,
    falsification_path,
    read_falsification,
)
from tfmacer.records.image_flags import ImageFlags
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import Log, read_log
from tfmacer.records.rows import Record
from tfmacer.records.runs import UNKNOWN_MODEL, RunDirectory
from tfmacer.records.settings import NO_PIXELS, LogSettings

if TYPE_CHECKING:
    from tfmacer.attacks.falsification import Falsifier
    from tfmacer.certification.examples import Examples

# Images read at a time.
_LOADED = 64
# How many false certificates are named one by one.
_NAMED = 5


def falsify_log(
    path: Path,
    run: RunDirectory,
    plan: Plan,
    images: ImageFlags,
    *,
    out: Path | None = None,
    skip: int = 1,
    num_examples: int | None = None,
    intra_op_threads: int = 1,
    modules: Sequence[str] = (),
) -> Falsification:
    """Attacks the certificates of a finished log; resumes where an earlier call was stopped.

    Args:
      path: the log.
      run: whose network was certified.
      plan: how to attack, and how to confirm a flip.
      images: which images they are, where not those that the log names.
      out: the table of the findings, a .tsv file; `LOG.falsified.tsv` for None.
      skip: step between the log's images that are considered.
      num_examples: how many images are considered, of which the certified ones are attacked; all
        for None.
      intra_op_threads: TensorFlow's threads inside one operation.
      modules: to import first, for layers of the network's own.

    Raises:
      UserError: the log is not one of this run, not finished or without a certificate, its images
        are others, or the table holds the findings of another plan.
    """
    check_error_rate("--alpha", plan.alpha)
    out = falsification_path(path) if out is None else out
    if out.suffix != ".tsv":
        raise UserError(f"--out={out}: its name ends with .tsv")
    log, settings = _finished_log(path, plan.attack)
    _check_model(run, settings, log)
    named = images.of_log(log, run=run)
    considered = log.records[::skip][:num_examples]
    chosen = _certified(considered, log)

    commandline.load_tensorflow(modules)
    from tfmacer.votes import devices

    devices.use_threads(intra_op_threads)
    falsifier, examples = _falsifier(run, log, settings, images, named, plan)
    attack = _attack_settings(log, len(considered), chosen, plan, intra_op_threads)
    with LockedTable(out, attack) as writer:
        missing = set(writer.missing)
        todo = [record for record in chosen if record.idx in missing]
        if todo:
            _attack_all(falsifier, examples, todo, writer, log)
        else:
            commandline.say(f"{out}: finished already, {len(writer.rows)} certificates")
    found = read_falsification(out)
    found.check_of(log)
    return found


def conclude(found: Falsification, log: Path) -> None:
    """Prints what was found; raises UserError where more is false than alpha allows."""
    rows, settings = found.rows, found.settings
    named = ", ".join(
        f"idx {row.idx} (certified {row.predict} within {down(row.radius, 4)}, answers "
        f"{row.attack_class} at {up(row.attack_radius or 0.0, 4)})"
        for row in found.within[:_NAMED]
    )
    more = f" and {len(found.within) - _NAMED} more" if len(found.within) > _NAMED else ""
    box = "pixels kept in [0, 1]" if settings.clip else "pixels not clipped"
    commandline.say(f"{len(rows)} certificates attacked: {settings.attack}, {settings.norm}, {box}")
    commandline.say(
        f"within the certified radius: {len(found.within)} flipped; alpha allows {found.allowed} "
        f"(more by chance with probability at most {RISK})"
    )
    ratios = [row.attack_radius / row.radius for row in rows if row.attack_radius is not None]
    if ratios:
        low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
        commandline.say(
            f"smallest flip found, in certified radii: median {middle:.2f}, "
            f"10 % below {low:.2f}, 10 % above {high:.2f}"
        )
    if rest := len(rows) - len(ratios):
        commandline.say(f"no flip found: {rest}")
    commandline.say(f"{found.path}: done")
    if len(found.within) > found.allowed:
        share = len(found.within) / len(rows)
        raise UserError(
            f"{log}: {len(found.within)} of {len(rows)} certificates ({share:.1%}) are false, "
            f"alpha = {settings.certificate_alpha} allows {found.allowed}: {named}{more}"
        )
    if found.within:
        commandline.say(f"false, as alpha allows: {named}{more}")


def _finished_log(path: Path, attack: str) -> tuple[Log, LogSettings]:
    """A log whose certificates can be attacked, and what its rows share."""
    log = read_log(path)
    if log.settings is None:
        raise UserError(f"--log={path}: not a log of tfmacer: nothing tells which model it is of")
    if not log.settings.names_images:
        commandline.warn(f"{path}: {NO_PIXELS}")
    log.check()
    if missing := log.unfinished:
        raise UserError(f"--log={path}: unfinished: {missing}")
    norm = log.settings.classifier.distribution.norm
    if attack == "ddn" and norm != "l2":
        raise UserError(f"--attack=ddn is for l2 radii, those of {path} are {norm}")
    return log, log.settings


def _check_model(run: RunDirectory, settings: LogSettings, log: Log) -> None:
    """Refuses a log of another classifier than the run's."""
    if settings.classifier.model_digest == UNKNOWN_MODEL:
        raise UserError(f"--log={log.path}: does not say of which model it is")
    if different := settings.classifier.difference(run.read_smoothing()):
        raise UserError(f"--log={log.path} is not of --run_dir={run.root}: its {different}")


def _certified(considered: Sequence[Record], log: Log) -> list[Record]:
    certified = [record for record in considered if record.predict >= 0 and record.radius > 0]
    if not certified:
        raise UserError(
            f"--log={log.path}: holds no certificate to attack, only abstentions, among the "
            f"{len(considered)} images considered"
        )
    return certified


def _falsifier(
    run: RunDirectory,
    log: Log,
    settings: LogSettings,
    images: ImageFlags,
    named: tuple[str, str],
    plan: Plan,
) -> tuple["Falsifier", "Examples"]:
    from tfmacer.attacks.falsification import Falsifier
    from tfmacer.certification.examples import examples_of
    from tfmacer.data.datasets import split_of_log
    from tfmacer.votes.local import from_run

    source = from_run(run.root)
    split = split_of_log(named, images, settings, log.path)
    distribution = settings.classifier.distribution
    falsifier = Falsifier(source.network, source, settings.rule, distribution.norm, plan)
    return falsifier, examples_of(split, distribution)


def _attack_settings(
    log: Log, examined: int, chosen: Sequence[Record], plan: Plan, threads: int
) -> AttackSettings:
    from tfmacer.votes.devices import environment

    return AttackSettings(
        **attacked_log(log),
        **dataclasses.asdict(plan),
        examined=examined,
        images=tuple(record.idx for record in chosen),
        environment=environment(threads),
    )


def _attack_all(
    falsifier: "Falsifier",
    examples: "Examples",
    todo: Sequence[Record],
    writer: LockedTable[Attacked],
    log: Log,
) -> None:
    """Attacks the images, as many side by side as there are cores, and writes them in order."""
    done = len(writer.rows)
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        with Progress(done + len(todo), "images", done=done, name=log.path.name) as progress:
            for images, records in _loaded(examples, todo, log):
                for row in pool.map(falsifier, images, records):
                    writer.append(row)
                    flipped = sum(done.flipped_within for done in writer.rows)
                    progress.advance(f"flipped within: {flipped}")
    finally:
        pool.shutdown(cancel_futures=True)


def _loaded(
    examples: "Examples", records: Sequence[Record], log: Log
) -> Iterator[tuple[list[npt.NDArray[np.float32]], Sequence[Record]]]:
    from tfmacer.certification.examples import check_images

    for start in range(0, len(records), _LOADED):
        some = records[start : start + _LOADED]
        found = list(examples([record.idx for record in some]))
        check_images(log.path, some, found)
        yield [example.image for example in found], some
