"""`certify_images`: certifies arrays of images with a model, in one call."""

import dataclasses
import numbers
import operator
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfmacer.certification.examples import Example
from tfmacer.certification.preflight import check_shape, preflight
from tfmacer.certification.recording import certify_examples, prepare_logs, record_examples
from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import Certificate, certify, check_reachable
from tfmacer.guarantee.distribution import NoiseDistribution
from tfmacer.guarantee.rule import Rule
from tfmacer.records.locked_table import LockedTable
from tfmacer.records.logs import LogSettings
from tfmacer.records.runs import UNKNOWN_MODEL, Smoothing
from tfmacer.records.settings import Selection
from tfmacer.records.tables import read_settings, settings_path
from tfmacer.votes.source import VoteSource

# Bits of seeds drawn here: every reader of JSON has exact integers of that size.
_SEED_BITS = 53


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
      labels: true classes `[N]`, -1 where there is none; used by the log only.
      indices: what each image is known by in the derivation of its noise; default 0 to N - 1.
      seed: of the noise, 0 or more. Where neither it nor `indices` is given, the operating system
        draws one, so that the errors of separate calls are independent; with `indices` it is 0.
        An existing log keeps its own.
      out: a .tsv file to log to, as the command does: the same call continues a log that was
        interrupted, and reads a finished log of the same images instead of drawing again. Not
        together with `indices`.
      model_digest: what the model is known by in the log: text that no other model has, e.g. the
        SHA-256 of its weights and code. Needed with `out` where nothing else identifies the
        model: a callable, or a Keras model with a vocabulary, with functions as arguments, or
        with layers that are not Keras' own.
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
        Selection(dataset=None, split=None, total=len(examples)),
        seed=seed,
        environment=environment(),
    )
    with LockedTable(path, settings) as writer:
        missing, _ = prepare_logs(source, lambda some: [examples[idx] for idx in some], [writer])
        record_examples(source, [examples[i] for i in missing], [rule], [writer], seed=seed)
        records = sorted(writer.rows, key=lambda record: record.idx)
    return [certify(record.require_draws(), rule, distribution) for record in records]


def open_votes(
    model: Any,
    *,
    sigma: float | None = None,
    num_classes: int | None = None,
    input_shape: Sequence[int] | None = None,
    model_digest: str | None = None,
) -> VoteSource:
    """Makes a source of votes of a model in any form; see `certify_images` for the arguments.

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
        from tfmacer.votes.open_source import open_source

        is_run = (Path(model) / "model.keras").is_file()
        return open_source(run_dir=model) if is_run else open_source(saved_model=model)
    if isinstance(getattr(model, "smoothing", None), Smoothing):
        return model  # type: ignore[no-any-return]
    from tfmacer.votes import devices, digests, local, models

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
    digest = digests.weights_digest(model)
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
    """The values as Python's integers; floats are refused."""
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UserError(
            f"{name} must be a list of integers, got {array.dtype} of shape {list(array.shape)}"
        )
    return [int(value) for value in array]


def _as_seed(seed: int | None, indices: Sequence[int] | None, out: Path | None) -> int:
    """The seed given; that of an existing log; or a new one, unless `indices` are given."""
    if seed is not None:
        if isinstance(seed, bool) or not hasattr(seed, "__index__") or not 0 <= seed < 2**63:
            raise UserError(f"seed must be an integer of 0 or more, below 2^63, got {seed!r}")
        return operator.index(seed)
    if out is not None and settings_path(out).exists():
        return read_settings(out, LogSettings).seed
    return secrets.randbits(_SEED_BITS) if indices is None else 0
