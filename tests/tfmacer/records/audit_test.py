"""A served certificate passes only as it was handed out, and no certificate twice."""

import base64
import copy
import dataclasses
import hashlib
import json
import math
import re
import warnings

import made_audits
import numpy as np
import pytest

from tfmacer import verify
from tfmacer.common.errors import Notice, UserError
from tfmacer.guarantee.counts import Counts
from tfmacer.guarantee.rule import Rule
from tfmacer.records import audit_entries, chain
from tfmacer.records.audit import Trail, read_audit_log, verify_entry
from tfmacer.records.audit_entries import AuditEntry

ROUNDED = dataclasses.replace(made_audits.SMOOTHING, noise_family="rounded_gaussian")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "audit.jsonl"


def fault(fields, *, chained=True, replay=None):
    """What is wrong with one entry."""
    line = chain.to_line(fields, chain.BEGINNING)[0] if chained else json.dumps(fields)
    try:
        entry = AuditEntry.from_line(line)
    except ValueError as error:
        return str(error)
    return verify_entry(entry, replay)


def changed(fields, name, value):
    """The fields with one of them, `a.b.c`, set."""
    fields = copy.deepcopy(fields)
    *path, last = name.split(".")
    inner = fields
    for step in path:
        inner = inner[step]
    inner[last] = value
    return fields


def with_pixels(fields, values):
    data = np.asarray(values, "<f4").tobytes()
    return fields | {
        "pixels_float32": base64.b64encode(data).decode(),
        "pixels_sha256": hashlib.sha256(data).hexdigest(),
    }


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("smoothing", [made_audits.SMOOTHING, ROUNDED])
@pytest.mark.parametrize("bilateral", [True, False])
def test_what_was_handed_out_passes(chained, smoothing, bilateral):
    rule = dataclasses.replace(made_audits.RULE, bilateral=bilateral)
    fields = made_audits.fields(smoothing=smoothing, rule=rule)
    assert fields["certificate"]["radius"] > 0.5
    assert fault(fields if chained else made_audits.older(fields), chained=chained) is None
    fields.pop("pixels_float32")
    assert fault(fields if chained else made_audits.older(fields), chained=chained) is None


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("name", ["radius", "p_lower", "p_upper_second"])
def test_nothing_may_claim_more(name, chained):
    fields = made_audits.fields(rule=dataclasses.replace(made_audits.RULE, bilateral=True))
    fields = fields if chained else made_audits.older(fields)
    right = fields["certificate"][name]
    more = math.inf if name != "p_upper_second" else -math.inf
    for claimed in (math.nextafter(right, more), right + math.copysign(9e-10, more)):
        wrong = fault(changed(fields, f"certificate.{name}", claimed), chained=chained)
        assert wrong.startswith(f"{name} is {claimed!r}, it should be {right!r}")


