"""The parts of a job, as the command that started it sees them."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from tfmacer.common.errors import UserError
from tfmacer.distributed.job import Block, Job, repeating, write_file
from tfmacer.records.partial_results import PartialResult
from tfmacer.records.settings import LogSettings


class PartialResults:
    """The parts of a job, read once each as they appear.

    Attributes:
      folder: where they are.
      found: those that were read.
      missing: blocks without one.
      on_part: told of each part as it is read.
      idle: seconds since a part appeared, or since they are watched.
    """

    def __init__(self, job: Job) -> None:
        """Makes the directory of the parts, or takes up the one of an earlier run.

        Raises:
          UserError: the directory holds parts of other settings, or cannot be used.
        """
        self._job = job
        self.folder = job.parts_dir
        self.on_part: Callable[[PartialResult], None] = lambda part: None
        self.found: dict[Block, PartialResult] = {}
        self.missing = job.blocks
        self._appeared = time.monotonic()
        beside = FileSystems.join(job.parts_dir, "settings.json")
        try:
            if FileSystems.exists(beside):
                self._compare(beside)
            else:
                if not FileSystems.exists(job.parts_dir):
                    FileSystems.mkdirs(job.parts_dir)
                write_file(beside, job.settings[0].to_json())
        except UserError:
            raise
        except (OSError, BeamIOError, ValueError) as error:
            raise UserError(f"{job.parts_dir}: cannot be used: {error}") from error

    def _compare(self, beside: str) -> None:
        with FileSystems.open(beside) as file:
            found = LogSettings.from_json(file.read().decode(), origin=beside)
        if differing := found.differences(self._job.settings[0]):
            raise UserError(
                f"{self.folder}: was made with other settings: {'; '.join(differing)}; "
                "choose another --out, or remove it"
            )

    def look(self) -> None:
        """Reads the parts that have appeared."""
        pattern = FileSystems.join(self._job.parts_dir, "*-*.json")
        there = {each.path for each in FileSystems.match([pattern])[0].metadata_list}
        for block in [block for block in self.missing if self._job.path(block) in there]:
            if (part := self._job.read(block)) is not None:
                self.found[block] = part
                self._appeared = time.monotonic()
                self.on_part(part)
        self.missing = [block for block in self.missing if block not in self.found]

    @property
    def idle(self) -> float:
        """See the class."""
        return time.monotonic() - self._appeared

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Looks again and again meanwhile, and a last time afterwards."""
        self._appeared = time.monotonic()
        try:
            with repeating(self.look):
                yield
        finally:
            self.look()

    def remove(self) -> None:
        """Removes the parts, and their directory where nothing else is in it."""
        patterns = [self._job.path(block) + "*" for block in self._job.blocks]
        settings = FileSystems.join(self.folder, "settings.json")
        patterns += [settings, f"{settings}.*.tmp"]
        matches = FileSystems.match(patterns)
        FileSystems.delete([each.path for match in matches for each in match.metadata_list])
        # Buckets have no directories.
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)
