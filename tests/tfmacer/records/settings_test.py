import json
from pathlib import Path

import made_logs
import pytest

from tfmacer.common.errors import UserError
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records import sealing
from tfmacer.records.settings import LogSettings, parse_shard

RESULTS = Path(__file__).parents[3] / "results"


def read(text):
    return LogSettings.from_json(text, origin="LOG.tsv.json")


def test_json_begins_with_alpha_and_sigma_and_round_trips():
    settings = made_logs.settings(warnings=("beware",), shard="1/3", skip=2)
    fields = json.loads(settings.to_json())
    assert list(fields)[:2] == ["alpha", "sigma"]
    assert fields["sigma"] == 0.5
    assert fields["generator"] == "philox-boxmuller"
    assert read(settings.to_json()) == settings


def test_the_generator_is_the_models_and_part_of_a_rows_identity():
    old, new = (made_logs.settings(generator=g) for g in ("philox", "philox-boxmuller"))
    assert old.identity != new.identity
    for settings, name in ((old, "philox"), (new, "philox-boxmuller")):
        assert settings.classifier.generator == name
        assert settings.classifier.distribution.generator == name


@pytest.mark.parametrize(
    "rule",
    [
        Rule(n=2000, n0=50, alpha=0.01, bilateral=True),
        Rule(n=5000, bound="beta_binomial", stop=StopRule.parse("decide:0.5"), reject_alpha=0.01),
        Rule(n=5000, bound="bernstein", beta=4.0),
    ],
)
def test_the_rule_and_the_noise_come_back(rule):
    settings = read(made_logs.settings(rule).to_json())
    assert settings.rule == rule
    assert settings.classifier.distribution.sigma == 0.5
    assert settings.classifier.distribution.norm == "l2"


ALTERED = {
    "alpha": 0.01, "sigma": 1.0, "noise_family": "rounded_gaussian", "noise_params": {"k": 1},
    "block_size": 128, "bound": "hoeffding", "bilateral": True, "beta": 2.0,
    "stop": "budget:1.0", "reject_alpha": 0.01, "n0": 101, "n": 2001, "seed": 4,
    "generator": "philox", "num_classes": 5, "input_shape": [2, 2, 2], "model_digest": "b" * 64,
    "precision": "mixed_bfloat16", "dataset": "letters", "split": "train", "total": 41, "start": 1,
    "skip": 2, "num_examples": 7, "shard": "0/2", "environment": {"device": "GPU"},
    "warnings": ["never mind"], "class_names": ["a", "b"], "format_version": 3, "digest": "0" * 16,
}  # fmt: skip


# Alone, with the other fields as they are.
IMPOSSIBLE = {"noise_params", "stop", "format_version", "digest"}


def test_the_table_of_alterations_knows_every_field():
    assert list(ALTERED) == list(json.loads(made_logs.settings().to_json()))


@pytest.mark.parametrize("field", ALTERED)
def test_an_altered_field_is_found_whichever_way(field):
    fields = json.loads(made_logs.settings().to_json())
    assert fields[field] != ALTERED[field]
    with pytest.raises(UserError, match=r"^LOG.tsv.json: not usable as a log's settings"):
        read(json.dumps(fields | {field: ALTERED[field]}))
    if field not in IMPOSSIBLE:
        # The other way: what was written with the other value, changed to this one.
        other = read(sealing.seal(unsealed(fields) | {field: ALTERED[field]}))
        with pytest.raises(UserError, match="digest does not match"):
            read(json.dumps(json.loads(other.to_json()) | {field: fields[field]}))


def unsealed(fields):
    return {name: value for name, value in fields.items() if name != "digest"}


@pytest.mark.parametrize("change", ["missing", "added"])
def test_fields_are_neither_missing_nor_added(change):
    fields = json.loads(made_logs.settings().to_json())
    if change == "missing":
        del fields["seed"]
    else:
        fields["colour"] = "red"
    with pytest.raises(UserError, match=r"LOG\.tsv\.json"):
        read(json.dumps(fields))


