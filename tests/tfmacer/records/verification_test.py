import dataclasses
import math

import made_logs
import pytest

from tfmacer.common.errors import UserError
from tfmacer.guarantee.certificate import certify
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records import rows, sealing
from tfmacer.records.logs import Log, read_log, settings_path
from tfmacer.records.verification import Replayed, verify_log

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


def fault(log, place, *, seal=True, **cells):
    """What is found wrong with the log where cells of one row are replaced.

    Its digest is made to fit or left; what reading refuses counts as found.
    """
    settings, path = log.settings, log.path.with_name("altered.tsv")
    header, *lines = log.path.read_text().splitlines()
    row = dict(zip(settings.columns, lines[place].split("\t"), strict=True)) | cells
    if seal:
        text = [row[name] for name in settings.columns if name not in ("time", "digest")]
        row["digest"] = sealing.digest("\n".join([settings.identity, *text]))
    lines[place] = "\t".join(row[name] for name in settings.columns)
    path.write_text("\n".join([header, *lines]) + "\n")
    settings_path(path).write_text(settings.to_json())
    try:
        return verify_log(read_log(path))
    except UserError as error:
        return str(error)


def votes_text(votes):
    return ",".join(f"{k}:{value!r}" for k, value in enumerate(votes) if value)


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
    assert read_log(made.path).settings.classifier.noise_params == params
    assert verify_log(made) is None
    place = certified(made)
    record = made.records[place]
    assert f"idx {record.idx}: radius is" in fault(
        made, place, radius=f"{record.radius + 0.01:.9f}"
    )


def certified(log):
    """Place of a record that certifies something."""
    return next(i for i, r in enumerate(log.records) if r.predict >= 0 and r.radius > 0.05)


# What a digest that was made to fit cannot hide: it follows from the votes.
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("predict", lambda r: (r.predict + 1) % made_logs.CLASSES),
        ("predict", lambda r: -1),
        ("radius", lambda r: f"{r.radius + 1e-9:.9f}"),
        ("radius", lambda r: f"{r.radius - 3e-9:.9f}"),
        ("radius", lambda r: "0.000000000"),
        ("p_lower", lambda r: r.p_lower + 1e-12),
        ("p_lower", lambda r: r.p_lower - 1e-9),
        ("correct", lambda r: int(not r.correct)),
        ("stopped_early", lambda r: "x"),
        ("bound", lambda r: "other"),
        ("n0", lambda r: r.draws.n0 + 1),
        ("n", lambda r: r.draws.n + 1),
        ("n", lambda r: r.draws.n - 1),
        ("idx", lambda r: 1000),
        ("label", lambda r: made_logs.CLASSES),
        ("clean", lambda r: made_logs.CLASSES),
        ("clean", lambda r: "-"),
        (
            "select_counts",
            lambda r: votes_text((r.draws.select_counts[0] + 1, *r.draws.select_counts[1:])),
        ),
        ("counts", lambda r: votes_text((*r.draws.counts[:-1], r.draws.counts[-1] + 1))),
    ],
)
def test_what_does_not_follow_from_the_votes_is_found_either_way(log, field, change):
    place = certified(log)
    record = log.records[place]
    consequences = {}
    value = str(change(record))
    if field == "stopped_early":
        value = str(int(record.draws.n == log.settings.rule.n))
    if field == "predict":
        consequences["correct"] = str(int(int(value) == record.label >= 0))
        if value == "-1":
            consequences["radius"] = "0.000000000"
    if field == "label":
        consequences["correct"] = "0"
    found = fault(log, place, **{field: value}, **consequences)
    words = {
        "idx": "idx 1000: its image was not selected",
        "n0": "select_counts must be 4 counts of 0 or more that add up to n0",
        "n": "counts must be 4 counts of 0 or more that add up to n",
    }
    assert words.get(field, f"{field} is ") in found or f"{field} must be" in found
    assert (
        f"idx {record.idx}: " in found or f":{place + 2}: corrupt line" in found or field == "idx"
    )
    assert "\n" not in found


def test_draws_that_are_not_those_of_the_rule_are_found(log):
    place = certified(log)
    draws = log.records[place].draws
    if log.settings.rule.soft:
        return
    more = {"n0": draws.n0 + 1, "select_counts": (draws.select_counts[0] + 1,
            *draws.select_counts[1:])}  # fmt: skip
    found = fault(log, place, n0=str(more["n0"]), select_counts=votes_text(more["select_counts"]))
    assert f"n0 is {draws.n0 + 1}, the rule takes {draws.n0} selection draws" in found
    fewer = (*draws.counts[:-1], draws.counts[-1] + 1)
    cells = {"n": str(draws.n + 1), "counts": votes_text(fewer)}
    cells["stopped_early"] = str(int(draws.n + 1 < log.settings.rule.n))
    assert f"n is {draws.n + 1}, the rule's looks are at" in fault(log, place, **cells)


@pytest.mark.parametrize(
    ("field", "less", "more"),
    [("radius", -1e-9, 1e-9), ("p_lower", -5e-12, 1e-12), ("p_upper_second", 5e-12, -1e-12)],
)
@pytest.mark.parametrize("log", ["bilateral"], indirect=True)
def test_a_record_may_claim_a_little_less_but_never_more(log, field, less, more):
    place = certified(log)
    value = getattr(log.records[place], field)

    def text(claimed):
        return f"{claimed:.9f}" if field == "radius" else repr(round(claimed, 15))

    assert fault(log, place, **{field: text(value + less)}) is None
    found = fault(log, place, **{field: text(value + more)})
    assert found.startswith(f"idx {log.records[place].idx}: {field} is ")