@pytest.mark.parametrize("name", ["radius", "p_lower", "p_upper_second"])
def test_less_passes_only_from_another_build(name):
    fields = made_audits.fields(rule=dataclasses.replace(made_audits.RULE, bilateral=True))
    right = fields["certificate"][name]
    less = math.copysign(1.0, -1 if name != "p_upper_second" else 1)
    near = changed(fields, f"certificate.{name}", right + 5e-10 * less)
    far = changed(fields, f"certificate.{name}", right + 2e-9 * less)
    assert fault(near).startswith(f"{name} is ")
    other = "tfmacer 0.1.0, scipy 1.2.3, riscv"
    assert fault(near | {"made_with": other}) is None
    assert fault(made_audits.older(near), chained=False) is None
    for fields in (far | {"made_with": other}, made_audits.older(far)):
        assert fault(fields, chained="made_with" in fields).startswith(f"{name} is ")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("estimate_seed", [0, 1], r"select_seed and estimate_seed are both \[0, 1\]"),
        ("rule.alpha", 0.0, "alpha must lie between"),
        ("rule.alpha", 1.0, "alpha must lie between"),
        ("rule.alpha", -0.001, "alpha must lie between"),
        ("rule.alpha", 0.01, "alpha is 0.001, it should be 0.01"),
        ("certificate.alpha", 0.0001, "alpha is 0.0001, it should be 0.001"),
        ("certificate.sigma", 0.6, "sigma is 0.6, it should be 0.5"),
        ("certificate.predict", 1, "predict is 1, it should be 0"),
        ("certificate.norm", "linf", "norm is 'linf', it should be 'l2'"),
        ("certificate.bound", "beta_binomial", "bound is"),
        ("certificate.stopped_early", True, "stopped_early is True"),
        ("certificate.bilateral", True, "bilateral is True"),
        ("certificate.counts", [986, 9, 5], "p_lower is"),
        ("certificate.counts", [985, 15], "select_counts must be 2 counts"),
        ("certificate.counts", [1005, -10, 5], "counts must be 3 counts of 0 or more"),
        ("certificate.select_counts", [0, 100, 0], "predict is 0, it should be -1"),
        ("certificate.select_counts", [90, 0, 0], "select_counts must be 3 counts"),
        ("certificate.n", 999, "counts must be"),
        ("certificate.sums", [985.0, 10.0, 5.0], "sums is"),
        ("model.smoothing.sigma", 0.6, "radius is|sigma is"),
        ("model.smoothing.sigma", 1e308, "."),
        ("model.smoothing.noise_family", "rounded_gaussian", "family is 'gaussian', it should be"),
        ("model.smoothing.noise_family", "none", "noise_family must be one of"),
        ("model.smoothing.block_size", 128, "block_size of the rule is 64, the model's 128"),
        ("model.smoothing.num_classes", 10, "counts has 3 classes, the model 10"),
        ("model.smoothing.num_classes", 3.0, "num_classes must be an integer"),
        ("rule.block_size", 128, "block_size of the rule is 128, the model's 64"),
        ("rule.n", 2000, "stopped_early is False, it should be True"),
        ("rule.n0", 99, "n0 is 100, the rule takes 99"),
        ("rule.bound", "beta_binomial", "bound is 'late_spending', it should be 'beta_binomial'"),
        ("shape", [4, 1, 1], r"shape is \(4, 1, 1\), the model takes \(2, 2, 1\)"),
        ("pixels_sha256", "0" * 64, "the pixels are not those of pixels_sha256"),
        ("pixels_sha256", "x", "not 64 hex digits"),
        ("pixels_float32", "AAAA", "pixels_float32 has 3 bytes"),
        ("pixels_float32", "?", "not base64"),
        ("select_seed", [2**31, 0], "two integers of 32 bits"),
        ("select_seed", [0], "select_seed must be"),
        ("certificate_id", "a b", "certificate_id is 'a b'"),
        ("certificate_id", "\x1b[2J", "certificate_id is"),
    ],
)
def test_an_altered_field_is_found(name, value, message):
    assert re.search(message, fault(changed(made_audits.fields(), name, value)) or "nothing")


@pytest.mark.parametrize("bound", ["clopper_pearson", "hoeffding"])
def test_a_bound_that_no_sidecar_uses_is_found(bound):
    fields = changed(made_audits.fields(), "rule.bound", bound)
    fields = changed(fields, "certificate.bound", bound)
    assert f"bound is {bound}, a sidecar's is one of" in fault(fields)


def test_draws_that_are_not_those_of_the_rule_are_found():
    fields = changed(made_audits.fields(), "rule.n", 1001)
    assert "n is 1000, the rule's looks are at" in fault(
        changed(fields, "certificate.stopped_early", True)
    )


def test_a_bound_for_a_fixed_number_of_draws_passes_where_older_versions_used_it():
    fields = made_audits.older(made_audits.fields(rule=Rule(n=1000, block_size=64)))
    assert fault(fields, chained=False) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 0.5, 1.5, 0.0], r"pixel \(1, 0, 0\) is 1.5, it must lie in \[0, 1\]"),
        ([0.0, -1e-7, 0.5, 0.0], r"pixel \(0, 1, 0\) is -1"),
        ([0.0, 0.5, 0.5, np.nan], r"pixel \(1, 1, 0\) is nan"),
        ([np.inf, 0.5, 0.5, 0.0], r"pixel \(0, 0, 0\) is inf"),
    ],
)
@pytest.mark.parametrize("smoothing", [made_audits.SMOOTHING, ROUNDED])
def test_pixels_that_no_caller_could_have_sent(values, message, smoothing):
    fields = with_pixels(made_audits.fields(smoothing=smoothing), values)
    assert re.search(message, fault(fields) or "nothing")


def test_noise_in_whole_steps_needs_pixels_of_8_bits():
    values = [0.5, 0.0, 1.0, 128 / 255]
    assert fault(with_pixels(made_audits.fields(), values)) is None
    wrong = fault(with_pixels(made_audits.fields(smoothing=ROUNDED), values))
    assert "certifies 8-bit images: pixel (0, 0, 0) is 0.5" in wrong