RESEALED = {
    "num_classes": [10.0, 1, 0, -3, "4", True, None, 2**63],
    "input_shape": [[2, 2, -1], [2, 2], [2, 2, 0], [2, 2, 1.0], 4, "221", [2**62] * 3],
    "alpha": [0.0, 1.0, -0.1, "0.001", True, None],
    "sigma": [0.0, -1.0, "0.5", None, [0.5], 10**400],
    "noise_family": ["cauchy", 3],
    "noise_params": [[], {"k": "1"}, {"k": 1.0}, None],
    "block_size": [0, -1, 256.0],
    "bound": ["best", 3],
    "bilateral": [0, "no"],
    "beta": [0.0, "1"],
    "stop": ["never", 3, "decide:"],
    "reject_alpha": [0.0, 2],
    "n0": [0, 100.0, 2**64],
    "n": [0, -1, 2000.0, "2000"],
    "seed": [-1, 0.5, True, "3", 2**63],
    "generator": [3],
    "model_digest": [5, None],
    "precision": [5],
    "total": [-1, 40.0, 10**30],
    "start": [-1, 40, 0.0],
    "skip": [0, -2],
    "num_examples": [0, -5, 1.5],
    "shard": ["2/2", 1],
    "environment": [[], "CPU", None],
    "warnings": ["beware", [1], None],
    "class_names": ["ab", [1, 2], {}, ["a"] * 11],
    "format_version": [0, 3, True, "2", None, 2.0],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, each in RESEALED.items() for value in each]
)
def test_values_that_cannot_be_are_one_line_though_sealed(field, value):
    fields = json.loads(made_logs.settings().to_json())
    del fields["digest"]
    with pytest.raises(UserError, match=r"^LOG.tsv.json: not usable as a log's set") as error:
        read(sealing.seal(fields | {field: value}))
    assert "\n" not in str(error.value)


def test_a_key_given_twice_is_refused():
    text = made_logs.settings().to_json()
    with pytest.raises(UserError, match="LOG.tsv.json: .*'alpha' is given twice"):
        read(text.replace('"alpha"', '"alpha": 0.5, "alpha"', 1))


def test_settings_and_rows_of_the_first_version_are_written_as_they_were():
    """Byte for byte, of every certification log that the project publishes."""
    found = [path for path in RESULTS.rglob("*.tsv.json") if '"n0"' in path.read_text()]
    assert len(found) > 30
    for beside in found:
        settings = LogSettings.from_json(beside.read_text(), origin=str(beside))
        if settings.format_version > 1:
            continue
        assert settings.to_json() == beside.read_text()
        _, *lines = beside.with_suffix("").read_text().splitlines()
        for line in lines[::100]:
            assert settings.to_line(settings.sealed(settings.from_line(line))) == line


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "{}", '{"alpha": 0.1}'])
def test_what_is_no_settings_file_is_refused_in_one_line(text):
    with pytest.raises(UserError, match="LOG.tsv.json: not usable") as error:
        read(text)
    assert "\n" not in str(error.value)


def test_layout_of_the_file_may_change():
    settings = made_logs.settings()
    fields = json.loads(settings.to_json())
    assert read(json.dumps(dict(reversed(fields.items())))) == settings


def test_differences_are_named_with_both_values():
    one = made_logs.settings(Rule(n=2000))
    other = made_logs.settings(
        Rule(n=3000),
        seed=4,
        warnings=("new",),
        environment={"device": "CPU", "intra_op_threads": 2, "versions": {"numpy": "3"}},
    )
    assert one.differences(other) == [
        "n is 2000, not 3000",
        "seed is 3, not 4",
        "environment.intra_op_threads is 1, not 2",
        "environment.versions.numpy is '2', not '3'",
    ]
    assert one.differences(other, ignoring=("environment", "n")) == ["seed is 3, not 4"]
    # As read back from JSON, where there are no tuples.
    assert one.differences(read(one.to_json())) == []


def test_selection_is_start_skip_count():
    indices = made_logs.settings(total=100, start=5, skip=20, num_examples=3).indices
    assert list(indices) == [5, 25, 45]
    assert list(made_logs.settings(total=100, start=5, skip=20, num_examples=9).indices) == [
        5, 25, 45, 65, 85,
    ]  # fmt: skip


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 50])
def test_shards_divide_the_selection_by_place(parts):
    whole = list(made_logs.settings(total=100, start=3, skip=4).indices)
    shards = [
        list(made_logs.settings(total=100, start=3, skip=4, shard=f"{i}/{parts}").indices)
        for i in range(parts)
    ]
    for i, shard in enumerate(shards):
        assert shard == [idx for p, idx in enumerate(whole) if p % parts == i]
    assert sorted(idx for shard in shards for idx in shard) == whole


@pytest.mark.parametrize("text", ["", "1", "1/", "/2", "2/2", "-1/2", "a/b", "0/0", "1/2/3", "²/3"])
def test_a_shard_is_i_of_n(text):
    with pytest.raises(UserError, match="shard must be i/N with 0 <= i < N"):
        parse_shard(text)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("start", -1, "start"),
        ("skip", 0, "skip"),
        ("num_examples", 0, "num_examples"),
        ("start", 40, "start is 40, the split has 40 images"),
        ("shard", "3/3", "shard must be i/N"),
    ],
)
def test_an_impossible_selection_is_refused(field, value, message):
    with pytest.raises(UserError, match=message):
        made_logs.settings(**{field: value})


def test_the_rule_must_be_for_the_models_blocks():
    with pytest.raises(UserError, match="block_size of the rule is 64, the model's 256"):
        made_logs.settings(Rule(n=2000, block_size=64))
