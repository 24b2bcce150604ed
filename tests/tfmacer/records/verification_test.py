import dataclasses
import math

import made_logs
import pytest

from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records import rows
from tfmacer.records.logs import Log, read_log
from tfmacer.records.verification import Redrawn, verify_log

RULES = {
    "hard": Rule(n=2000),
    "bilateral": Rule(n=2000, bilateral=True),
    "hoeffding": Rule(n=2000, bound="hoeffding"),
    "bernstein": Rule(n=2000, bound="bernstein", beta=2.0),
    "decide": Rule(n=3000, bound="beta_binomial", stop=StopRule.parse("decide:0.3")),
    "precision": Rule(n=3000, bound="alpha_spending", stop=StopRule.parse("precision:0.2")),
    "budget": Rule(n=3000, bound="beta_binomial", stop=StopRule.parse("budget:1.0")),
    "late": Rule(n=3000, bound="late_spending"),
}


@pytest.fixture(params=RULES, scope="module")
def log(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("logs") / "log.tsv"
    return made_logs.write(path, made_logs.settings(RULES[request.param], total=60))


def altered(log, place, *, seal=True, **fields):
    """The log with fields of one record replaced, its digest made to fit or left."""
    record = dataclasses.replace(log.records[place], **fields)
    if seal:
        record = log.settings.sealed(record)
    return Log(log.path, (*log.records[:place], record, *log.records[place + 1 :]), log.settings)


def test_what_was_certified_is_found_right(log):
    assert any(record.predict >= 0 for record in log.records)
    assert any(not record.correct for record in log.records)
    assert verify_log(log) is None


@pytest.mark.parametrize(
    ("family", "params"),
    [("rounded_gaussian", {}), ("generalized_gaussian", {"k": 1.0}), ("mixed_norm", {"k": 1.0})],
)
def test_every_family_is_computed_again_by_its_own_law(tmp_path, family, params):
    known = made_logs.settings(total=8, noise_family=family, noise_params=params)
    made = made_logs.write(tmp_path / "log.tsv", known)
    assert read_log(made.path).settings.noise_params == params
    assert verify_log(made) is None
    place = certified(made)
    difference = verify_log(altered(made, place, radius=made.records[place].radius + 0.01))
    assert (difference.idx, difference.field) == (made.records[place].idx, "radius")


def certified(log):
    """Place of a record that certifies something."""
    return next(i for i, r in enumerate(log.records) if r.predict >= 0 and r.radius > 0.05)


# What a digest that was made to fit cannot hide: it follows from the votes.
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("predict", lambda r: (r.predict + 1) % made_logs.CLASSES),
        ("predict", lambda r: -1),
        ("radius", lambda r: round(r.radius + 1e-9, 9)),
        ("radius", lambda r: r.radius - 3e-9),
        ("radius", lambda r: 0.0),
        ("p_lower", lambda r: r.p_lower + 1e-12),
        ("p_lower", lambda r: r.p_lower - 1e-9),
        ("correct", lambda r: not r.correct),
        ("stopped_early", lambda r: not r.stopped_early),
        ("bound", lambda r: "other"),
        ("n0", lambda r: r.n0 + 1),
        ("n", lambda r: r.n + 1),
        ("n", lambda r: r.n - 1),
        ("idx", lambda r: 1000),
        ("label", lambda r: made_logs.CLASSES),
        ("clean", lambda r: made_logs.CLASSES),
        ("select_counts", lambda r: (r.select_counts[0] + 1, *r.select_counts[1:])),
        ("counts", lambda r: (*r.counts[:-1], r.counts[-1] + 1)),
    ],
)
def test_what_does_not_follow_from_the_votes_is_found_either_way(log, field, change):
    place = certified(log)
    record = log.records[place]
    difference = verify_log(altered(log, place, **{field: change(record)}))
    assert difference is not None
    assert difference.field == field
    assert difference.idx == (1000 if field == "idx" else record.idx)
    assert f"{field} is" in str(difference)
    assert "\n" not in str(difference)


@pytest.mark.parametrize(
    ("field", "less", "more"),
    [("radius", -1e-9, 1e-9), ("p_lower", -5e-12, 1e-12), ("p_upper_second", 5e-12, -1e-12)],
)
@pytest.mark.parametrize("log", ["bilateral"], indirect=True)
def test_a_record_may_claim_a_little_less_but_never_more(log, field, less, more):
    place = certified(log)
    value = getattr(log.records[place], field)
    assert verify_log(altered(log, place, **{field: round(value + less, 15)})) is None
    difference = verify_log(altered(log, place, **{field: round(value + more, 15)}))
    assert (difference.idx, difference.field) == (log.records[place].idx, field)


def test_rounding_of_other_builds_may_lift_a_radius_over_one_step(tmp_path):
    """As quantiles that differ in the last digit do where a radius is just below a step."""
    settings = made_logs.settings(RULES["hard"], total=20)
    log = made_logs.write(tmp_path / "log.tsv", settings)
    record = log.records[certified(log)]
    step = round(record.radius + 1e-9, 9)
    sigma = settings.sigma * step / settings.distribution.radius(record.p_lower)
    while (near := dataclasses.replace(settings, sigma=sigma)).distribution.radius(
        record.p_lower
    ) >= step:
        sigma = math.nextafter(sigma, 0.0)

    def verified(**fields):
        other = near.sealed(dataclasses.replace(record, **fields))
        return verify_log(Log(log.path, (other,), near))

    assert verified(radius=round(step - 1e-9, 9)) is None
    assert verified(radius=step, p_lower=record.p_lower + 4e-16) is None
    assert verified(radius=round(step + 1e-9, 9)).field == "radius"


