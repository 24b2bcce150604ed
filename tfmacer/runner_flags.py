"""The flags of `python -m tfmacer.certify` for a run by Apache Beam, and that run."""

import functools
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from tfmacer.common.errors import UserError
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.image_flags import ImageFlags
from tfmacer.records.settings import LogSettings
from tfmacer.votes.source_flags import SourceFlags

if TYPE_CHECKING:
    from tfmacer.certification.examples import Examples

# Beam takes a directory of parts with one of these for a pattern, and other files would match it.
_PATTERN = frozenset("*?[\\")


class RunnerFlags:
    """`--runner`, `--pipeline_option`, `--parts_dir`, `--part_timeout` and `--worker_threads`."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        """Defines them."""
        string = functools.partial(flags.DEFINE_string, flag_values=flag_values)
        self._runner = flags.DEFINE_enum(
            "runner",
            None,
            ["direct", "dask", "flink", "spark", "dataflow", "portable", "prism"],
            "Apache Beam runner that spreads the work over processes or machines; direct is this "
            "one.",
            flag_values=flag_values,
        )
        self._options = flags.DEFINE_multi_string(
            "pipeline_option",
            [],
            "NAME=VALUE, an option of Beam or of the runner; may be repeated.",
            flag_values=flag_values,
        )
        self._parts_dir = string(
            "parts_dir", None, "Where workers write, seen by all of them; default: OUT.parts."
        )
        self._part_timeout = flags.DEFINE_float(
            "part_timeout",
            None,
            "Seconds without a finished part of the work (up to 16 images or half a million draws) "
            "after which --runner is cancelled and what is missing begun again; default: as long "
            "as the runner waits.",
            lower_bound=1,
            flag_values=flag_values,
        )
        self._worker_threads = flags.DEFINE_integer(
            "worker_threads",
            None,
            "Operations that a worker of --runner runs in parallel; default: one per core of its "
            "machine, with --runner=direct its share of the cores.",
            lower_bound=1,
            flag_values=flag_values,
        )

    @property
    def runner(self) -> str | None:
        """Value of `--runner`."""
        return self._runner.value

    def check(self, stop: StopRule, out: Path, *, server: str | None, shard: str | None) -> None:
        """Checks the flags, with those that do not go with a runner.

        Raises:
          UserError: they do not go together, are not accepted, or Beam is not installed.
        """
        if self.runner is None:
            for flag in (self._options, self._parts_dir, self._part_timeout, self._worker_threads):
                if flag.value:
                    raise UserError(f"--{flag.name} goes with --runner")
            return
        runner = f"--runner={self.runner}"
        if server is not None:
            raise UserError(
                f"{runner} certifies --run_dir or --saved_model: --server draws by itself"
            )
        if shard is not None:
            raise UserError(f"{runner} divides the images by itself: leave --shard out")
        if stop.kind == "budget":
            raise UserError(
                f"{runner}: --stop={stop} depends on the clock, so what is lost and tried again "
                "would end elsewhere; choose another --stop"
            )
        if _PATTERN & set(self._parts(out)):
            raise UserError(
                f"--parts_dir={self._parts(out)}: holds one of {' '.join(sorted(_PATTERN))}, which "
                "Beam takes for patterns: give another one"
            )
        for option in self._options.value:
            name = option.partition("=")[0]
            if not name.isidentifier() or name == "runner":
                raise UserError(f"--pipeline_option={option}: must be NAME=VALUE, as Beam has them")
        if importlib.util.find_spec("apache_beam") is None:
            raise UserError(f"{runner} needs Apache Beam: pip install 'tfmacer[beam]'")
        if self.runner == "dask" and importlib.util.find_spec("distributed") is None:
            raise UserError(f"{runner} needs Dask: pip install 'tfmacer[dask]'")
        from tfmacer.distributed.runners import direct_workers, parse_options

        parse_options(self.runner, self._options.value)
        if self.runner == "direct":
            direct_workers(self._options.value)
            if self._part_timeout.value is not None:
                raise UserError("--part_timeout is for other runners: direct notices a lost worker")

    def certify(
        self,
        settings: Sequence[LogSettings],
        paths: Sequence[Path],
        examples: "Examples",
        *,
        source: SourceFlags,
        distribution: str,
        intra_op_threads: int,
        images: ImageFlags,
    ) -> None:
        """Certifies into logs by the runner; see `tfmacer.distributed.launch.certify_logs`."""
        from tfmacer.distributed.job import Job
        from tfmacer.distributed.launch import certify_logs
        from tfmacer.distributed.runners import direct_workers

        runner, options = self.runner or "", self._options.value
        direct = runner == "direct"
        threads = self._worker_threads.value
        if threads is None and direct:
            threads = max((os.cpu_count() or 1) // direct_workers(options), 1)
        job = Job(
            run_dir=source.run_dir and str(Path(source.run_dir).absolute()),
            saved_model=source.saved_model and str(Path(source.saved_model).absolute()),
            distribution=distribution,
            worker_threads=threads,
            intra_op_threads=intra_op_threads,
            data_dir=images.data_dir,
            download=images.download,
            modules=source.modules,
            settings=tuple(settings),
            parts_dir=self._parts(paths[0]),
            launcher=os.getpid() if direct else None,
        )
        certify_logs(job, paths, runner, options, examples, self._part_timeout.value)

    def _parts(self, out: Path) -> str:
        return self._parts_dir.value or str(out.absolute().with_name(f"{out.name}.parts"))
