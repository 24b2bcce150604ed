"""What is to be done, as every worker knows it, and where its parts are."""

import contextlib
import dataclasses
import threading
import uuid
from collections.abc import Callable, Iterator

from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from tfmacer.records.partial_results import PartialResult
from tfmacer.records.settings import LogSettings

Block = tuple[int, ...]

# About how many draws a block takes, so that one that is lost costs no more than minutes.
_DRAWS = 500_000
_MOST_IMAGES = 16


def write_file(path: str, text: str) -> None:
    """Writes a file of any file system that Beam knows so that nobody sees a part of it."""
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    with FileSystems.create(temporary) as file:
        file.write(text.encode())
    FileSystems.rename([temporary], [path])


@contextlib.contextmanager
def repeating(action: Callable[[], None]) -> Iterator[None]:
    """Calls a function every second meanwhile, on a thread of its own."""
    over = threading.Event()

    def repeat() -> None:
        while not over.wait(1.0):
            action()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What every worker must know. Paths are those on the workers' machines.

    Attributes:
      run_dir: whose network is certified; None for an export.
      saved_model: export to certify instead.
      distribution: how a worker uses its machine, as `--distribution`.
      worker_threads: operations that a worker runs side by side; None for one per core.
      intra_op_threads: threads inside one operation.
      data_dir: of TensorFlow Datasets.
      download: whether a dataset of it that is missing is fetched.
      modules: to import before the network is loaded.
      settings: of each log, without an environment.
      parts_dir: where parts are written.
      launcher: process without which workers of this machine give up; None for other machines'.
    """

    run_dir: str | None
    saved_model: str | None
    distribution: str
    worker_threads: int | None
    intra_op_threads: int
    data_dir: str | None
    download: bool
    modules: tuple[str, ...]
    settings: tuple[LogSettings, ...]
    parts_dir: str
    launcher: int | None = None

    @property
    def blocks(self) -> list[Block]:
        """The selected images, a few at a time; the same for every run of the same settings."""
        shared = self.settings[0]
        size = min(max(_DRAWS // (shared.rule.n0 + shared.rule.n), 1), _MOST_IMAGES)
        indices = shared.indices
        return [tuple(indices[i : i + size]) for i in range(0, len(indices), size)]

    def path(self, block: Block) -> str:
        """Where the part of a block is."""
        return FileSystems.join(self.parts_dir, f"{block[0]:08d}-{block[-1]:08d}.json")

    def read(self, block: Block) -> PartialResult | None:
        """The part of a block; None where there is none that is whole."""
        try:
            with FileSystems.open(self.path(block)) as file:
                text = file.read().decode()
            return PartialResult.from_text(text, block, self.settings)
        except (OSError, BeamIOError, ValueError, TypeError):
            return None

    def write(self, block: Block, part: PartialResult) -> None:
        """Makes the part appear, whole."""
        write_file(self.path(block), part.to_text(self.settings))