def test_forged_votes_are_found_by_drawing_again():
    forged = made_audits.fields(counts=(995, 3, 2))
    assert fault(forged) is None
    drawn = Counts(select_counts=(100, 0, 0), counts=(985, 10, 5), n0=100, n=1000)
    wrong = fault(forged, replay=lambda entry: drawn)
    assert wrong == (
        "drawn again the votes are (100, 0, 0) and (985, 10, 5), "
        "recorded are (100, 0, 0) and (995, 3, 2)"
    )
    assert fault(made_audits.fields(), replay=lambda entry: drawn) is None


def test_seeds_that_are_equal_are_refused_before_anything_is_drawn():
    fields = changed(made_audits.fields(), "estimate_seed", [0, 1])
    assert "must be independent" in fault(fields, replay=lambda entry: pytest.fail("drawn"))


def leaves(value, path=""):
    """Each place of a JSON value, inner ones as well."""
    yield path
    items = value.items() if isinstance(value, dict) else ()
    for name, inner in items:
        yield from leaves(inner, f"{path}.{name}".lstrip("."))


NASTY = [
    None, True, 0, -1, 1.0, 0.5, 2**63, 10**400, -(10**30), 1e308, 5e-324, "", "x", "\x1b[2J",
    [], [1], [[]], [None] * 3, [1.0, 2.0], ["a", "b"], [10**18, 1], [True, False, True], {},
    {"a": 1},
]  # fmt: skip


@pytest.mark.parametrize("chained", [True, False])
@pytest.mark.parametrize("smoothing", [made_audits.SMOOTHING, ROUNDED])
def test_values_of_any_kind_give_one_line_or_pass(smoothing, chained):
    fields = made_audits.fields(smoothing=smoothing)
    fields = fields if chained else made_audits.older(fields)
    tried = [name for name in leaves(fields) if name]
    assert {"rule.stop", "certificate.counts", "model.smoothing.versions", "shape"} <= set(tried)
    passed = set()
    for name in tried:
        for value in NASTY:
            altered = changed(fields, name, value)
            if json.dumps(altered) == json.dumps(fields):
                continue
            wrong = fault(altered, chained=chained)
            assert wrong is None or ("\n" not in wrong and "\x1b" not in wrong and len(wrong) < 600)
            if wrong is None:
                passed.add(name)
    # What a certificate does not depend on may be anything of its type.
    assert passed <= {
        "time", "request_id", "client", "pixels_float32", "model.name", "model.version",
        "made_with", "rule.reject_alpha", "model.smoothing.versions", "model.smoothing.dataset",
        "model.smoothing.objective", "model.smoothing.model_digest", "model.smoothing.precision",
        "model.smoothing.noise_params", "rule.beta", "certificate.select_sums",
        "certificate.sums", "certificate.square_sums", "certificate.p_upper_second",
        "model.smoothing.format_version", "certificate_id",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["", "rule", "model", "model.smoothing", "certificate"])
def test_keys_are_exactly_those_of_an_entry(name):
    fields = made_audits.fields()
    wrong = fault(changed(fields, f"{name}.more".lstrip("."), 1))
    assert "'more' is not known" in wrong
    inner = fields
    for step in name.split(".") if name else ():
        inner = inner[step]
    optional = {"pixels_float32", "made_with"} | {
        field.name for field in dataclasses.fields(made_audits.SMOOTHING)
    } - {"sigma", "num_classes", "input_shape", "model_digest", "format_version"}
    for key in [key for key in inner if name == "rule" or key not in optional]:
        missing = copy.deepcopy(fields)
        at = missing
        for step in name.split(".") if name else ():
            at = at[step]
        del at[key]
        assert key in fault(missing)


def test_a_key_given_twice_is_refused():
    line, _ = chain.to_line(made_audits.fields(), chain.BEGINNING)
    body = line.rpartition(', "digest"')[0].replace(
        '"select_seed": [0, 1]', '"select_seed": [5, 6], "select_seed": [0, 1]'
    )
    digest = hashlib.sha256(body.encode()).hexdigest()
    with pytest.raises(ValueError, match="the key 'select_seed' is given twice"):
        AuditEntry.from_line(f'{body}, "digest": "{digest}"}}')


