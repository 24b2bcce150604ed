"""What a worker does: it loads the network once, and certifies blocks of images."""

import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import apache_beam as beam

from tfmacer.common.errors import UserError
from tfmacer.distributed.job import Block, Job
from tfmacer.records.partial_results import PartialResult

if TYPE_CHECKING:
    from tfmacer.data.splits import Split
    from tfmacer.votes.source import VoteSource


class CertifyBlock(beam.DoFn):
    """Certifies blocks of images; each becomes a part."""

    _source: "VoteSource"
    _split: "Split"
    _environment: Mapping[str, Any]

    def __init__(self, job: Job) -> None:
        self._job = job

    def setup(self) -> None:
        """Loads TensorFlow, the network and the dataset, once for many blocks."""
        from tfmacer.common import commandline

        commandline.load_tensorflow(self._job.modules)
        from tfmacer.data.datasets import load_split
        from tfmacer.votes import devices
        from tfmacer.votes.open_source import open_source

        job, settings = self._job, self._job.settings[0]
        self._source = open_source(
            run_dir=job.run_dir,
            saved_model=job.saved_model,
            intra_op_threads=job.intra_op_threads,
            inter_op_threads=job.worker_threads,
            distribution=job.distribution,
        )
        if different := self._source.smoothing.difference(settings.classifier):
            raise UserError(
                f"{socket.gethostname()}: {job.run_dir or job.saved_model} is another model here: "
                f"its {different}"
            )
        self._split = load_split(
            settings.images.dataset or "",
            settings.images.split or "",
            job.data_dir,
            channels=settings.classifier.input_shape[2],
            download=job.download,
        )
        total = settings.images.total
        if self._split.total != total:
            raise UserError(
                f"{socket.gethostname()}: {settings.images.dataset} has {self._split.total} images "
                f"here, not {total}"
            )
        self._environment = devices.environment(job.intra_op_threads)

    def process(self, block: Block) -> Iterator[str]:
        """Makes the part of a block unless it is there; yields where it is."""
        from tfmacer.certification.examples import examples_of
        from tfmacer.certification.recording import certify_examples

        job = self._job
        if job.launcher is not None and not _is_alive(job.launcher):
            raise UserError(f"the command that started this run, process {job.launcher}, has ended")
        if job.read(block) is None:
            started = time.time()
            rules = [settings.rule for settings in job.settings]
            examples = examples_of(self._split, self._source.smoothing.distribution)(block)
            seed = job.settings[0].seed
            found = {
                done.example.index: done.records
                for done in certify_examples(self._source, examples, rules, seed=seed)
            }
            part = PartialResult(
                records=tuple(zip(*(found[index] for index in block), strict=True)),
                environment=self._environment,
                worker=f"{socket.gethostname()}:{os.getpid()}",
                started=started,
                finished=time.time(),
            )
            job.write(block, part)
        yield job.path(block)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
