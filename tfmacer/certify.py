"""Certifies the images of a dataset, one row of a log for each.

  python -m tfmacer.certify --run_dir=RUN --out=LOG.tsv --num_examples=500 --skip=20

Killed and started again, it goes on where it was: finished images are not drawn again, and the
log equals an uninterrupted one's in every column but `time`. With several bounds, the first one's
log is OUT and each further one's, from the same draws, OUT with the bound's name before `.tsv`.

With --runner the same work is spread over processes or machines by Apache Beam, and the log
appears when all of it is done.
"""

import contextlib
import dataclasses
import datetime
import functools
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from tfmacer.certification.progress import CertificationProgress
from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.guarantee.bounds import BOUNDS
from tfmacer.guarantee.certificate import check_reachable
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.image_flags import ImageFlags
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.rows import Record
from tfmacer.records.runs import BLOCK_SIZE, Smoothing
from tfmacer.records.settings import LogSettings, Selection, parse_shard
from tfmacer.runner_flags import RunnerFlags
from tfmacer.votes.source_flags import SourceFlags

if TYPE_CHECKING:
    from tfmacer.certification.examples import Example
    from tfmacer.data.splits import Split
    from tfmacer.votes.source import VoteSource

FLAGS = flags.FlagValues()
_string = functools.partial(flags.DEFINE_string, flag_values=FLAGS)
_integer = functools.partial(flags.DEFINE_integer, flag_values=FLAGS)
_float = functools.partial(flags.DEFINE_float, flag_values=FLAGS)
_bool = functools.partial(flags.DEFINE_bool, flag_values=FLAGS)

_SOURCE = SourceFlags(FLAGS)
_OUT = _string("out", None, "The log, a .tsv file; LOG.tsv.json beside it holds the settings.")
_IMAGES = ImageFlags.define(
    FLAGS,
    dataset="Dataset; default: the one that the model records, where that is mnist5k or a dataset "
    "of TFDS' own on disk.",
    split="Split to certify; a folder has one split.",
    split_default="test",
)
_START = _integer("start", 0, "First position in the split as stored.", lower_bound=0)
_SKIP = _integer("skip", 1, "Step between positions.", lower_bound=1)
_NUM_EXAMPLES = _integer("num_examples", None, "How many images; default: all.", lower_bound=1)
_SHARD = _string("shard", None, "i/N: only the selected images with position p mod N = i.")
_SIGMA = _float("sigma", None, "Refuse a model whose own sigma is not this one.")
_N0 = _integer("n0", 100, "Draws that choose the class.", lower_bound=1)
_N = _integer("n", 100_000, "Draws that bound its probability, at most.", lower_bound=1)
_ALPHA = _float("alpha", 0.001, "Chance of a wrong certificate, per image.")
_BOUND = flags.DEFINE_list(
    "bound",
    [],
    f"Of {', '.join(BOUNDS)}; several, separated by commas, share one pass over the draws. "
    "Default: clopper_pearson, alpha_spending where --stop may end early.",
    flag_values=FLAGS,
)
_BETA = _float("beta", 1.0, "Inverse temperature of the softmax, for the soft bounds.")
_BILATERAL = _bool("bilateral", False, "Bound the runner-up's probability as well.")
_STOP = _string("stop", "fixed", "fixed, decide:RADIUS, precision:REL or budget:SECONDS.")
_REJECT_ALPHA = _float("reject_alpha", 0.001, "Chance of a wrong `cannot be certified`.")
_SEED = _integer("seed", 0, "Of the noise.", lower_bound=0)
_INTRA_OP = _integer(
    "intra_op_threads", 1, "Threads inside one operation; part of the votes' identity.", 1
)
_DISTRIBUTION = flags.DEFINE_enum(
    "distribution",
    "auto",
    ["auto", "one_device", "mirrored"],
    "How --run_dir uses this machine: auto spreads the draws over all of several GPUs.",
    flag_values=FLAGS,
)
_RUNNER = RunnerFlags(FLAGS)


def _main() -> None:
    out = _out_path()
    stop = StopRule.parse(_STOP.value)
    _rules(stop, BLOCK_SIZE)
    smoothing = _SOURCE.check()
    _RUNNER.check(stop, out, server=_SOURCE.server, shard=_SHARD.value)
    if smoothing is not None:
        _check_sigma(smoothing)
        _dataset(smoothing)

    _SOURCE.load_tensorflow()
    from tfmacer.certification.examples import examples_of
    from tfmacer.certification.preflight import check_shape, preflight
    from tfmacer.certification.recording import prepare_logs

    source = _SOURCE.open(intra_op_threads=_INTRA_OP.value, distribution=_DISTRIBUTION.value)
    smoothing = source.smoothing
    _check_sigma(smoothing)
    rules = _rules(stop, smoothing.block_size)
    check_reachable(rules[0], smoothing.distribution)
    split = _load_split(smoothing)
    check_shape(smoothing, split.shape, what=f"images of {split.dataset}")
    if split.num_classes > smoothing.num_classes:
        raise UserError(
            f"{split.dataset} has {split.num_classes} classes, the model {smoothing.num_classes}"
        )
    settings = [_settings(source, rule, split) for rule in rules]
    for warning in settings[0].warnings:
        commandline.warn(warning)
    examples = examples_of(split, smoothing.distribution)
    if _RUNNER.runner is not None:
        preflight(source, [example.image for example in examples(settings[0].indices[:2])])
        _RUNNER.certify(
            settings,
            _paths(out, rules),
            examples,
            source=_SOURCE,
            distribution=_DISTRIBUTION.value,
            intra_op_threads=_INTRA_OP.value,
            images=_IMAGES(),
        )
        return
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(LockedTable(path, each))
            for path, each in zip(_paths(out, rules), settings, strict=True)
        ]
        missing, speed = prepare_logs(source, examples, writers)
        if not missing:
            commandline.say(f"{out}: finished already, {len(writers[0].rows)} images")
            return
        _announce(len(missing), rules[0], speed)
        _certify(source, examples(missing), missing, rules, writers)
    commandline.say(f"{', '.join(str(writer.path) for writer in writers)}: done")


