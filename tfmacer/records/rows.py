"""One row of a certification log: what was found for one image, and its cell_text."""

import dataclasses
from collections.abc import Mapping

from tfmacer.guarantee.certificate import Certificate, round_down
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.records import cell_text
from tfmacer.records.cell_text import ABSENT

# The columns of the field's published logs come first, so that their readers read ours.
PUBLISHED_COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")
HARD_COLUMNS = (
    *PUBLISHED_COLUMNS, "clean", "n0", "n", "select_counts", "counts", "p_lower", "p_upper_second",
    "bound", "stopped_early",
)  # fmt: skip
SOFT_COLUMNS = ("select_sums", "sums", "square_sums")
# Since format version 2.
IMAGE_COLUMNS = ("pixels_sha256", "name")
# Far beyond any, and such that means and squares of radii are finite.
_LARGEST_RADIUS = 1e100
# `correct` as the published logs of this field have it.
_TRUTHS = {"0": False, "1": True, "False": False, "True": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What was found for one image. Fields that a published log lacks are None there.

    Attributes:
      idx: 0-based position of the image in the split as stored.
      label: the true class, -1 where there is none.
      predict: the certified class, -1 for abstain.
      radius: certified radius in pixels in [0, 1], rounded toward zero at 9 decimals.
      seconds: wall-clock time spent on the image.
      clean: class of the base network without noise.
      draws: the votes that the certificate was made from.
      p_lower: lower confidence bound on the probability of the chosen class.
      p_upper_second: upper confidence bound on the runner-up's; None unless bilateral.
      pixels_sha256: of the image, see `tfmacer.records.sealing.pixels_digest`; None in logs of
        format version 1.
      name: the image's file in its folder, see `tfmacer.records.cell_text.printable`; None where it
        has none.
      digest: first 16 hex digits of the SHA-256 of the row and of what determines it.
    """

    idx: int
    label: int
    predict: int
    radius: float
    seconds: float
    clean: int | None = None
    draws: Counts | None = None
    p_lower: float | None = None
    p_upper_second: float | None = None
    pixels_sha256: str | None = None
    name: str | None = None
    digest: str | None = None

    @classmethod
    def of(
        cls,
        certificate: Certificate,
        *,
        idx: int,
        label: int,
        clean: int,
        seconds: float,
        pixels_sha256: str,
        name: str | None = None,
    ) -> "Record":
        """The record of a certificate; the other arguments are as in `Record`, `name` as it is."""
        second = certificate.p_upper_second
        return cls(
            idx=int(idx),
            label=int(label),
            predict=certificate.predict,
            radius=round_down(certificate.radius),
            seconds=seconds,
            clean=int(clean),
            draws=certificate.draws,
            p_lower=float(certificate.p_lower),
            p_upper_second=None if second is None else float(second),
            pixels_sha256=pixels_sha256,
            name=cell_text.printable(name) if name else None,
        )

    @property
    def correct(self) -> bool:
        """Whether `predict` is the label; false without a label."""
        return self.label == self.predict >= 0

    def require_draws(self) -> Counts:
        """The draws; raises ValueError for a row of a published log, which keeps none."""
        if self.draws is None:
            raise ValueError(f"the record of idx {self.idx} keeps no votes")
        return self.draws


def columns(*, soft: bool, images: bool) -> tuple[str, ...]:
    """Names of the columns of our logs, the digest last."""
    return (
        *HARD_COLUMNS,
        *(SOFT_COLUMNS if soft else ()),
        *(IMAGE_COLUMNS if images else ()),
        "digest",
    )


def from_published(cells: Mapping[str, str]) -> Record:
    """Reads a row of another project's log.

    Args:
      cells: text by column; `time` may be missing.

    Raises:
      ValueError: a cell cannot be read, or the cells cannot all be true of one certificate.
    """
    idx, label, predict = (cell_text.integer(name, cells[name]) for name in PUBLISHED_COLUMNS[:3])
    radius = cell_text.number("radius", cells["radius"])
    if idx < 0:
        raise ValueError(f"idx is {idx}, positions begin at 0")
    if label < -1 or predict < -1:
        raise ValueError(
            f"label is {label} and predict {predict}: a class is 0 or more, no label and abstain "
            "are -1"
        )
    if radius < 0:
        raise ValueError(f"radius is {cells['radius']}, a certified radius is 0 or more")
    if radius > _LARGEST_RADIUS:
        raise ValueError(f"radius is {cells['radius']}, which is no distance of images")
    if predict < 0 < radius:
        raise ValueError(f"radius is {cells['radius']}, but predict is -1: abstain has no radius")
    record = Record(
        idx=idx,
        label=label,
        predict=predict,
        radius=radius,
        seconds=cell_text.seconds_of(cells.get("time", "0")),
    )
    correct = _TRUTHS.get(cells["correct"])
    if correct is None:
        raise ValueError(f"correct is {cells['correct']!r}, not one of {', '.join(_TRUTHS)}")
    if correct != record.correct:
        raise ValueError(
            f"correct is {cells['correct']}, but label is {label} and predict is {predict}"
        )
    return record


def to_cells(record: Record, rule: Rule) -> dict[str, str]:
    """Text by column, of all that a log may have, the digest left out."""
    draws = record.require_draws()
    return {
        "idx": str(record.idx),
        "label": str(record.label),
        "predict": str(record.predict),
        # Nearest, not down: the record's radius already is a multiple of 1e-9.
        "radius": f"{record.radius:.9f}",
        "correct": str(int(record.correct)),
        "time": cell_text.clock(record.seconds),
        "clean": cell_text.number_text(record.clean),
        "n0": str(draws.n0),
        "n": str(draws.n),
        "select_counts": cell_text.sparse(draws.select_counts),
        "counts": cell_text.sparse(draws.counts),
        "p_lower": cell_text.number_text(record.p_lower),
        "p_upper_second": cell_text.number_text(record.p_upper_second),
        "bound": rule.bound,
        "stopped_early": str(int(draws.n < rule.n)),
        "select_sums": cell_text.sparse(draws.select_sums),
        "sums": cell_text.sparse(draws.sums),
        "square_sums": cell_text.sparse(draws.square_sums),
        "pixels_sha256": record.pixels_sha256 or ABSENT,
        "name": record.name or ABSENT,
    }


def from_cells(cells: Mapping[str, str], num_classes: int) -> Record:
    """Reads a row of a log of this project; raises ValueError where a cell cannot be read."""

    def votes(name: str) -> tuple[int, ...]:
        return cell_text.dense(name, cells[name], num_classes, cell_text.integer)

    sums = {
        name: cell_text.dense(name, cells[name], num_classes, cell_text.number)
        for name in SOFT_COLUMNS
        if name in cells
    }
    draws = Counts(
        select_counts=votes("select_counts"),
        counts=votes("counts"),
        n0=cell_text.integer("n0", cells["n0"]),
        n=cell_text.integer("n", cells["n"]),
        **sums,
    )
    second = cells["p_upper_second"]
    record = dataclasses.replace(
        from_published(cells),
        clean=cell_text.integer("clean", cells["clean"]),
        draws=draws,
        p_lower=cell_text.number("p_lower", cells["p_lower"]),
        p_upper_second=None if second == ABSENT else cell_text.number("p_upper_second", second),
        pixels_sha256=(
            cell_text.sha256("pixels_sha256", cells["pixels_sha256"])
            if "pixels_sha256" in cells
            else None
        ),
        name=cell_text.image_name(cells.get("name", ABSENT)),
        digest=cells["digest"],
    )
    for name, least in (("label", -1), ("predict", -1), ("clean", 0)):
        if not least <= getattr(record, name) < num_classes:
            raise ValueError(f"{name} is {cells[name]}, not {least} to {num_classes - 1}")
    return record
