"""How many draws `--stop=decide` saves, and that it never contradicts the run it is a part of.

  python -m benchmarks.decide --fixed=FIXED.tsv --decide=DECIDE.tsv

Both logs come from `tfmacer.certify` with the same model, images, seed, n and alpha; the draws of
the second are then a prefix of those of the first.
"""

import json
import statistics
import sys
from pathlib import Path

from absl import flags

from tfmacer import commandline
from tfmacer.errors import UserError
from tfmacer.guarantee.bounds import clopper_pearson_upper
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.logs import Log, read_log
from tfmacer.records.rows import Record

FLAGS = flags.FlagValues()
_FIXED = flags.DEFINE_string("fixed", None, "The fixed log.", required=True, flag_values=FLAGS)
_DECIDE = flags.DEFINE_string("decide", None, "The other log.", required=True, flag_values=FLAGS)


def contradictions(fixed: Log, decide: Log, radius: float) -> list[int]:
    """The idx at which the early decision lies outside the fixed run's interval.

    A radius certified early contradicts an upper bound (Clopper-Pearson, at the fixed run's alpha)
    that cannot reach it; a radius given up early contradicts a certificate for it.
    """
    assert fixed.settings is not None
    alpha, law = fixed.settings.alpha, fixed.settings.law
    found = []
    for late, early in zip(fixed.records, decide.records, strict=True):
        counts = late.all_counts
        selected = max(range(len(counts.counts)), key=lambda c: counts.select_counts[c])
        possible = law.radius(clopper_pearson_upper(counts.counts[selected], counts.n, alpha))
        gave_up = early.radius < radius and bool(early.stopped_early)
        if (early.radius >= radius > possible) or (gave_up and late.radius >= radius):
            found.append(late.idx)
    return found


def _check_prefixes(fixed: Log, decide: Log) -> None:
    for late, early in zip(fixed.records, decide.records, strict=True):
        pairs = zip(early.all_counts.counts, late.all_counts.counts, strict=True)
        if early.idx != late.idx or early.select_counts != late.select_counts:
            raise UserError(f"idx {early.idx}: the two logs are not of the same draws")
        if any(part > whole for part, whole in pairs):
            raise UserError(f"idx {early.idx}: the early votes are no prefix of the fixed ones")


def _draws(records: tuple[Record, ...]) -> list[int]:
    return [record.all_counts.n for record in records]


def _main() -> None:
    fixed, decide = read_log(Path(_FIXED.value)), read_log(Path(_DECIDE.value))
    if fixed.settings is None or decide.settings is None:
        raise UserError("both logs must be tfmacer's own")
    radius = StopRule.parse(decide.settings.stop).radius
    if radius is None:
        raise UserError(f"--decide={_DECIDE.value}: made with stop={decide.settings.stop}")
    _check_prefixes(fixed, decide)
    draws = _draws(decide.records)
    print(
        json.dumps(
            {
                "images": len(draws),
                "radius": radius,
                "draws_fixed": statistics.mean(_draws(fixed.records)),
                "draws_decide": statistics.mean(draws),
                "draws_decide_median": statistics.median(draws),
                "times_fewer": round(sum(_draws(fixed.records)) / sum(draws), 1),
                "seconds_fixed": round(sum(r.seconds for r in fixed.records)),
                "certified_at_radius": sum(r.radius >= radius for r in decide.records),
                "undecided": sum(r.radius < radius and not r.stopped_early for r in decide.records),
                "contradictions": contradictions(fixed, decide, radius),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    sys.exit(
        commandline.run(_main, FLAGS, None, name="python -m benchmarks.decide", doc=__doc__ or "")
    )
