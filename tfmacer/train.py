"""Trains a network whose smoothed version can be certified, into a run directory.

    python -m tfmacer.train --flagfile=mnist.flags

The same command again resumes an unfinished run where it was left; of a finished run it says so.
A flag without a value takes the one that was published for the dataset, objective and sigma, or
the objective's own default; flags.txt in the run directory records what was taken.
"""

import sys

from absl import flags

from tfmacer.common import commandline
from tfmacer.training.config import TrainConfig
from tfmacer.training.flags import define
from tfmacer.training.run import train_run

FLAGS = flags.FlagValues()
define(TrainConfig, FLAGS)


def _main() -> None:
    train_run(TrainConfig.from_flags(FLAGS))


main = commandline.command(_main, FLAGS, "python -m tfmacer.train", __doc__)


if __name__ == "__main__":
    sys.exit(main())
