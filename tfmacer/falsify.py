"""Attacks the certificates of a log: within their radii, where no flip may be found, and beyond.

  python -m tfmacer.falsify --run_dir=RUN --log=LOG.tsv

Each certified image is attacked against the smoothed classifier, and what an attack finds counts
only where PREDICT, with fresh noise, confirms another class. The table, by default
`LOG.falsified.tsv`, has for each image whether it was flipped within its certified radius and the
norm of the smallest flip found, an upper bound on the true radius. If more certificates are false
than alpha makes likely, the command says so and fails. An attack that finds nothing proves nothing.

Killed and started again, it goes on where it was.
"""

import functools
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from absl import flags

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
from tfmacer.records.runs import UNKNOWN_MODEL, Smoothing
from tfmacer.records.settings import NO_PIXELS, LogSettings
from tfmacer.votes.source_flags import SourceFlags

if TYPE_CHECKING:
    from tfmacer.attacks.falsification import Falsifier
    from tfmacer.certification.examples import Examples

# Images read at a time.
_LOADED = 64
# How many false certificates are named one by one.
_NAMED = 5

FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)

_SOURCE = SourceFlags(FLAGS, sources=["run_dir"])
_LOG = _string("log", None, "The finished log whose certificates are attacked.")
_OUT = _string("out", None, "Where the findings go, a .tsv file; default: LOG.falsified.tsv.")
_IMAGES = ImageFlags.define(
    FLAGS,
    dataset="The log's images; default: what it records, where that is mnist5k or a dataset of "
    "TFDS' own on disk.",
    split="Split of it; default: the one that the log records.",
    split_default=None,
)
_ATTACK = flags.DEFINE_enum(
    "attack",
    "pgd",
    ["pgd", "ddn"],
    "pgd, in the norm of the radii, or ddn, for l2 radii.",
    flag_values=FLAGS,
)
_STEPS = _integer("steps", 20, "Steps of the attack.", lower_bound=1)
_NUM_NOISE = _integer(
    "num_noise", 32, "Noisy copies over which its slope is averaged.", lower_bound=1
)
_N = _integer("n", 2000, "Draws by which PREDICT confirms a flip.", lower_bound=1)
_ALPHA = flags.DEFINE_float(
    "alpha", 0.001, "Chance, per image, that a confirmation is wrong.", flag_values=FLAGS
)
_CLIP = flags.DEFINE_bool(
    "clip",
    False,
    "Keep attacked pixels in [0, 1]; without it the attack may use all that a certificate covers.",
    flag_values=FLAGS,
)
_SKIP = _integer("skip", 1, "Step between the log's images that are considered.", lower_bound=1)
_NUM_EXAMPLES = _integer(
    "num_examples",
    None,
    "How many images are considered, of which the certified ones are attacked; default: all.",
    lower_bound=1,
)
_SEED = _integer("seed", 0, "Of the noise of attacks and confirmations.", lower_bound=0)
_INTRA_OP = _integer("intra_op_threads", 1, "Threads inside one operation.", lower_bound=1)


def _main() -> None:
    smoothing = _SOURCE.check()
    log, settings, out = _inputs()
    assert smoothing is not None  # of a run directory
    _check_model(smoothing, settings, log)
    named = _IMAGES().of_log(log, run=_SOURCE.run)
    considered = log.records[:: _SKIP.value][: _NUM_EXAMPLES.value]
    chosen = _certified(considered, log)

    _SOURCE.load_tensorflow()
    from tfmacer.votes import devices

    devices.use_threads(_INTRA_OP.value)
    falsifier, examples = _falsifier(settings, named, log)
    attack = _attack_settings(log, len(considered), chosen)
    with LockedTable(out, attack) as writer:
        missing = set(writer.missing)
        todo = [record for record in chosen if record.idx in missing]
        if todo:
            _attack_all(falsifier, examples, todo, writer, log)
        else:
            commandline.say(f"{out}: finished already, {len(writer.rows)} certificates")
    found = read_falsification(out)
    found.check_of(log)
    _conclude(found, log)


