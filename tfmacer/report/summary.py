"""The numbers of a report: what each run shows, and how two runs compare on the same images.

Intervals are 95 % and speak of the choice of images, as if drawn at random from the split; that a
certificate itself may be wrong, with probability alpha, is another matter (`Run.dataset_bound`).
"""

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt
from scipy import stats

from tfmacer.guarantee.certificate import largest_radius, round_down
from tfmacer.guarantee.dataset import dataset_lower_bound
from tfmacer.noise.radii import linf_from_l2
from tfmacer.records.falsifications import Falsification
from tfmacer.records.logs import Log
from tfmacer.records.rows import Record
from tfmacer.records.settings import LogSettings

CONFIDENCE = 0.95
# How the norms are written.
NORMS = {"l2": "l2", "linf": "l-infinity"}

Floats = npt.NDArray[np.float64]
_ROW = np.dtype(
    [("idx", "i8"), ("label", "i8"), ("predict", "i8"), ("radius", "f8"), ("correct", "?")]
)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Run:
    """One log, seen as a result.

    Attributes:
      name: what tells it from the other runs of the report.
      log: its records; those without a true label enter nothing here but `abstention`.
      attacks: what attacks on its certificates found.
      converted: whether its radii are l2 radii over sqrt(d), see `in_linf`.
    """

    name: str
    log: Log
    attacks: tuple[Falsification, ...] = ()
    converted: bool = False

    @property
    def settings(self) -> LogSettings | None:
        """What its rows share; None for a log of another project."""
        return self.log.settings

    @property
    def norm(self) -> str:
        """That of its radii, `l2` or `linf`; published logs are taken to hold l2 radii."""
        if self.settings is None:
            return "l2"
        return "linf" if self.converted else self.settings.classifier.distribution.norm

    def in_linf(self) -> "Run | None":
        """The same with each l2 radius as that of the l-infinity ball inside, r / sqrt(d).

        None where the radii are no l2 radii, d is unknown, or one radius was decided about.
        """
        if self.settings is None or self.norm != "l2" or self.decides is not None:
            return None
        dimension = math.prod(self.settings.classifier.input_shape)
        records = tuple(
            dataclasses.replace(r, radius=round_down(linf_from_l2(r.radius, dimension)))
            for r in self.log.records
        )
        name = f"{self.name}, l2 / sqrt(d)"
        return Run(name, dataclasses.replace(self.log, records=records), converted=True)

    @functools.cached_property
    def rows(self) -> npt.NDArray[np.void]:
        """All records, by idx, in the columns that published logs have but for the time."""
        kept = [(r.idx, r.label, r.predict, r.radius, r.correct) for r in self.log.records]
        return np.array(kept, _ROW)

    @functools.cached_property
    def pixels(self) -> dict[int, str]:
        """Digest of each image by idx, as far as the log names them."""
        return {r.idx: r.pixels_sha256 for r in self.log.records if r.pixels_sha256 is not None}

    @functools.cached_property
    def idx(self) -> npt.NDArray[np.int64]:
        """Positions of the labelled images, ascending."""
        return np.array([record.idx for record in self._labelled], np.int64)

    @functools.cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """Their true classes."""
        return np.array([record.label for record in self._labelled], np.int64)

    @functools.cached_property
    def radii(self) -> Floats:
        """Their certified radii, 0 where the certified class is wrong or the answer is abstain."""
        return np.array([record.radius * record.correct for record in self._labelled])

    @functools.cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """Whether their certified class is the true one."""
        return np.array([record.correct for record in self._labelled], bool)

    @property
    def decides(self) -> float | None:
        """The one radius that a `stop=decide` run answers for; None for other runs."""
        return self.settings.rule.stop.radius if self.settings is not None else None

    @property
    def acr(self) -> Estimate | None:
        """Average certified radius; None where radii were cut short by `stop=decide`."""
        return None if self.decides is not None else mean_radius(self.radii)

    @property
    def standard_error(self) -> float:
        """Of the average certified radius."""
        return float(stats.sem(self.radii)) if len(self.radii) > 1 else float("nan")

    def certified(self, radius: float) -> Estimate | None:
        """Share of images certified correctly at `radius`; None where the run does not say."""
        if not len(self.radii) or (self.decides is not None and self.decides != radius):
            return None
        return share(int(np.sum(self.correct & (self.radii >= radius))), len(self.radii))

    @property
    def abstention(self) -> Estimate | None:
        """Share of all images on which the smoothed classifier abstains.

        None for `stop=decide`, which gives up on an image before that is known.
        """
        if self.decides is not None:
            return None
        abstained = sum(record.predict < 0 for record in self.log.records)
        return share(abstained, len(self.log.records)) if self.log.records else None

    @property
    def clean(self) -> Estimate | None:
        """Accuracy of the base network without noise; None where it was not recorded."""
        known = [r.clean == r.label for r in self._labelled if r.clean is not None]
        return share(sum(known), len(known)) if known else None

    @property
    def draws(self) -> float | None:
        """Estimation draws per image, on average; None where they were not recorded."""
        known = [record.draws.n for record in self.log.records if record.draws is not None]
        return float(np.mean(known)) if known else None

    @property
    def seconds(self) -> float:
        """Time per image, on average."""
        return float(np.mean([r.seconds for r in self.log.records])) if self.log.records else 0.0

    @functools.cached_property
    def p_true(self) -> Floats:
        """Share of the noisy draws of each labelled image that vote for its true class.

        Empty where votes were not recorded, or were stopped by what they showed.
        """
        votes = ((r.label, r.draws) for r in self._labelled_votes if r.draws is not None)
        return np.array([draws.counts[label] / draws.n for label, draws in votes])

    @property
    def scores(self) -> str:
        """What a class's probability is the share of: `votes`, or `mean softmax` in soft runs."""
        soft = self.settings is not None and self.settings.rule.soft
        return "mean softmax" if soft else "votes"

    @functools.cached_property
    def log_gap(self) -> Floats:
        """Per labelled image, log-ratio of the probabilities of its class and of the best other.

        They are estimated by the votes, to which half a vote is added so that the ratio exists
        without votes, or by the means of the softmax in soft runs. Empty as `p_true`.
        """
        gaps = []
        for record in self._labelled_votes:
            draws = record.require_draws()
            if self.scores == "votes":
                scores = np.array(draws.counts) + 0.5
            else:
                scores = np.maximum(np.array(draws.sums), 1e-30)
            gaps.append(np.log(scores[record.label] / np.delete(scores, record.label).max()))
        return np.array(gaps)

    @functools.cached_property
    def largest_radius(self) -> float | None:
        """What this run certifies where every draw agrees; None where that is unknown."""
        if self.settings is None:
            return None
        if self.settings.classifier.distribution.tabulated:
            # A unanimous image has the radius, without the table.
            votes = ((r.radius, r.draws) for r in self.log.records if r.draws is not None)
            full = [radius for radius, draws in votes if max(draws.counts) == draws.n]
            whole = self.settings.rule.stop.kind == "fixed" and not self.settings.rule.soft
            return max(full, default=None) if whole else None
        largest = largest_radius(self.settings.rule, self.settings.classifier.distribution)
        dimension = math.prod(self.settings.classifier.input_shape)
        return linf_from_l2(largest, dimension) if self.converted else largest

    def dataset_bound(self, radius: float, risk: float) -> float | None:
        """Share of these very images that is truly robust at `radius`, at least.

        Args:
          radius: in the units of the certificates.
          risk: probability, over the noise, that the bound is wrong.

        Returns:
          The bound; None where alpha is unknown or the run does not answer for the radius.
        """
        certified = self.certified(radius)
        if self.settings is None or certified is None:
            return None
        total, alpha = len(self.radii), self.settings.rule.alpha
        return dataset_lower_bound(round(certified.value * total), total, alpha, risk)

    @property
    def _labelled_votes(self) -> tuple[Record, ...]:
        fixed = self.settings is not None and self.settings.rule.stop.kind == "fixed"
        return self._labelled if fixed else ()

    @functools.cached_property
    def _labelled(self) -> tuple[Record, ...]:
        return tuple(record for record in self.log.records if record.label >= 0)


