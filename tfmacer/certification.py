"""`certify_images`, the one call behind the command, callbacks and anyone's own code."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.errors import UserError
from tfmacer.guarantee import smoothing as laws
from tfmacer.guarantee.certificate import Certificate, certify, check_reachable
from tfmacer.guarantee.rule import Rule
from tfmacer.records.logs import LogSettings, LogWriter, Record
from tfmacer.records.runs import Smoothing
from tfmacer.votes.driver import Progress, Task, draw_certificates
from tfmacer.votes.source import VoteSource

# Images whose clean class is looked up in one forward pass.
_CLEAN_BATCH = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """One image of a dataset, at its place.

    Attributes:
      index: position in the split as stored; with the run's seed it names the noise.
      image: float32 `[H, W, C]` in [0, 1].
      label: the true class, -1 where there is none.
    """

    index: int
    image: npt.NDArray[np.float32]
    label: int = -1


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
            )
            for certificate in self.certificates
        )


def smoothing_law(smoothing: Smoothing) -> laws.Law:
    """The law of a classifier's noise."""
    return laws.law(
        smoothing.noise_family,
        sigma=smoothing.sigma,
        params=smoothing.noise_params,
        dimension=int(np.prod(smoothing.input_shape)),
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
    waiting: dict[int, tuple[Example, int]] = {}

    def tasks() -> Iterator[Task]:
        for batch in _batches(examples, _CLEAN_BATCH):
            logits = source.logits(np.stack([example.image for example in batch]))
            for example, clean in zip(batch, logits.argmax(axis=1), strict=True):
                waiting[example.index] = (example, int(clean))
                yield Task.seeded(seed, example.index, example.image)

    law = smoothing_law(source.smoothing)
    for progress in draw_certificates(source, tasks(), rules[0], law, also=rules[1:]):
        on_progress(progress)
        if progress.done and progress.certificate is not None:
            example, clean = waiting.pop(progress.index)
            yield Certified(
                example=example,
                certificates=(progress.certificate, *progress.also),
                clean=clean,
                seconds=progress.seconds,
            )


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
      source: where votes come from.
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


def certify_images(
    model_or_votes: Any,
    images: npt.NDArray[Any],
    *,
    sigma: float | None = None,
    num_classes: int | None = None,
    labels: Sequence[int] | None = None,
    indices: Sequence[int] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    **plan: Any,
) -> list[Certificate]:
    """Certifies images with randomized smoothing (Cohen et al., ICML 2019, CERTIFY).

    Args:
      model_or_votes: a `VoteSource`; a Keras model or any TensorFlow callable from images
        `[B, H, W, C]` to logits `[B, K]`; the path of a run directory or of an export.
      images: `[N, H, W, C]`, float in [0, 1] or uint8 in [0, 255].
      sigma: scale of the Gaussian noise in units of pixels in [0, 1]. Needed for a bare model;
        a run, an export or a server knows its own, and a different one is refused.
      num_classes: K; needed for a callable that is no Keras model.
      labels: true classes `[N]`, -1 where there is none; only the log needs them.
      indices: what each image is known by in the derivation of its noise; default 0 to N - 1.
      seed: of the noise.
      out: a .tsv file to log to, as the command does: a call that was killed goes on where it
        was, and a finished log is read instead of drawn again. Not together with `indices`.
      **plan: fields of `tfmacer.guarantee.certificate.Rule`: `n0`, `n`, `alpha`, `bound`,
        `bilateral`, `stop`, ...

    Returns:
      One certificate for each image, in the order of `images`.

    Raises:
      UserError: an argument is out of range, or does not fit the model or the log.
    """
    pixels = _as_pixels(images)
    source = open_votes(
        model_or_votes, sigma=sigma, num_classes=num_classes, input_shape=pixels.shape[1:]
    )
    check_shape(source.smoothing, pixels.shape[1:])
    rule = Rule(**({"block_size": source.smoothing.block_size} | plan))
    law = smoothing_law(source.smoothing)
    check_reachable(rule, law)
    numbers = range(len(pixels)) if indices is None else indices
    if len(numbers) != len(pixels) or len(set(numbers)) != len(pixels):
        raise UserError(f"indices must be {len(pixels)} different integers, got {indices}")
    if labels is not None and len(labels) != len(pixels):
        raise UserError(f"labels must be {len(pixels)} integers, got {len(labels)}")
    truths = [-1] * len(pixels) if labels is None else labels
    examples = [
        Example(int(i), image, int(label))
        for i, image, label in zip(numbers, pixels, truths, strict=True)
    ]
    if out is not None:
        if indices is not None:
            raise UserError("indices cannot be given with out: a log counts its images from 0")
        return _certify_to(Path(out), source, examples, rule, law, seed)
    found = {
        done.example.index: done.certificates[0]
        for done in certify_examples(source, examples, [rule], seed=seed)
    }
    return [found[example.index] for example in examples]


def _certify_to(
    path: Path, source: VoteSource, examples: list[Example], rule: Rule, law: laws.Law, seed: int
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
        missing = set(writer.missing)
        todo = [example for example in examples if example.index in missing]
        record_examples(source, todo, [rule], [writer], seed=seed)
        records = sorted(writer.records, key=lambda record: record.idx)
    return [certify(record.all_counts, rule, law) for record in records]


def open_votes(
    model: Any,
    *,
    sigma: float | None = None,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
) -> VoteSource:
    """Makes a source of votes of whatever can be one; see `certify_images` for the arguments.

    Raises:
      UserError: `sigma` is missing for a bare model, or differs from the model's own.
    """
    if isinstance(model, (str, Path)):
        from tfmacer.votes import local

        path = Path(model)
        is_run = (path / "model.keras").is_file()
        source: VoteSource = local.from_run(path) if is_run else local.SavedModelVotes(path)
    elif isinstance(getattr(model, "smoothing", None), Smoothing):
        source = model
    else:
        return _open_bare(model, sigma, num_classes, input_shape)
    if sigma is not None and sigma != source.smoothing.sigma:
        raise UserError(
            f"sigma={sigma} differs from the model's own, {source.smoothing.sigma}: a certificate "
            "for another noise than the one trained with is sound but empty; leave sigma out"
        )
    return source


def _open_bare(
    model: Any, sigma: float | None, num_classes: int | None, input_shape: Sequence[int] | None
) -> VoteSource:
    from tfmacer.votes import devices, local, models

    if num_classes is None:
        num_classes = getattr(model, "output_shape", (None,))[-1]
    if sigma is None or num_classes is None or input_shape is None:
        raise UserError(
            "sigma, num_classes and input_shape must be given for a model that does not record "
            f"them, got {sigma}, {num_classes} and {input_shape}"
        )
    height, width, channels = input_shape
    smoothing = Smoothing(
        sigma=sigma,
        num_classes=num_classes,
        input_shape=(height, width, channels),
        model_digest=models.weights_digest(model),
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


def preflight(source: VoteSource, images: npt.NDArray[np.float32]) -> float:
    """Checks that the classifier is a function of one noisy image alone; measures its speed.

    Args:
      source: where votes come from.
      images: a few images, float32 `[B, H, W, C]`; two suffice.

    Returns:
      Draws per second, one image at a time, from a short run.

    Raises:
      UserError: votes of equal draws differ (dropout or other randomness is active), or an
        image's logits depend on the images beside it (batch statistics are active).
    """
    together = source.logits(images)
    scale = max(1.0, float(np.abs(together).max()))
    for image, logits in zip(images, together, strict=True):
        difference = float(np.abs(source.logits(image[np.newaxis])[0] - logits).max())
        if not difference <= 1e-3 * scale:
            raise UserError(
                "the model's logits of an image change with the images beside it: batch "
                "statistics are active; certify the model in inference mode"
            )
    block = source.smoothing.block_size
    rows = source.parallelism
    request = (
        np.repeat(images[:1], rows, axis=0),
        np.tile(np.array([[1, 2]], np.int32), (rows, 1)),
        np.zeros(rows, np.int32),
        np.full(rows, block, np.int32),
    )
    first = source.sample(*request)
    started = time.monotonic()
    second = source.sample(*request)
    elapsed = time.monotonic() - started
    if not (first.counts == second.counts).all() or not (first.counts == first.counts[0]).all():
        raise UserError(
            "the model votes differently on equal noisy images: dropout or other randomness is "
            "active; certify the model in inference mode"
        )
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


def _batches(examples: Iterable[Example], size: int) -> Iterator[list[Example]]:
    iterator = iter(examples)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