def _inputs() -> tuple[Log, LogSettings, Path]:
    """The log, what its rows share, and where the findings go."""
    if _LOG.value is None:
        raise UserError("--log must be given")
    check_error_rate("--alpha", _ALPHA.value)
    path = Path(_LOG.value)
    out = Path(_OUT.value) if _OUT.value is not None else falsification_path(path)
    if out.suffix != ".tsv":
        raise UserError(f"--out={out}: its name ends with .tsv")
    log = read_log(path)
    if log.settings is None:
        raise UserError(f"--log={path}: not a log of tfmacer: nothing tells which model it is of")
    if not log.settings.names_images:
        commandline.warn(f"{path}: {NO_PIXELS}")
    log.check()
    if missing := log.unfinished:
        raise UserError(f"--log={path}: unfinished: {missing}")
    norm = log.settings.classifier.distribution.norm
    if _ATTACK.value == "ddn" and norm != "l2":
        raise UserError(f"--attack=ddn is for l2 radii, those of {path} are {norm}")
    return log, log.settings, out


def _check_model(smoothing: Smoothing, settings: LogSettings, log: Log) -> None:
    """Refuses a log of another classifier than the run's."""
    if settings.classifier.model_digest == UNKNOWN_MODEL:
        raise UserError(f"--log={log.path}: does not say of which model it is")
    if different := settings.classifier.difference(smoothing):
        raise UserError(f"--log={log.path} is not of --run_dir={_SOURCE.run_dir}: its {different}")


def _certified(considered: Sequence[Record], log: Log) -> list[Record]:
    certified = [record for record in considered if record.predict >= 0 and record.radius > 0]
    if not certified:
        raise UserError(
            f"--log={log.path}: holds no certificate to attack, only abstentions, among the "
            f"{len(considered)} images considered"
        )
    return certified


def _falsifier(
    settings: LogSettings, named: tuple[str, str], log: Log
) -> tuple["Falsifier", "Examples"]:
    from tfmacer.attacks.falsification import Falsifier, Plan
    from tfmacer.certification.examples import examples_of
    from tfmacer.data.datasets import split_of_log
    from tfmacer.votes.local import from_run

    plan = Plan(
        attack=_ATTACK.value,
        steps=_STEPS.value,
        num_noise=_NUM_NOISE.value,
        n=_N.value,
        alpha=_ALPHA.value,
        clip=_CLIP.value,
        seed=_SEED.value,
    )
    source = from_run(_SOURCE.run_dir or "")
    split = split_of_log(named, _IMAGES(), settings, log.path)
    distribution = settings.classifier.distribution
    falsifier = Falsifier(source.network, source, settings.rule, distribution.norm, plan)
    return falsifier, examples_of(split, distribution)


def _attack_settings(log: Log, examined: int, chosen: Sequence[Record]) -> AttackSettings:
    from tfmacer.votes.devices import environment

    return AttackSettings(
        **attacked_log(log),
        attack=_ATTACK.value,
        steps=_STEPS.value,
        num_noise=_NUM_NOISE.value,
        n=_N.value,
        alpha=_ALPHA.value,
        clip=_CLIP.value,
        seed=_SEED.value,
        examined=examined,
        images=tuple(record.idx for record in chosen),
        environment=environment(_INTRA_OP.value),
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


def _conclude(found: Falsification, log: Log) -> None:
    """Prints what was found.

    Raises:
      UserError: more certificates are false than alpha allows.
    """
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
            f"{log.path}: {len(found.within)} of {len(rows)} certificates ({share:.1%}) are false, "
            f"alpha = {settings.certificate_alpha} allows {found.allowed}: {named}{more}"
        )
    if found.within:
        commandline.say(f"false, as alpha allows: {named}{more}")


main = commandline.command(_main, FLAGS, "python -m tfmacer.falsify", __doc__)


if __name__ == "__main__":
    sys.exit(main())