def test_an_entry_without_its_place_is_none_of_an_older_version():
    assert "made_with" in fault(made_audits.fields(), chained=False)
    assert "made_with" in fault(made_audits.older(made_audits.fields()))


class TestTrail:
    def follow(self, path):
        trail = Trail()
        return [wrong for entry in read_audit_log(path) if (wrong := trail.follow(entry))]

    def test_entries_of_their_own(self, path):
        made_audits.write(path, map(made_audits.fields, range(4)))
        assert self.follow(path) == []

    @pytest.mark.parametrize("chained", [True, False])
    def test_a_certificate_twice(self, path, chained):
        entries = [made_audits.fields(0), made_audits.fields(1)]
        entries.append(entries[1] | {"certificate_id": entries[0]["certificate_id"],
                                     "select_seed": [8, 8], "estimate_seed": [9, 9]})  # fmt: skip
        if chained:
            made_audits.write(path, entries)
        else:
            path.write_text("".join(json.dumps(made_audits.older(e)) + "\n" for e in entries))
        assert self.follow(path) == [f"is there twice, first at {path}:1"]

    @pytest.mark.parametrize(
        ("name", "seed"),
        [
            ("select_seed", [0, 1]),
            ("estimate_seed", [0, 2]),
            ("select_seed", [0, 2]),
            ("estimate_seed", [0, 1]),
        ],
    )
    def test_noise_of_another_certificate(self, path, name, seed):
        made_audits.write(path, [made_audits.fields(0), made_audits.fields(1) | {name: seed}])
        first = made_audits.fields(0)["certificate_id"]
        assert self.follow(path) == [
            f"{name} is one of certificate {first}: no two may share their noise"
        ]

    def test_an_entry_taken_out(self, path):
        made_audits.write(path, map(made_audits.fields, range(4)))
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:1] + lines[2:]))
        (wrong, *_) = self.follow(path)
        assert "it is entry 3 and follows digest" in wrong
        assert "entries were taken out" in wrong


class TestFiles:
    def test_rotated_files_are_read_in_their_order(self, path):
        last, files = chain.BEGINNING, []
        for first in (1, 3):
            entries = [made_audits.fields(first), made_audits.fields(first + 1)]
            last = made_audits.write(path, entries, last)
            files.append(path.rename(chain.rotated_name(path, last)))
        made_audits.write(path, [made_audits.fields(5)], last)
        found = list(read_audit_log(path))
        assert [entry.place.link.number for entry in found] == [1, 2, 3, 4, 5]
        assert found[2].where == f"{path}.000000000004:1"
        # One of them alone, or without the newest, which a rotation may have left to be made.
        assert len(list(read_audit_log(files[1]))) == 2
        path.unlink()
        assert len(list(read_audit_log(path))) == 4

    def test_a_rotation_while_it_is_read(self, path):
        last = made_audits.write(path, [made_audits.fields(1)])
        path.rename(chain.rotated_name(path, last))
        last = made_audits.write(path, [made_audits.fields(2)], last)
        entries = read_audit_log(path)
        found = [next(entries)]
        path.rename(chain.rotated_name(path, last))
        made_audits.write(path, [made_audits.fields(3)], last)
        found += entries
        assert [entry.place.link.number for entry in found] == [1, 2]

    def test_a_torn_end_is_left_out_and_said(self, path):
        made_audits.write(path, map(made_audits.fields, range(2)))
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.warns(Notice, match=rf"{path}:2: the line is torn, \d+ bytes without an end"):
            assert len(list(read_audit_log(path))) == 1
        path.write_bytes(whole + b'{"certif\xff')
        with pytest.warns(Notice, match=":3: the line is torn, 9 bytes"):
            assert len(list(read_audit_log(path))) == 2

    def test_only_the_last_file_may_be_torn(self, path):
        last = made_audits.write(path, map(made_audits.fields, range(2)))
        text = path.read_text()
        chain.rotated_name(path, last).write_text(text[:-9])
        path.unlink()
        made_audits.write(path, [made_audits.fields(2)], last)
        with pytest.raises(UserError, match="000000000002:2: certificate 0*1: not an audit entry"):
            list(read_audit_log(path))

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b"\n", ":1: not an audit entry: "),
            (b"\xff\n", ":1: not an audit entry: "),
            (b"[1]\n", ":1: not an audit entry: not a JSON object"),
            (b'{"certificate_id": "c7"}\n', ":1: certificate c7: not an audit entry: the field"),
        ],
    )
    def test_a_line_that_is_none_is_named(self, path, text, message):
        path.write_bytes(text)
        with pytest.raises(UserError, match=message):
            list(read_audit_log(path))

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path):
        for missing in (tmp_path / "none", tmp_path / "no" / "folder", tmp_path):
            with pytest.raises(UserError, match=f"{missing}: cannot be read: "):
                list(read_audit_log(missing))


