"""JSON is read as it was written, or refused."""

import pytest

from tfmacer.common import strict_json

# Of so many keys, whoever counts each one ends in half an hour.
_MANY = "{" + "".join(f'"{i}": 1, ' for i in range(200_000)) + '"199999": 1}'


def test_what_is_written_by_the_rules_is_read():
    assert strict_json.loads('{"a": [1, 2.5, null], "b": {"a": "x"}}') == {
        "a": [1, 2.5, None],
        "b": {"a": "x"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is given twice"),
        ('{"b": {"a": 1, "a": 1}}', "the key 'a' is given twice"),
        (_MANY, "the key '199999' is given twice"),
        ('{"a": NaN}', "NaN is not a finite number"),
        ('{"a": -Infinity}', "-Infinity is not a finite number"),
        ('{"a": 1e400}', "1e400 is not a finite number"),
        ('{"a": -2.5E+999}', "-2.5E\\+999 is not a finite number"),
        ("[" * 100_000, "nested too deeply"),
        ("{", "Expecting property name"),
    ],
    ids=lambda value: value[:20],
)
def test_what_could_be_read_in_two_ways_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        strict_json.loads(text)