def test_rounding_of_other_builds_may_lift_a_radius_over_one_step(tmp_path):
    """As quantiles that differ in the last digit do where a radius is just below a step."""
    settings = made_logs.settings(RULES["hard"], total=20)
    log = made_logs.write(tmp_path / "log.tsv", settings)
    record = log.records[certified(log)]
    step = round(record.radius + 1e-9, 9)
    classifier = settings.classifier
    sigma = classifier.sigma * step / classifier.distribution.radius(record.p_lower)
    while (other := dataclasses.replace(classifier, sigma=sigma)).distribution.radius(
        record.p_lower
    ) >= step:
        sigma = math.nextafter(sigma, 0.0)
    near = dataclasses.replace(settings, classifier=other)

    def verified(**fields):
        other = near.sealed(dataclasses.replace(record, **fields))
        return verify_log(Log(log.path, (other,), near))

    assert verified(radius=round(step - 1e-9, 9)) is None
    assert verified(radius=step, p_lower=record.p_lower + 4e-16) is None
    assert "radius is" in verified(radius=round(step + 1e-9, 9))


def test_votes_moved_between_classes_are_found_by_the_bounds(log):
    place = certified(log)
    counts = log.records[place].draws.counts
    top = max(range(made_logs.CLASSES), key=lambda k: counts[k])
    fewer = list(counts)
    fewer[top] -= 50
    fewer[top - 1] += 50
    found = fault(log, place, counts=votes_text(fewer))
    # Soft bounds rest on the sums; there the digest alone speaks for the votes.
    assert (found is None) == log.settings.rule.soft
    found = fault(log, place, counts=votes_text(fewer), seal=False)
    assert "p_lower is" in found or "digest is" in found


@pytest.mark.parametrize("log", [name for name in RULES if name != "bilateral"], indirect=True)
def test_an_abstention_turned_into_a_certificate_is_found(log):
    place = next(i for i, r in enumerate(log.records) if r.predict < 0)
    label = str(log.records[place].label)
    assert "predict is" in fault(log, place, predict=label, radius="0.400000000", correct="1")


def test_an_early_stop_before_anything_was_decided_is_found(tmp_path):
    rule = RULES["decide"]
    settings = made_logs.settings(rule, total=25)
    # 200 of 256 votes: neither certified at 0.3 nor refuted.
    counts = Counts(select_counts=(100, 0, 0, 0), counts=(190, 66, 0, 0), n0=100, n=256)

    def verified(settings):
        certificate = certify(counts, settings.rule, settings.classifier.distribution)
        record = rows.Record.of(
            certificate, idx=3, label=0, clean=0, seconds=0.1, pixels_sha256="0" * 64
        )
        return verify_log(Log(tmp_path / "log.tsv", (settings.sealed(record),), settings))

    assert "idx 3: n is 256, it should be more: nothing was decided" in verified(settings)
    budget = dataclasses.replace(rule, stop="budget:1.0")
    assert verified(dataclasses.replace(settings, rule=budget)) is None


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
    found = fault(log, 2, **{field: votes_text(change(getattr(log.records[2].draws, field)))})
    assert f"{field} is" in found or f"{field} must be" in found


def test_another_projects_log_cannot_be_verified(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text("idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t1\t1\t0.5\t1\t1.0\n")
    with pytest.raises(UserError, match="log.tsv: not a log of tfmacer"):
        verify_log(read_log(path))


# Drawing again.


def again(log, **wrong):
    """A replay that agrees with the records but for what is `wrong` at idx 4."""
    by_idx = {record.idx: record for record in log.records}

    def replay(settings, record):
        assert settings == log.settings
        true = by_idx[record.idx]
        change = wrong if record.idx == 4 else {}
        own = ("label", "clean", "pixels_sha256")
        votes = {name: value for name, value in change.items() if name not in own}
        return Replayed(
            **{name: change.get(name, getattr(true, name)) for name in own},
            draws=dataclasses.replace(true.draws, **votes),
        )

    return replay


def test_votes_drawn_again_and_found_equal(log):
    assert verify_log(log, again(log)) is None


@pytest.mark.parametrize("field", ["label", "clean", "select_counts", "counts", "pixels_sha256"])
def test_a_record_that_another_draw_contradicts_is_found(log, field):
    record = log.records[4]
    value = getattr(record.draws if field.endswith("counts") else record, field)
    if isinstance(value, int):
        other = (value + 1) % made_logs.CLASSES
    elif isinstance(value, str):
        other = "0" * 64
    else:
        k = max(range(len(value)), key=lambda i: value[i])
        other = list(value)
        other[k], other[k - 1] = other[k] - 1, other[k - 1] + 1
        other = tuple(other)
    assert verify_log(log, again(log, **{field: other})).startswith(f"idx 4: {field} is ")


@pytest.mark.parametrize("log", SOFT, indirect=True)
@pytest.mark.parametrize("field", ["select_sums", "sums", "square_sums"])
def test_sums_are_compared_within_rounding(log, field):
    sums = getattr(log.records[4].draws, field)
    close = tuple(value * (1 + 1e-12) for value in sums)
    far = tuple(value * (1 - 1e-7) for value in sums)
    assert verify_log(log, again(log, **{field: close})) is None
    assert f"{field} is" in verify_log(log, again(log, **{field: far}))
