"""How many draws `--stop=decide` saves, and that it never contradicts the run it is a part of.

  python -m benchmarks.decide --fixed=FIXED.tsv --decide=DECIDE.tsv

Both logs come from `tfmacer.certify` with the same model, images, seed, n and alpha; the draws of
the second are then a prefix of those of the first. Compared are the images that both hold, so
that a fixed run may still be under way.
"""

import json
import statistics
import sys
from pathlib import Path

from absl import flags

from tfmacer.common import commandline
from tfmacer.common.errors import UserError
from tfmacer.guarantee.bounds import clopper_pearson_upper
from tfmacer.records.logs import Log, read_log
from tfmacer.records.rows import Record

FLAGS = flags.FlagValues()
_FIXED = flags.DEFINE_string("fixed", None, "The fixed log.", required=True, flag_values=FLAGS)
_DECIDE = flags.DEFINE_string("decide", None, "The other log.", required=True, flag_values=FLAGS)


Pairs = list[tuple[Record, Record]]


def contradictions(fixed: Log, decide: Log, pairs: Pairs, radius: float) -> list[int]:
    """The idx at which the early decision lies outside the fixed run's interval.

    A radius certified early contradicts an upper bound (Clopper-Pearson, at the fixed run's alpha)
    that cannot reach it; a radius given up early contradicts a certificate for it.
    """
    assert fixed.settings is not None
    assert decide.settings is not None
    rule, distribution = fixed.settings.rule, fixed.settings.classifier.distribution
    found = []
    for late, early in pairs:
        counts = late.require_draws()
        selected = max(range(len(counts.counts)), key=lambda c: counts.select_counts[c])
        possible = distribution.radius(
            clopper_pearson_upper(counts.counts[selected], counts.n, rule.alpha)
        )
        gave_up = early.radius < radius and early.require_draws().n < decide.settings.rule.n
        if (early.radius >= radius > possible) or (gave_up and late.radius >= radius):
            found.append(late.idx)
    return found


def _paired(fixed: Log, decide: Log) -> Pairs:
    """The records of each image that both logs hold, whose draws must be the same ones."""
    early = {record.idx: record for record in decide.records}
    pairs = [(record, early[record.idx]) for record in fixed.records if record.idx in early]
    if not pairs:
        raise UserError("the two logs have no image in common")
    for whole, part in pairs:
        every, some = whole.require_draws(), part.require_draws()
        if every.select_counts != some.select_counts:
            raise UserError(f"idx {part.idx}: the two logs are not of the same draws")
        votes = zip(some.counts, every.counts, strict=True)
        if any(early > late for early, late in votes):
            raise UserError(f"idx {part.idx}: the early votes are no prefix of the fixed ones")
    return pairs


def _main() -> None:
    fixed, decide = read_log(Path(_FIXED.value)), read_log(Path(_DECIDE.value))
    if fixed.settings is None or decide.settings is None:
        raise UserError("both logs must be tfmacer's own")
    rule = decide.settings.rule
    radius = rule.stop.radius
    if radius is None:
        raise UserError(f"--decide={_DECIDE.value}: made with stop={rule.stop}")
    pairs = _paired(fixed, decide)
    draws_fixed = [late.require_draws().n for late, _ in pairs]
    draws = [early.require_draws().n for _, early in pairs]
    undecided = sum(
        early.radius < radius and early.require_draws().n == rule.n for _, early in pairs
    )
    print(
        json.dumps(
            {
                "images": len(draws),
                "radius": radius,
                "draws_fixed": statistics.mean(draws_fixed),
                "draws_decide": statistics.mean(draws),
                "draws_decide_median": statistics.median(draws),
                "times_fewer": round(sum(draws_fixed) / sum(draws), 1),
                "seconds_fixed": round(sum(late.seconds for late, _ in pairs)),
                "certified_at_radius": sum(early.radius >= radius for _, early in pairs),
                "undecided": undecided,
                "contradictions": contradictions(fixed, decide, pairs, radius),
            },
            indent=2,
        )
    )


main = commandline.command(_main, FLAGS, "python -m benchmarks.decide", __doc__)

if __name__ == "__main__":
    sys.exit(main())
