import dataclasses
import json

import made_logs
import pytest

from tfmacer.errors import UserError
from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.settings import LogSettings, parse_shard


def read(text):
    return LogSettings.from_json(text, origin="LOG.tsv.json")


def test_json_begins_with_alpha_and_sigma_and_round_trips():
    settings = made_logs.settings(warnings=("beware",), shard="1/3", skip=2)
    fields = json.loads(settings.to_json())
    assert list(fields)[:2] == ["alpha", "sigma"]
    assert fields["sigma"] == 0.5
    assert fields["generator"] == "philox"
    assert read(settings.to_json()) == settings


@pytest.mark.parametrize(
    "rule",
    [
        Rule(n=2000, n0=50, alpha=0.01, bilateral=True),
        Rule(n=5000, bound="beta_binomial", stop=StopRule.parse("decide:0.5"), reject_alpha=0.01),
        Rule(n=5000, bound="bernstein", beta=4.0),
    ],
)
def test_the_rule_and_the_law_come_back(rule):
    settings = read(made_logs.settings(rule).to_json())
    assert settings.rule == rule
    assert settings.law.sigma == 0.5
    assert settings.law.norm == "l2"


ALTERED = {
    "alpha": 0.01, "sigma": 1.0, "noise_family": "other", "noise_params": {"k": 1},
    "block_size": 128, "bound": "hoeffding", "bilateral": True, "beta": 2.0,
    "stop": "budget:1.0", "reject_alpha": 0.01, "n0": 101, "n": 2001, "seed": 4,
    "generator": "other", "num_classes": 5, "input_shape": [2, 2, 2], "model_digest": "b" * 64,
    "precision": "mixed_bfloat16", "dataset": "letters", "split": "train", "total": 41, "start": 1,
    "skip": 2, "num_examples": 7, "shard": "0/2", "environment": {"device": "GPU"},
    "warnings": ["never mind"], "format_version": 2, "digest": "0" * 16,
}  # fmt: skip


def test_the_table_of_alterations_knows_every_field():
    assert list(ALTERED) == list(json.loads(made_logs.settings().to_json()))


@pytest.mark.parametrize("field", ALTERED)
def test_an_altered_field_is_found_whichever_way(field):
    fields = json.loads(made_logs.settings().to_json())
    assert fields[field] != ALTERED[field]
    with pytest.raises(UserError, match=r"^LOG.tsv.json: not usable as a log's settings"):
        read(json.dumps(fields | {field: ALTERED[field]}))
    if field in {f.name for f in dataclasses.fields(LogSettings)} - {"noise_family"}:
        # The other way: what was written with the other value, changed to this one.
        kept = {k: tuple(v) if isinstance(v, list) else v for k, v in ALTERED.items()}
        other = dataclasses.replace(made_logs.settings(), **{field: kept[field]})
        with pytest.raises(UserError, match="digest does not match"):
            read(json.dumps(json.loads(other.to_json()) | {field: fields[field]}))


@pytest.mark.parametrize("change", ["missing", "added"])
def test_fields_are_neither_missing_nor_added(change):
    fields = json.loads(made_logs.settings().to_json())
    if change == "missing":
        del fields["seed"]
    else:
        fields["colour"] = "red"
    with pytest.raises(UserError, match=r"LOG\.tsv\.json"):
        read(json.dumps(fields))


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
    assert one.differences(other, besides=("environment", "n")) == ["seed is 3, not 4"]
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