class TestCommand:
    """`python -m tfmacer.verify --audit_log`, without drawing again."""

    @pytest.fixture
    def log(self, path):
        self.head = made_audits.write(path, map(made_audits.fields, range(4))).digest
        return path

    def test_a_good_log(self, log, capsys):
        assert verify.main([f"--audit_log={log}"]) == 0
        assert capsys.readouterr().out == (
            f"{log}: 4 certificates verified\n"
            f"{log}: the chain begins with entry 1 and ends with entry 4, digest {self.head}\n"
        )
        assert verify.main([f"--audit_log={log}", f"--audit_head={self.head}"]) == 0
        assert f"{log}: --audit_head is entry 4, 0 came after it\n" in capsys.readouterr().out
        made_audits.write(log, [made_audits.fields(4)], chain.Link(4, self.head))
        assert verify.main([f"--audit_log={log}", f"--audit_head={self.head}"]) == 0
        assert f"{log}: --audit_head is entry 4, 1 came after it\n" in capsys.readouterr().out

    def test_a_cut_end_shows(self, log, capsys):
        log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
        assert verify.main([f"--audit_log={log}"]) == 0
        assert verify.main([f"--audit_log={log}", f"--audit_head={self.head}"]) == 1
        error = capsys.readouterr().err
        assert f"{log}: no entry has the digest {self.head} of --audit_head" in error
        assert "ends with entry 3" in error

    def test_a_torn_end_is_said_once(self, log, capsys):
        with open(log, "a") as file:
            file.write('{"certificate_id": "0')
        assert verify.main([f"--audit_log={log}"]) == 0
        out, err = capsys.readouterr()
        assert f"{log}: 4 certificates verified" in out
        assert err.count("the line is torn") == 1

    def test_an_older_log_is_verified_and_its_want_said(self, path, capsys):
        lines = [json.dumps(made_audits.older(made_audits.fields(k))) for k in range(3)]
        path.write_text("\n".join(lines) + "\n")
        assert verify.main([f"--audit_log={path}"]) == 0
        assert f"{path}: no chain: 3 entries have no digest" in capsys.readouterr().out
        assert verify.main([f"--audit_log={path}", f"--audit_head={'0' * 64}"]) == 1
        made_audits.write(path, [made_audits.fields(3)])
        assert verify.main([f"--audit_log={path}"]) == 0
        assert "before it 3 entries have no digest" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("estimate_seed", [2, 1], "select_seed and estimate_seed are both"),
            ("rule.alpha", 0.0, "alpha must lie between"),
            ("pixels_float32", base64.b64encode(np.full(4, 2, "<f4")).decode(), "is 2.0"),
        ],
    )
    def test_file_line_and_certificate_are_named(self, path, name, value, message, capsys):
        entries = [made_audits.fields(k) for k in range(4)]
        entries[2] = changed(entries[2], name, value)
        made_audits.write(path, entries)
        assert verify.main([f"--audit_log={path}"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {path}:3: certificate {2:032x}: ")
        assert message in error
        assert error.count("\n") == 1

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            (["--audit_head=" + "0" * 64, "log.tsv"], "--audit_head goes with --audit_log"),
            (["--audit_log=a", "--audit_head=12"], "--audit_head=12 is not a digest of 64 hex"),
        ],
    )
    def test_flags(self, flags, message, capsys):
        assert verify.main(flags) == 1
        assert message in capsys.readouterr().err


def test_versions_of_both_sides_are_named():
    fields = changed(made_audits.fields(), "certificate.radius", 9.0)
    other = fields | {"made_with": "tfmacer 0.0.1, scipy 1.0.0, x"}
    assert f"('tfmacer 0.0.1, scipy 1.0.0, x'; here {audit_entries.MADE_WITH})" in fault(other)


def test_no_warning_where_nothing_is_torn(path):
    made_audits.write(path, [made_audits.fields()])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(read_audit_log(path))) == 1
