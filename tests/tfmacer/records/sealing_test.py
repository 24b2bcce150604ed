import hashlib
import json

import numpy as np
import pytest

from tfmacer.records import sealing


def test_a_sealed_text_is_read_whatever_its_layout():
    fields = {"b": [1, 2.5, None], "a": {"y": "ä", "x": True}}
    text = sealing.seal(fields)
    digest = hashlib.sha256(b'{"a": {"x": true, "y": "\\u00e4"}, "b": [1, 2.5, null]}').hexdigest()
    assert json.loads(text) == fields | {"digest": digest[:16]}
    assert sealing.unseal(text) == fields
    assert sealing.unseal(json.dumps(json.loads(text), sort_keys=True)) == fields


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "not a JSON object"),
        ("{}", "its digest is missing"),
        ('{"a": 1, "digest": "0"}', "altered"),
        ('{"a": 1, "digest": null}', "altered"),
        ('{"a": 1, "a": 1, "digest": "0"}', "'a' is given twice"),
    ],
)
def test_any_other_text_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        sealing.unseal(text)


def test_what_json_cannot_say_is_not_sealed():
    with pytest.raises(ValueError, match="not JSON compliant"):
        sealing.seal({"a": float("nan")})


def test_pixels_are_digested_as_float32_little_endian_row_by_row():
    image = np.arange(12, dtype=np.float32).reshape(2, 3, 2) / 12
    expected = hashlib.sha256(image.astype("<f4").tobytes()).hexdigest()
    assert sealing.pixels_digest(image) == expected
    others = (image.astype(np.float64), image.astype(">f4"), np.asfortranarray(image))
    assert {sealing.pixels_digest(other) for other in others} == {expected}
    assert sealing.pixels_digest(np.swapaxes(image, 0, 1)) != expected
