"""`smoothing.json`: sealed, of the right types, readable as it was written before it was sealed."""

import dataclasses
import json
import warnings

import pytest

from tfmacer.common.errors import Notice, UserError
from tfmacer.records import sealing
from tfmacer.records.runs import RunDirectory, Smoothing

MADE = Smoothing(
    sigma=0.5, num_classes=10, input_shape=(28, 28, 1), model_digest="a" * 64, dataset="mnist5k",
    noise_family="generalized_gaussian", noise_params={"k": 2.0}, objective="macer",
    versions={"numpy": "2"},
)  # fmt: skip
OLD = dataclasses.replace(MADE, generator="philox")


def read(text):
    return Smoothing.from_json(text, origin="smoothing.json")


def first_version(**change):
    """The text as the first version wrote it, when generators had no names."""
    fields = dataclasses.asdict(MADE) | {"format_version": 1}
    del fields["generator"]
    fields |= change
    return json.dumps(fields, indent=2) + "\n"


def test_what_was_written_is_read_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(MADE.to_json()) == MADE
        assert read(json.dumps(dict(reversed(json.loads(MADE.to_json()).items())))) == MADE


@pytest.mark.parametrize(
    "change",
    [
        {"sigma": 1.0},
        {"block_size": 512},
        {"precision": 5},
        {"precision": "mixed_bfloat16"},
        {"noise_params": {"k": 1.0}},
        {"model_digest": "b" * 64},
        {"dataset": None},
        {"digest": "0" * 16},
        {"colour": "red"},
    ],
)
def test_an_edited_one_is_refused(change):
    edited = json.dumps(json.loads(MADE.to_json()) | change)
    with pytest.raises(UserError, match=r"^smoothing\.json: not a usable .*altered after it was"):
        read(edited)


@pytest.mark.parametrize("field", json.loads(MADE.to_json()))
def test_a_field_taken_out_is_refused(field):
    fields = json.loads(MADE.to_json())
    del fields[field]
    with pytest.raises(UserError, match="smoothing.json: not a usable"):
        read(json.dumps(fields))


IMPOSSIBLE = {
    "sigma": [0.0, -1.0, "0.5", True, None, 10**400],
    "num_classes": [1, 10.0, True, "10", 10**13, 2**63],
    "input_shape": [[28, 28], [28, 28, 0], [28, 28, 1.0], [2**20, 2**20, 1], "abc", None],
    "model_digest": [None, 5],
    "noise_family": [None, 1],
    "noise_params": [[], {"k": "2"}, {"k": True}, None],
    "block_size": [0, -256, 256.0, "256", 1_000_001],
    "generator": ["mersenne", "", None, 1],
    "dataset": [5, ["mnist5k"]],
    "objective": [5],
    "precision": [5, None],
    "versions": [[], {"numpy": 2}],
    "format_version": [0, 3, "2", True, None, 2.0],
}


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "first version"])
@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, each in IMPOSSIBLE.items() for value in each]
)
def test_values_that_cannot_be_are_one_line(field, value, sealed):
    text = sealing.seal(dataclasses.asdict(MADE) | {field: value})
    with pytest.raises(UserError, match=r"^smoothing\.json: not a usable") as error:
        read(text if sealed else first_version(**{field: value}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", "{}", "[" * 100_000, '{"a": NaN}', b"\xff"]
)
def test_what_is_no_description_is_refused_in_one_line(text, tmp_path):
    run = RunDirectory(tmp_path)
    run.model.touch()
    run.smoothing.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"smoothing\.json: ") as error:
        run.read_smoothing()
    assert "\n" not in str(error.value)


def test_a_key_given_twice_is_refused():
    for text in (MADE.to_json(), first_version()):
        with pytest.raises(UserError, match="'sigma' is given twice"):
            read(text.replace('"sigma"', '"sigma": 4.0, "sigma"'))


def test_the_first_version_is_read_with_a_notice():
    with pytest.warns(Notice, match=r"^smoothing\.json: written by an earlier version, without a"):
        assert read(first_version()) == OLD


def test_a_model_without_a_generator_is_of_the_first():
    """And one made here of the latest; what is written again names it."""
    assert MADE.generator == "philox-boxmuller"
    with pytest.warns(Notice):
        found = read(first_version())
    assert (found.generator, found.distribution.generator) == ("philox", "philox")
    assert json.loads(found.to_json())["generator"] == "philox"
    unnamed = dataclasses.asdict(MADE)
    del unnamed["generator"]
    assert read(sealing.seal(unnamed)) == OLD


def test_an_unknown_generator_is_one_line():
    """As of a model that a later version exported."""
    fields = dataclasses.asdict(MADE) | {"generator": "philox-3"}
    with pytest.raises(UserError, match="generator must be one of philox, .*, got 'philox-3'$"):
        read(sealing.seal(fields))


def test_the_law_is_that_of_the_fields():
    distribution = MADE.distribution
    assert (distribution.family, distribution.sigma, distribution.k, distribution.dimension) == (
        "generalized_gaussian",
        0.5,
        2.0,
        784,
    )
    assert distribution.generator == MADE.generator


def test_a_seal_cannot_be_left_out():
    fields = json.loads(MADE.to_json())
    del fields["digest"]
    with pytest.raises(UserError, match="its digest is missing"):
        read(json.dumps(fields))


def test_fields_within_another_seal_need_none_of_their_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for version in (1, 2):
            fields = json.loads(first_version(format_version=version))
            assert Smoothing.from_fields(fields) == OLD