def share(count: int, total: int) -> Estimate:
    """A proportion with its exact (Clopper-Pearson) interval."""
    low, high = share_interval(np.array([count]), total)
    return Estimate(count / total, float(low[0]), float(high[0]))


def share_interval(counts: npt.NDArray[np.int64], total: int) -> tuple[Floats, Floats]:
    """Ends of the Clopper-Pearson intervals of counts[i] / total."""
    tail = (1 - CONFIDENCE) / 2
    low = stats.beta.ppf(tail, counts, total - counts + 1)
    high = stats.beta.ppf(1 - tail, counts + 1, total - counts)
    return np.where(counts > 0, low, 0.0), np.where(counts < total, high, 1.0)


def mean_radius(radii: Floats) -> Estimate | None:
    """An average certified radius with its interval; None without radii."""
    found = _mean(radii, 0.0, float(np.max(radii, initial=0.0)))
    return found and dataclasses.replace(found, low=max(found.low, 0.0))


def mean_difference(differences: Floats) -> Estimate | None:
    """A mean of differences of radii on the same images, likewise."""
    largest = float(np.max(np.abs(differences), initial=0.0))
    return _mean(differences, -largest, largest)


def _mean(values: Floats, low: float, high: float) -> Estimate | None:
    """A mean with an interval that holds for few and skewed values; none for one value.

    Student's interval takes most of its width from rare values, a few wrong images among many that
    all reach the largest radius, and few images may show none: in place of 95 % it was seen to
    cover 58 % of the time at 20 images and 91 % at 200. With two further values, the ends of what
    was seen, it holds, as docs/method.md has it; what they add fades with the number of images.
    """
    if not len(values):
        return None
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    more = np.append(values, [low, high])
    middle = float(np.mean(more))
    half = float(stats.sem(more) * stats.t.ppf((1 + CONFIDENCE) / 2, len(more) - 1))
    return Estimate(mean, middle - half, middle + half)
