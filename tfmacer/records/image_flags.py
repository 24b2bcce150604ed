"""The flags that name images, and which datasets and splits are read without them.

A log, a `smoothing.json` and a server name the images that they are of. Anyone may have written
that, so nothing that would be imported or called, and no path, is taken from it, and a dataset is
read only where it is on disk.
"""

import dataclasses
import re
from collections.abc import Callable

from absl import flags

from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.records.logs import Log
from tfmacer.records.runs import RunDirectory

# mnist5k, or a dataset that TensorFlow Datasets ships, with a config and a version. No namespace
# (`huggingface:`, which fetches code), no arguments (`cifar10/data_dir=...`), no path.
_DATASET = re.compile(r"[a-z][a-z0-9_]*(/[A-Za-z0-9][\w.+-]*)?(:\d+\.\d+\.\d+)?", re.ASCII)
# As TensorFlow Datasets writes a split, a part of one or their sum: train[:90%].
_PART = r"\w[\w.-]*(\[[\w%:-]*\])?"
_SPLIT = re.compile(rf"{_PART}(\+{_PART})*", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFlags:
    """What the command line says of the images; None where it says nothing.

    Attributes:
      dataset: value of `--dataset`.
      split: value of `--split`.
      data_dir: value of `--data_dir`.
    """

    dataset: str | None
    split: str | None
    data_dir: str | None

    @classmethod
    def define(
        cls, flag_values: flags.FlagValues, *, dataset: str, split: str, split_default: str | None
    ) -> Callable[[], "ImageFlags"]:
        """Defines the three flags.

        Returns:
          What reads them, once they are parsed.
        """
        holders = {
            "dataset": flags.DEFINE_string("dataset", None, dataset, flag_values=flag_values),
            "split": flags.DEFINE_string("split", split_default, split, flag_values=flag_values),
            "data_dir": flags.DEFINE_string(
                "data_dir", None, "TFDS directory; default: that of TFDS.", flag_values=flag_values
            ),
        }
        return lambda: cls(**{name: holder.value for name, holder in holders.items()})

    @property
    def given(self) -> list[str]:
        """Names of the flags given."""
        return [name for name, value in dataclasses.asdict(self).items() if value is not None]

    @property
    def download(self) -> bool:
        """Whether a dataset that is missing may be downloaded: one that the command line names."""
        return self.dataset is not None

    def dataset_of(self, recorded: str | None, *, origin: str, run: RunDirectory | None) -> str:
        """The dataset to read: the one given, or else the one recorded.

        Args:
          recorded: what the record names.
          origin: the file or server that the record came from, for the error message.
          run: the run directory whose model is at hand; None for another model.

        Raises:
          UserError: none is given, and the record names none, or what it may not choose; or the
            run read its dataset from a place that is not given.
        """
        if self.dataset is not None:
            return self.dataset
        if recorded is None:
            raise UserError(f"{origin}: records no dataset: give --dataset")
        if not _DATASET.fullmatch(recorded):
            raise UserError(
                f"{origin}: records the dataset {recorded!r}; only mnist5k and names of TensorFlow "
                "Datasets are taken from a record, no code and no paths: give --dataset"
            )
        place = run.recorded_flag("data_dir") if run is not None else None
        if run is not None and place and self.data_dir is None and recorded != "mnist5k":
            raise UserError(
                f"{run.flags}: the run read {recorded} from {place!r}; a place is not taken from "
                "a file: give --data_dir"
            )
        return recorded

    def split_of(self, recorded: str | None, *, origin: str) -> str:
        """The split to read: the one given, or else the one recorded.

        Raises:
          UserError: none is given, and the record names none, or no name of a split.
        """
        if self.split is not None:
            return self.split
        if recorded is None:
            raise UserError(f"{origin}: records no split: give --split")
        if not _SPLIT.fullmatch(recorded):
            raise UserError(
                f"{origin}: records the split {recorded!r}, which is no name of one: give --split"
            )
        return recorded

    def of_log(self, log: Log, *, run: RunDirectory | None) -> tuple[str, str]:
        """Dataset and split of a log's images; says where others are given than are recorded."""
        origin = str(log.path)
        images = log.settings.images if log.settings is not None else None
        recorded = (images.dataset, images.split) if images is not None else (None, None)
        dataset = self.dataset_of(recorded[0], origin=origin, run=run)
        split = self.split_of(recorded[1], origin=origin)
        if recorded[0] is not None and (dataset, split) != recorded:
            commandline.say(
                f"{origin}: records {recorded[0]!r}, {recorded[1]!r}; read are {dataset}, {split}"
            )
        return dataset, split