def test_votes_moved_between_classes_are_found_by_the_bounds(log):
    place = certified(log)
    record = log.records[place]
    top = max(range(made_logs.CLASSES), key=lambda k: record.counts[k])
    fewer = list(record.counts)
    fewer[top] -= 50
    fewer[top - 1] += 50
    difference = verify_log(altered(log, place, counts=tuple(fewer)))
    # Soft bounds rest on the sums; there the digest alone speaks for the votes.
    assert (difference is None) == log.settings.rule.soft
    assert verify_log(altered(log, place, counts=tuple(fewer), seal=False)).field in (
        "p_lower",
        "digest",
    )


@pytest.mark.parametrize("log", [name for name in RULES if name != "bilateral"], indirect=True)
def test_an_abstention_turned_into_a_certificate_is_found(log):
    place = next(i for i, r in enumerate(log.records) if r.predict < 0)
    record = log.records[place]
    change = {"predict": record.label, "radius": 0.4, "correct": True}
    assert verify_log(altered(log, place, **change)).field == "predict"


def test_an_early_stop_before_anything_was_decided_is_found(tmp_path):
    rule = RULES["decide"]
    settings = made_logs.settings(rule, total=25)
    log = made_logs.write(tmp_path / "log.tsv", settings)
    # 200 of 256 votes: neither certified at 0.3 nor refuted.
    counts = Counts(select_counts=(100, 0, 0, 0), counts=(190, 66, 0, 0), n0=100, n=256)
    certificate = certify(counts, rule, settings.distribution)
    record = rows.Record.of(
        certificate, idx=3, label=0, clean=0, seconds=0.1, pixels_sha256="0" * 64
    )
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    difference = verify_log(altered(log, 3, **fields))
    assert (difference.idx, difference.field) == (3, "n")
    budget = dataclasses.replace(settings, stop="budget:1.0")
    record = budget.sealed(record)
    assert verify_log(Log(log.path, (record,), budget)) is None


SOFT = ("hoeffding", "bernstein")


@pytest.mark.parametrize("log", SOFT, indirect=True)
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("select_sums", lambda s: (s[0] + 1.0, *s[1:])),
        ("sums", lambda s: (s[0] + 5.0, *s[1:])),
        ("square_sums", lambda s: (s[0] + 2000.0, *s[1:])),
        ("square_sums", lambda s: (s[0] * 0.01, *s[1:])),
    ],
)
def test_impossible_sums_are_found(log, field, change):
    difference = verify_log(altered(log, 2, **{field: change(getattr(log.records[2], field))}))
    assert difference.field == field


def test_another_projects_log_cannot_be_verified(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t1.0\n")
    with pytest.raises(UserError, match="log.tsv: not a log of tfmacer"):
        verify_log(read_log(path))


# Drawing again.


def again(log, **wrong):
    """A redraw that agrees with the records but for what is `wrong` at idx 4."""
    by_idx = {record.idx: record for record in log.records}

    def redraw(settings, record):
        assert settings == log.settings
        true = by_idx[record.idx]
        change = wrong if record.idx == 4 else {}
        counts = {k: v for k, v in change.items() if k not in ("label", "clean", "pixels_sha256")}
        return Redrawn(
            label=change.get("label", true.label),
            clean=change.get("clean", true.clean),
            counts=dataclasses.replace(true.all_counts, **counts),
            pixels_sha256=change.get("pixels_sha256", true.pixels_sha256),
        )

    return redraw


def test_votes_drawn_again_and_found_equal(log):
    assert verify_log(log, again(log)) is None


@pytest.mark.parametrize("field", ["label", "clean", "select_counts", "counts", "pixels_sha256"])
def test_a_record_that_another_draw_contradicts_is_found(log, field):
    value = getattr(log.records[4], field)
    if isinstance(value, int):
        other = (value + 1) % made_logs.CLASSES
    elif isinstance(value, str):
        other = "0" * 64
    else:
        k = max(range(len(value)), key=lambda i: value[i])
        other = list(value)
        other[k], other[k - 1] = other[k] - 1, other[k - 1] + 1
        other = tuple(other)
    difference = verify_log(log, again(log, **{field: other}))
    assert (difference.idx, difference.field) == (4, field)


@pytest.mark.parametrize("log", SOFT, indirect=True)
@pytest.mark.parametrize("field", ["select_sums", "sums", "square_sums"])
def test_sums_are_compared_within_rounding(log, field):
    sums = getattr(log.records[4], field)
    close = tuple(value * (1 + 1e-12) for value in sums)
    far = tuple(value * (1 - 1e-7) for value in sums)
    assert verify_log(log, again(log, **{field: close})) is None
    assert verify_log(log, again(log, **{field: far})).field == field
