"""Attacks the certificates of a log: within their radii, where no flip may be found, and beyond.

  python -m tfmacer.falsify --run_dir=RUN --log=LOG.tsv

Each certified image is attacked against the smoothed classifier, and what an attack finds counts
only where PREDICT, with fresh noise, confirms another class. The table, by default
`LOG.falsified.tsv`, has for each image whether it was flipped within its certified radius and the
norm of the smallest flip found, an upper bound on the true radius. If more certificates are false
than alpha makes likely, the command says so and fails. An attack that finds nothing proves nothing.

Started again after a kill, it resumes where it was.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

from absl import flags

from tfmacer.attacks.logs import conclude, falsify_log
from tfmacer.attacks.plan import Plan
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.records.image_flags import ImageFlags
from tfmacer.votes.source_flags import SourceFlags

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
# What a `Plan` says.
_DEFAULT = Plan()
flags.DEFINE_enum(
    "attack",
    _DEFAULT.attack,
    ["pgd", "ddn"],
    "pgd, in the norm of the radii, or ddn, for l2 radii.",
    flag_values=FLAGS,
)
_integer("steps", _DEFAULT.steps, "Steps of the attack.", lower_bound=1)
_integer(
    "num_noise",
    _DEFAULT.num_noise,
    "Noisy copies over which its gradient is averaged.",
    lower_bound=1,
)
_integer("n", _DEFAULT.n, "Draws by which PREDICT confirms a flip.", lower_bound=1)
flags.DEFINE_float(
    "alpha",
    _DEFAULT.alpha,
    "Chance, per image, that a confirmation is wrong.",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "clip",
    _DEFAULT.clip,
    "Keep attacked pixels in [0, 1]; without it the attack may use all that a certificate covers.",
    flag_values=FLAGS,
)
_integer("seed", _DEFAULT.seed, "Of the noise of attacks and confirmations.", lower_bound=0)

_SKIP = _integer("skip", 1, "Step between the log's images that are considered.", lower_bound=1)
_NUM_EXAMPLES = _integer(
    "num_examples",
    None,
    "How many images are considered, of which the certified ones are attacked; default: all.",
    lower_bound=1,
)
_INTRA_OP = _integer("intra_op_threads", 1, "Threads inside one operation.", lower_bound=1)


def _main() -> None:
    _SOURCE.check()
    if _LOG.value is None:
        raise UserError("--log must be given")
    run, log = _SOURCE.run, Path(_LOG.value)
    assert run is not None  # as checked
    planned: dict[str, Any] = {
        field.name: FLAGS[field.name].value for field in dataclasses.fields(Plan)
    }
    found = falsify_log(
        log,
        run,
        Plan(**planned),
        _IMAGES(),
        out=None if _OUT.value is None else Path(_OUT.value),
        skip=_SKIP.value,
        num_examples=_NUM_EXAMPLES.value,
        intra_op_threads=_INTRA_OP.value,
        modules=_SOURCE.modules,
    )
    conclude(found, log)


main = commandline.command(_main, FLAGS, "python -m tfmacer.falsify", __doc__)


if __name__ == "__main__":
    sys.exit(main())
