"""`certify_images`, the one call behind the command, callbacks and anyone's own code."""

import dataclasses
import functools
import itertools
import numbers
import operator
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import Certificate, certify, check_reachable
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.guarantee.rule import Rule
from tfmacer.records import rows
from tfmacer.records.locked_table import read_settings, settings_path
from tfmacer.records.logs import LogSettings, LogWriter, Record
from tfmacer.records.runs import UNKNOWN_MODEL, Smoothing
from tfmacer.records.sealing import pixels_digest
from tfmacer.votes.driver import Progress, Task, draw_certificates
from tfmacer.votes.source import VoteSource

if TYPE_CHECKING:
    from tfmacer.data.splits import Split

# Images whose clean class is looked up in one forward pass.
_CLEAN_BATCH = 64
# Images of a split read at a time.
_LOADED = 256
# Of seeds drawn here: every reader of JSON has integers of so many bits.
_SEED_BITS = 53


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One image of a dataset, at its place.

    Attributes:
      index: position in the split as stored; with the run's seed it names the noise.
      image: float32 `[H, W, C]` in [0, 1], as it is certified: see `NoiseDistribution.pixels`.
      label: the true class, -1 where there is none.
      name: what the dataset calls it; None where it has no name.
    """

    index: int
    image: npt.NDArray[np.float32]
    label: int = -1
    name: str | None = None

    @functools.cached_property
    def pixels_sha256(self) -> str:
        """See `tfmacer.records.sealing.pixels_digest`."""
        return pixels_digest(self.image)


# The examples at some positions, ascending, in their order.
Examples = Callable[[Sequence[int]], Iterable[Example]]


def examples_of(split: "Split", distribution: NoiseDistribution) -> Examples:
    """The images of a split, read a few ahead, as the distribution certifies them."""

    def examples(positions: Sequence[int]) -> Iterator[Example]:
        for start in range(0, len(positions), _LOADED):
            chunk = positions[start : start + _LOADED]
            for index, image, label in zip(chunk, *split.take(chunk), strict=True):
                yield Example(
                    index, distribution.pixels(image), int(label), split.image_name(index)
                )

    return examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certified:
    """What came of one example.

    Attributes:
      example: the image certified.
      certificates: the statement about it by each rule, in their order.
      clean: the base network's class without noise.
      seconds: from its first draw to its last.
    """

    example: Example
    certificates: tuple[Certificate, ...]
    clean: int
    seconds: float

    @property
    def records(self) -> tuple[Record, ...]:
        """The row of each rule's log."""
        return tuple(
            Record.of(
                certificate,
                idx=self.example.index,
                label=self.example.label,
                clean=self.clean,
                seconds=self.seconds,
                pixels_sha256=self.example.pixels_sha256,
                name=self.example.name,
            )
            for certificate in self.certificates
        )