def _out_path() -> Path:
    if _OUT.value is None:
        raise UserError("--out must be given: the log, a .tsv file")
    out = Path(_OUT.value)
    if out.suffix != ".tsv":
        raise UserError(f"--out={out}: a log's name ends with .tsv")
    if _SHARD.value is not None:
        parse_shard(_SHARD.value)
    return out


def _rules(stop: StopRule, block_size: int) -> list[Rule]:
    """One rule for each bound; what they share is drawn once, as the first one's stop rule says."""
    default = "clopper_pearson" if stop.kind == "fixed" else "alpha_spending"
    names = _BOUND.value or [default]
    if len(set(names)) < len(names):
        raise UserError(f"--bound={','.join(names)} names a bound twice")
    rules = [
        Rule(
            alpha=_ALPHA.value,
            bound=name,
            bilateral=_BILATERAL.value,
            n0=_N0.value,
            n=_N.value,
            beta=_BETA.value,
            stop=stop,
            reject_alpha=_REJECT_ALPHA.value,
            block_size=block_size,
        )
        for name in names
    ]
    if len(rules) > 1 and stop.kind != "fixed":
        raise UserError(f"--bound={','.join(names)}: several bounds need --stop=fixed, got {stop}")
    return rules


def _check_sigma(smoothing: Smoothing) -> None:
    if _SIGMA.value is not None and _SIGMA.value != smoothing.sigma:
        raise UserError(f"--sigma={_SIGMA.value} is not the model's own, {smoothing.sigma}")


def _load_split(smoothing: Smoothing) -> "Split":
    from tfmacer.data.datasets import load_split

    images = _IMAGES()
    return load_split(
        _dataset(smoothing),
        images.split or "",
        images.data_dir,
        channels=smoothing.input_shape[2],
        download=images.download,
    )


def _dataset(smoothing: Smoothing) -> str:
    """The dataset to certify, given or recorded."""
    return _IMAGES().dataset_of(smoothing.dataset, origin=_SOURCE.origin, run=_SOURCE.run)


def _settings(source: "VoteSource", rule: Rule, split: "Split") -> LogSettings:
    settings = LogSettings.of(
        source.smoothing,
        rule,
        Selection(
            dataset=split.dataset,
            split=split.name,
            total=split.total,
            start=_START.value,
            skip=_SKIP.value,
            num_examples=_NUM_EXAMPLES.value,
            shard=_SHARD.value,
            class_names=split.class_names,
        ),
        seed=_SEED.value,
        environment=_environment(),
    )
    return dataclasses.replace(settings, warnings=tuple(_warnings(source, settings)))


def _environment() -> dict[str, Any]:
    if _SOURCE.server is not None:
        return {"device": "server"}
    if _RUNNER.runner is not None:
        return {}  # The workers' is not known yet.
    from tfmacer.votes.devices import environment

    return environment(_INTRA_OP.value)


def _warnings(source: "VoteSource", settings: LogSettings) -> Iterator[str]:
    """What a reader of the results should know."""
    from tfmacer.votes.local import NetworkVotes
    from tfmacer.votes.models import leads_with_normalization

    if isinstance(source, NetworkVotes) and not leads_with_normalization(source.network):
        yield (
            "no normalisation layer leads the network: sigma and radii are in units of pixels in "
            "[0, 1] only if the network was trained on such pixels with the noise added to them"
        )
    images = settings.images
    count = len(images.undivided)
    if images.skip == 1 and count < images.total:
        yield (
            f"a contiguous part of the split ({count} of {images.total}): the published MACER "
            "results were measured on 500 such images and lie up to 0.05 above the full set's; "
            "spread the images with --skip"
        )
    if settings.rule.stop.kind == "decide":
        yield "stop=decide ends at its radius: radii are truncated there, an ACR has no meaning"


def _paths(out: Path, rules: Sequence[Rule]) -> list[Path]:
    return [out, *(out.with_name(f"{out.stem}.{rule.bound}.tsv") for rule in rules[1:])]


def _announce(images: int, rule: Rule, speed: float) -> None:
    draws = images * (rule.n0 + rule.n)
    most = " at most" if len(rule.looks) > 1 else ""
    commandline.say(
        f"{images} images x {rule.n0} + {rule.n} draws{most}: about "
        f"{datetime.timedelta(seconds=round(draws / speed))} at {speed:,.0f} draws a second"
    )


def _certify(
    source: "VoteSource",
    examples: "Iterable[Example]",
    missing: Sequence[int],
    rules: Sequence[Rule],
    writers: Sequence[LockedTable[Record]],
) -> None:
    from tfmacer.certification.recording import record_examples

    done = [record for record in writers[0].rows if record.idx not in set(missing)]
    with CertificationProgress(len(missing) + len(done), done) as progress:
        record_examples(
            source,
            examples,
            rules,
            writers,
            seed=_SEED.value,
            on_progress=progress.drawn,
            on_record=progress.finished,
        )


main = commandline.command(_main, FLAGS, "python -m tfmacer.certify", __doc__)


if __name__ == "__main__":
    sys.exit(main())
