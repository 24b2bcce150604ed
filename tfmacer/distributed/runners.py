"""How Beam's runners are started, and what is heard of their failures."""

import contextlib
import io
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import apache_beam as beam
import grpc
from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
from apache_beam.portability.api import beam_provision_api_pb2
from apache_beam.runners.portability.fn_api_runner import fn_runner
from apache_beam.runners.portability.portable_runner import JobServiceHandle
from apache_beam.runners.runner import PipelineResult, PipelineState, create_runner

from tfmacer.common.errors import UserError
from tfmacer.distributed.job import Block, Job, repeating
from tfmacer.distributed.worker import CertifyBlock

# What runners are told unless the user says otherwise. The direct one: a process for each core.
# Dask's: each block is a task, or one worker would be given the first 128.
_DEFAULTS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "direct": {"direct_running_mode": "multi_processing", "direct_num_workers": "0"},
        "dask": {"dask_partition_size": "1"},
    }
)
_QUIET = "default_sdk_harness_log_level"
# What Beam does not know by a short name.
_CLASSES = {"dask": "apache_beam.runners.dask.dask_runner.DaskRunner"}


class WorkerLostError(Exception):
    """A worker ended, or is heard of no more, before its work was done."""


def run_pipeline(
    job: Job,
    blocks: list[Block],
    runner: str,
    options: Sequence[str],
    lost: Callable[[], str | None],
) -> None:
    """Runs the pipeline once.

    Args:
      job: what is certified.
      blocks: of the job, those to be certified.
      runner: see `tfmacer.distributed.launch.certify_logs`.
      options: of the pipeline.
      lost: asked again and again by other runners than the direct one, which notices by itself;
        why the pipeline is to be cancelled, or None.

    Raises:
      UserError: the pipeline fails.
      WorkerLostError: a worker of the direct runner ended, or `lost` had an answer.
    """
    direct = runner == "direct"
    parsed = parse_options(runner, options)
    losses: list[str] = []
    try:
        with _quiet(), _losses_raised() if direct else contextlib.nullcontext():
            pipeline = beam.Pipeline(
                runner=_direct_runner(parsed)
                if direct
                else create_runner(_CLASSES.get(runner, runner)),
                options=parsed,
            )
            # Reshuffled, or a runner may fuse reading and certifying and use one worker alone.
            created = pipeline | "Blocks" >> beam.Create(blocks) | beam.Reshuffle()
            _ = created | "Certify" >> beam.ParDo(CertifyBlock(job))
            result = pipeline.run()
            with _cancelled(result, lost, losses):
                state = result.wait_until_finish()
    except WorkerLostError:
        raise
    except Exception as error:
        if losses:
            raise WorkerLostError(losses[0]) from error
        # A runner may raise anything; the last line tells what went wrong.
        raise UserError(f"--runner={runner}: {_last_line(error)}") from error
    if losses:
        raise WorkerLostError(losses[0])
    if state not in (PipelineState.DONE, None):
        raise UserError(f"--runner={runner}: the pipeline ended as {state}")


def parse_options(runner: str, options: Sequence[str]) -> PipelineOptions:
    """The options of the pipeline, with our defaults for what is not given.

    Raises:
      UserError: a value is not accepted, or an option is not known; those of other runners than
        the direct one may be their job servers', which alone can tell.
    """
    given = {option.partition("=")[0] for option in options}
    direct = runner == "direct"
    if direct and (unknown := given - PipelineOptions([]).get_all_options().keys()):
        raise UserError(f"--pipeline_option={min(unknown)}: Beam has no such option")
    defaults = {_QUIET: "ERROR", **_DEFAULTS.get(runner, {})}
    if "dask_npartitions" in given:  # says the same in another way
        defaults.pop("dask_partition_size", None)
    flags = [f"--{name}={value}" for name, value in defaults.items() if name not in given]
    # Without a value it is a switch. Beam keeps every value of one that takes several.
    flags += [f"--{option.removesuffix('=')}" for option in options]
    complaint = io.StringIO()
    try:
        with _quiet(), contextlib.redirect_stderr(complaint):
            parsed = PipelineOptions(flags)
            parsed.get_all_options()
    except SystemExit as error:
        reason = complaint.getvalue().strip().rpartition("error: ")[2]
        raise UserError(f"--pipeline_option: {reason}") from error
    return parsed


def direct_workers(options: Sequence[str]) -> int:
    """How many processes of this machine the direct runner works with under these options.

    Raises:
      UserError: see `parse_options`; or the number is negative.
    """
    parsed = parse_options("direct", options).view_as(DirectOptions)
    number: int = parsed.direct_num_workers
    if number < 0:
        raise UserError(f"--pipeline_option=direct_num_workers={number}: must be 0 or more")
    if parsed.direct_running_mode != "multi_processing":
        return 1
    return number or os.cpu_count() or 1


def _direct_runner(options: PipelineOptions) -> fn_runner.FnApiRunner:
    """The runner in Python, which hands the options to its workers.

    `DirectRunner` by name may fetch another one from the network.
    """
    encoded = JobServiceHandle.encode_pipeline_options(options.get_all_options())
    info = beam_provision_api_pb2.ProvisionInfo(pipeline_options=encoded)
    return fn_runner.FnApiRunner(provision_info=fn_runner.ExtendedProvisionInfo(info))


@contextlib.contextmanager
def _cancelled(
    result: PipelineResult, lost: Callable[[], str | None], losses: list[str]
) -> Iterator[None]:
    """Cancels a running pipeline when `lost` has an answer, which becomes the entry of `losses`."""

    def look() -> None:
        if not losses and (reason := lost()) is not None:
            losses.append(reason)
            result.cancel()

    with repeating(look):
        yield


@contextlib.contextmanager
def _losses_raised() -> Iterator[None]:
    """Raises `WorkerLostError` here when a worker process of the direct runner dies.

    That runner notices it in a thread of its own, whose exception nobody hears, and waits for the
    worker's answer for ever. Only a signal reaches the main thread there.
    """

    def interrupt(*_: object) -> None:
        raise WorkerLostError("a worker process was lost")

    def hear(event: threading.ExceptHookArgs) -> None:
        if "exited with return code" in str(event.exc_value):
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
        elif not isinstance(event.exc_value, grpc.RpcError):  # the lost worker's channels
            before[1](event)

    before = signal.signal(signal.SIGUSR1, interrupt), threading.excepthook
    threading.excepthook = hear
    try:
        yield
    finally:
        threading.excepthook = before[1]
        signal.signal(signal.SIGUSR1, before[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Beam from logging a failure in full; the exception that it raises says it again."""
    logger = logging.getLogger("apache_beam")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _last_line(error: BaseException) -> str:
    """What a user's mistake in a worker says, or else the last line of what was raised."""
    if isinstance(error, UserError):
        return str(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in reversed(lines):
        if mistake := re.match(r"(?:\w+\.)*UserError: (.*)", line):
            return re.sub(r" \[while running .*\]$", "", mistake[1])
    return f"{type(error).__name__}: {lines[-1] if lines else 'no more is known'}"