def certify_examples(
    source: VoteSource,
    examples: Iterable[Example],
    rules: Sequence[Rule],
    *,
    seed: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Iterator[Certified]:
    """Certifies examples as they are drawn from the iterable.

    Args:
      source: where votes come from.
      examples: the images; taken a few at a time.
      rules: sampling plan, bound and stop rule; the first one governs the drawing, the others
        certify from the same draws.
      seed: of the noise; with an example's index it determines the certificate.
      on_progress: told after each round how far each image has come.

    Yields:
      Each example with its certificate, in the order in which they finish.
    """
    distribution = source.smoothing.distribution
    waiting: dict[int, tuple[Example, int]] = {}

    def tasks() -> Iterator[Task]:
        for batch in _batches(examples, _CLEAN_BATCH):
            logits = source.logits(np.stack([example.image for example in batch]))
            for example, clean in zip(batch, logits.argmax(axis=1), strict=True):
                waiting[example.index] = (example, int(clean))
                yield Task.seeded(seed, example.index, example.image)

    for progress in draw_certificates(source, tasks(), rules[0], distribution, also=rules[1:]):
        on_progress(progress)
        if progress.done and progress.certificate is not None:
            example, clean = waiting.pop(progress.index)
            yield Certified(
                example=example,
                certificates=(progress.certificate, *progress.also),
                clean=clean,
                seconds=progress.seconds,
            )


def check_images(path: Path | str, records: Sequence[Record], examples: Iterable[Example]) -> None:
    """Makes sure that records are of the images at hand: of their names, pixels and labels.

    Args:
      path: of the log or the parts, for the error message.
      records: their rows. Those of format version 1 do not name their pixels.
      examples: the image of each row, in any order.

    Raises:
      UserError: a record is of another image, name or label; names the first.
    """
    by_idx = {record.idx: record for record in records}
    for example in examples:
        record = by_idx[example.index]
        name = rows.printable(example.name) if example.name else None
        for what, found, right in (
            ("pixels of SHA-256", record.pixels_sha256, example.pixels_sha256),
            ("label", record.label, example.label),
            ("name", record.name if name else None, name),
        ):
            if found not in (None, right):
                called = f" ({name})" if name else ""
                raise UserError(
                    f"{path}: idx {example.index}{called} was certified with {what} {found}, the "
                    f"image at hand has {right}: the log is of other images; choose another file"
                )


def prepare_logs(
    source: VoteSource, examples: Examples, writers: Sequence[LogWriter]
) -> tuple[list[int], float]:
    """Checks all that must be right before images are certified into logs.

    Args:
      source: where votes come from.
      examples: the images.
      writers: the logs.

    Returns:
      What some log still lacks, ascending; and draws per second, 0 where nothing is to be drawn.

    Raises:
      UserError: see `check_images` and `preflight`.
    """
    for writer in writers:
        check_images(writer.path, writer.rows, examples(sorted(row.idx for row in writer.rows)))
    missing = sorted(set().union(*(writer.missing for writer in writers)))
    few = [example.image for example in examples(missing[:2])]
    return missing, preflight(source, few) if few else 0.0


def record_examples(
    source: VoteSource,
    examples: Iterable[Example],
    rules: Sequence[Rule],
    writers: Sequence[LogWriter],
    *,
    seed: int = 0,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    on_record: Callable[[Record], None] = lambda record: None,
) -> None:
    """Certifies examples into logs, one for each rule; a row is on disk before the next image's.

    Args:
      source: where votes come from, which passed `preflight`.
      examples: the images; a log that holds one already does not get it again.
      rules: as in `certify_examples`.
      writers: the logs, in the order of the rules.
      seed: of the noise.
      on_progress: told after each round how far each image has come.
      on_record: told of each finished image, by the first rule.
    """
    missing = [set(writer.missing) for writer in writers]
    for done in certify_examples(source, examples, rules, seed=seed, on_progress=on_progress):
        for writer, record, wanted in zip(writers, done.records, missing, strict=True):
            if record.idx in wanted:
                writer.append(record)
        on_record(done.records[0])


class Certificates(list[Certificate]):
    """Certificates in the order of their images.

    Attributes:
      seed: of the noise that they were drawn with.
    """

    def __init__(self, certificates: Iterable[Certificate], seed: int) -> None:
        super().__init__(certificates)
        self.seed = seed


def certify_images(
    model_or_votes: Any,
    images: npt.NDArray[Any],
    *,
    sigma: float | None = None,
    num_classes: int | None = None,
    labels: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    model_digest: str | None = None,
    **plan: Any,
) -> Certificates:
    """Certifies images with randomized smoothing (Cohen et al., ICML 2019, CERTIFY).

    Args:
      model_or_votes: a `VoteSource`; a Keras model or any TensorFlow callable from images
        `[B, H, W, C]` to logits `[B, K]`; the path of a run directory or of an export.
      images: `[N, H, W, C]`, float in [0, 1] or uint8 in [0, 255].
      sigma: scale of the Gaussian noise in units of pixels in [0, 1]. Needed for a bare model;
        a run, an export or a server knows its own, and a different one is refused.
      num_classes: K, of a bare model; None for what it returns.
      labels: true classes `[N]`, -1 where there is none; only the log needs them.
      indices: what each image is known by in the derivation of its noise; default 0 to N - 1.
      seed: of the noise, 0 or more. Where neither it nor `indices` is given, the operating system
        draws one, so that the errors of separate calls are independent; with `indices` it is 0.
        A log that is there keeps its own.
      out: a .tsv file to log to, as the command does: a call that was killed goes on where it
        was, and a finished log of the same images is read instead of drawn again. Not together
        with `indices`.
      model_digest: what the model is known by in the log: text that no other model has, e.g. the
        SHA-256 of its weights and code. Needed with `out` where nothing else identifies the
        model: a callable, or a Keras model with layers or functions that are not Keras' own.
      **plan: fields of `tfmacer.guarantee.certificate.Rule`: `n0`, `n`, `alpha`, `bound`,
        `bilateral`, `stop`, ...

    Returns:
      One certificate for each image, in the order of `images`; their `seed` is that of the noise.

    Raises:
      UserError: an argument is out of range, or does not fit the model or the log; the model is no
        function of one image alone, see `preflight`; the log is of other images.
    """
    pixels = _as_pixels(images)
    source = open_votes(
        model_or_votes,
        sigma=sigma,
        num_classes=num_classes,
        input_shape=pixels.shape[1:],
        model_digest=model_digest,
    )
    check_shape(source.smoothing, pixels.shape[1:])
    fields = [field.name for field in dataclasses.fields(Rule)]
    if unknown := sorted(plan.keys() - set(fields)):
        raise UserError(f"{unknown[0]} is no argument; a plan has {', '.join(fields)}")
    rule = Rule(**({"block_size": source.smoothing.block_size} | plan))
    distribution = source.smoothing.distribution
    check_reachable(rule, distribution)
    places = list(range(len(pixels))) if indices is None else _as_integers("indices", indices)
    if len(places) != len(pixels) or len(set(places)) != len(pixels):
        raise UserError(f"indices must be {len(pixels)} different integers, got {indices}")
    truths = _as_labels(labels, len(pixels), source.smoothing.num_classes)
    examples = [
        Example(i, distribution.pixels(image), label)
        for i, image, label in zip(places, pixels, truths, strict=True)
    ]
    if out is not None and indices is not None:
        raise UserError("indices cannot be given with out: a log counts its images from 0")
    path = None if out is None else Path(out)
    seed = _as_seed(seed, indices, path)
    if path is not None:
        return Certificates(_certify_to(path, source, examples, rule, distribution, seed), seed)
    if not examples:
        return Certificates([], seed)
    preflight(source, [example.image for example in examples[:2]])
    found = {
        done.example.index: done.certificates[0]
        for done in certify_examples(source, examples, [rule], seed=seed)
    }
    return Certificates([found[example.index] for example in examples], seed)


def _certify_to(
    path: Path,
    source: VoteSource,
    examples: list[Example],
    rule: Rule,
    distribution: NoiseDistribution,
    seed: int,
) -> list[Certificate]:
    from tfmacer.votes.devices import environment

    settings = LogSettings.of(
        source.smoothing,
        rule,
        seed=seed,
        dataset=None,
        split=None,
        total=len(examples),
        environment=environment(),
    )
    with LogWriter(path, settings) as writer:
        missing, _ = prepare_logs(source, lambda some: [examples[idx] for idx in some], [writer])
        record_examples(source, [examples[i] for i in missing], [rule], [writer], seed=seed)
        records = sorted(writer.rows, key=lambda record: record.idx)
    return [certify(record.all_counts, rule, distribution) for record in records]


def open_votes(
    model: Any,
    *,
    sigma: float | None = None,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    model_digest: str | None = None,
) -> VoteSource:
    """Makes a source of votes of whatever can be one; see `certify_images` for the arguments.

    Raises:
      UserError: `sigma` is missing for a bare model; it or `model_digest` differs from the model's
        own.
    """
    source = _open(model, sigma, num_classes, input_shape, model_digest)
    for name, given in (("sigma", sigma), ("model_digest", model_digest)):
        own = getattr(source.smoothing, name)
        if given not in (None, own):
            raise UserError(
                f"{name}={given} differs from the model's own, {own}: leave {name} out"
                + (
                    "; a certificate for another noise than the one trained with is sound but empty"
                    if name == "sigma"
                    else ""
                )
            )
    return source


def _open(
    model: Any,
    sigma: float | None,
    num_classes: int | None,
    input_shape: Sequence[int] | None,
    model_digest: str | None,
) -> VoteSource:
    if isinstance(model, (str, Path)):
        from tfmacer.votes import local

        path = Path(model)
        is_run = (path / "model.keras").is_file()
        return local.from_run(path) if is_run else local.SavedModelVotes(path)
    if isinstance(getattr(model, "smoothing", None), Smoothing):
        return model  # type: ignore[no-any-return]
    from tfmacer.votes import devices, local, models

    if sigma is None or input_shape is None:
        raise UserError(
            "sigma and input_shape must be given for a model that does not record them, got "
            f"{sigma} and {input_shape}"
        )
    if not isinstance(sigma, numbers.Real):
        raise UserError(f"sigma must be a number, got {sigma!r}")
    height, width, channels = input_shape
    found = models.answers(model, (height, width, channels), what="the model").shape[1]
    if num_classes not in (None, found):
        raise UserError(f"num_classes={num_classes}: the model returns logits of {found}")
    digest = models.weights_digest(model)
    if digest == UNKNOWN_MODEL and model_digest is not None:
        named = isinstance(model_digest, str) and model_digest.isprintable()
        if not named or model_digest in ("", UNKNOWN_MODEL):
            raise UserError(f"model_digest must be text that names a model, got {model_digest!r}")
        digest = model_digest
    smoothing = Smoothing(
        sigma=sigma,
        num_classes=found,
        input_shape=(height, width, channels),
        model_digest=digest,
        versions=devices.library_versions(),
    )
    return local.NetworkVotes(model, smoothing)


def check_shape(smoothing: Smoothing, shape: Sequence[int], *, what: str = "images") -> None:
    """Raises UserError where images of `shape` (H, W, C) do not fit the model."""
    if tuple(shape) != smoothing.input_shape:
        raise UserError(
            f"{what} are {'x'.join(map(str, shape))} (H x W x C), "
            f"the model takes {'x'.join(map(str, smoothing.input_shape))}"
        )


def preflight(source: VoteSource, images: Sequence[npt.NDArray[np.float32]]) -> float:
    """Checks that the classifier is a function of one noisy image alone; measures its speed.

    Args:
      source: where votes come from.
      images: one or more images, float32 `[H, W, C]` in [0, 1]; two suffice.

    Returns:
      Draws per second, one image at a time, from a short run.

    Raises:
      UserError: equal draws give different votes or scores (dropout or other randomness is
        active), an image's logits depend on the images beside it (batch statistics are active), or
        are not finite.
    """
    # Its negative stands beside the first image, in case that there is no other.
    batch = np.stack([*images, 1 - images[0]])
    together = source.logits(batch)
    if not np.isfinite(together).all():
        raise UserError("the model's logits of an image without noise are not finite")
    scale = max(1.0, float(np.abs(together).max()))

    def differ(others: npt.NDArray[np.float32]) -> bool:
        return not float(np.abs(others - together).max()) <= 1e-3 * scale

    random = UserError(
        "the model answers differently on equal noisy images: dropout or other randomness is "
        "active; certify the model in inference mode"
    )
    if differ(source.logits(batch)):
        raise random
    if differ(np.concatenate([source.logits(image[np.newaxis]) for image in batch])):
        raise UserError(
            "the model's logits of an image change with the images beside it: batch "
            "statistics are active; certify the model in inference mode"
        )
    block = source.smoothing.block_size
    rows = source.parallelism
    request = (
        np.repeat(batch[:1], rows, axis=0),
        np.tile(np.array([[1, 2]], np.int32), (rows, 1)),
        np.zeros(rows, np.int32),
        np.full(rows, block, np.int32),
    )
    first = source.sample(*request)
    started = time.monotonic()
    second = source.sample(*request)
    elapsed = time.monotonic() - started
    for votes in (first, second):
        equal = (votes.counts == first.counts[0]).all()
        if not equal or np.abs(votes.sums - first.sums[0]).max() > 1e-3 * block:
            raise random
    return rows * block / max(elapsed, 1e-9)


def _as_pixels(images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    array = np.asarray(images)
    if array.ndim != 4:
        raise UserError(f"images must be [N, H, W, C], got shape {list(array.shape)}")
    if array.dtype == np.uint8:
        return array.astype(np.float32) / np.float32(255)
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"images must be float in [0, 1] or uint8 in [0, 255], got {array.dtype}")
    if array.size and not (array.min() >= 0 and array.max() <= 1):
        raise UserError(
            f"images must lie in [0, 1], found values from {array.min():.4g} to {array.max():.4g}"
        )
    return array.astype(np.float32)


def _as_labels(labels: Sequence[int] | None, count: int, num_classes: int) -> list[int]:
    if labels is None:
        return [-1] * count
    truths = _as_integers("labels", labels)
    if len(truths) != count:
        raise UserError(f"labels must be {count} integers, got {len(truths)}")
    if not all(-1 <= label < num_classes for label in truths):
        raise UserError(
            f"labels must be 0 to {num_classes - 1}, or -1 for none, got {min(truths)} to "
            f"{max(truths)}"
        )
    return truths


def _as_integers(name: str, values: Sequence[int]) -> list[int]:
    """The values as Python's integers; nothing is rounded to one."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UserError(
            f"{name} must be a list of integers, got {array.dtype} of shape {list(array.shape)}"
        )
    return [int(value) for value in array]


def _as_seed(seed: int | None, indices: Sequence[int] | None, out: Path | None) -> int:
    """The seed given; that of a log that is there; or a new one, unless `indices` are given."""
    if seed is not None:
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < 2**63:
            raise UserError(f"seed must be an integer of 0 or more, below 2^63, got {seed!r}")
        return operator.index(seed)
    if out is not None and settings_path(out).exists():
        return read_settings(out, LogSettings).seed
    return secrets.randbits(_SEED_BITS) if indices is None else 0


def _batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
