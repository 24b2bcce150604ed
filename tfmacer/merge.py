"""Joins the shards of a certification run into one log.

  python -m tfmacer.merge --out=LOG.tsv SHARD.tsv SHARD.tsv ...

Every shard of the run must be there, once and finished, all made with the same settings. The log
equals that of an undivided run in every column but `time`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.records.merging import merge

FLAGS = flags.FlagValues()
_OUT = flags.DEFINE_string("out", None, "The log to write; must not exist.", flag_values=FLAGS)


def _main(shards: Sequence[str]) -> None:
    if not _OUT.value:
        raise UserError("--out is missing: name the log to write, a .tsv file")
    log = merge([Path(shard) for shard in shards], Path(_OUT.value))
    commandline.say(f"{log.path}: {len(log.records)} images from {len(shards)} shards")
    for warning in log.settings.warnings if log.settings else ():
        commandline.warn(warning)


main = commandline.command(
    _main, FLAGS, "python -m tfmacer.merge", __doc__, arguments="SHARD.tsv ..."
)


if __name__ == "__main__":
    sys.exit(main())
