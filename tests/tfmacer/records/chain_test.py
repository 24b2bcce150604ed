"""A chain of lines: what was changed, taken out, added or cut off shows."""

import hashlib
import itertools
import json

import pytest

from tfmacer.records import chain
from tfmacer.records.chain import BEGINNING, Chain, Link


def lines(count, last=BEGINNING):
    made = []
    for k in range(last.number, last.number + count):
        line, last = chain.to_line({"name": f"ä{k}", "value": k / 3}, last)
        made.append(line)
    return made


def follow(texts, head=None):
    """The chain that some lines make; fails at the first that does not follow."""
    found = Chain(head)
    for text in texts:
        wrong = found.follow(chain.from_line(text)[1])
        if wrong is not None:
            raise ValueError(wrong)
    return found


def test_the_form_of_a_line():
    line, link = chain.to_line({"a": 1.5}, Link(6, "7" * 64))
    text = '{"a": 1.5, "entry": 7, "previous": "' + "7" * 64 + '"'
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert line == f'{text}, "digest": "{digest}"}}'
    assert link == Link(7, digest)
    fields, place = chain.from_line(line)
    assert fields == {"a": 1.5}
    assert (place.before, place.link) == (Link(6, "7" * 64), link)


def test_an_object_without_a_place():
    assert chain.from_line('{"a": 1}') == ({"a": 1}, None)


def test_every_character_counts():
    (line,) = lines(1)
    for place, new in itertools.product(range(len(line)), "0a "):
        if line[place] != new:
            with pytest.raises(ValueError, match=r"."):
                follow([line[:place] + new + line[place + 1 :]], head=None)
            with pytest.raises(ValueError, match=r"."):
                follow([line[:place] + new + line[place:]])
        with pytest.raises(ValueError, match=r"."):
            follow([line[:place] + line[place + 1 :]])


@pytest.mark.parametrize(
    "fields",
    [
        {"entry": 0, "previous": "0" * 64},
        {"entry": True, "previous": "0" * 64},
        {"entry": 1.0, "previous": "0" * 64},
        {"entry": "1", "previous": "0" * 64},
        {"previous": "0" * 64},
        {"entry": 1},
        {"entry": 1, "previous": "0" * 63},
        {"entry": 1, "previous": 0},
        {"entry": 1, "previous": None},
    ],
)
def test_a_place_that_cannot_be(fields):
    text = json.dumps(fields)[:-1]
    digest = hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(ValueError, match=r"entry|previous"):
        chain.from_line(f'{text}, "digest": "{digest}"}}')


@pytest.mark.parametrize(
    "text", ["", "[]", "7", "{", '{"digest": "a"}', '{"a": 1, "a": 2}', '{"a": NaN}', "{}" * 2]
)
def test_what_is_no_line(text):
    with pytest.raises(ValueError, match=r"."):
        chain.from_line(text)


def test_a_whole_chain():
    texts = lines(5)
    digest = chain.from_line(texts[-1])[1].link.digest
    found = follow(texts, head=digest)
    assert found.known == found.last == Link(5, digest)
    assert str(found) == f"the chain begins with entry 1 and ends with entry 5, digest {digest}"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t[:2] + t[3:],  # one taken out
        lambda t: [t[1], t[0], *t[2:]],
        lambda t: [*t[:3], t[2], *t[3:]],
        lambda t: [*t[:4], lines(1)[0]],  # one added
        lambda t: [*t, '{"a": 1}'],
        lambda t: [t[0], '{"a": 1}', *t[1:]],
        lambda t: ['{"a": 1}', *t[1:]],  # the beginning replaced by one without a place
        lambda t: [*t[:2], lines(3, last=Link(2, "1" * 64))[0]],  # another history
    ],
)
def test_what_does_not_follow(change):
    with pytest.raises(ValueError, match=r"no digest|taken out, added or changed"):
        follow(change(lines(5)))


def test_a_cut_end_shows_against_the_head():
    texts = lines(5)
    heads = [chain.from_line(text)[1].link.digest for text in texts]
    for cut in range(1, 6):
        for known in range(1, 6):
            passed = follow(texts[:cut], heads[known - 1]).known
            assert passed == (Link(known, heads[known - 1]) if known <= cut else None)
    assert follow([], heads[0]).known is None


def test_a_chain_written_again_has_another_head():
    texts = lines(5)
    head = chain.from_line(texts[-1])[1].link.digest
    again, last = [], BEGINNING
    for text in texts:
        fields, _ = chain.from_line(text)
        line, last = chain.to_line({**fields, "value": 2.0}, last)
        again.append(line)
    assert follow(again, head).known is None


def test_a_cut_beginning_is_said():
    texts = lines(5)
    first = chain.from_line(texts[1])[1].link
    found = follow(texts[2:], head=first.digest)
    assert str(found).startswith(
        f"the chain begins with entry 3, after digest {first.digest} of one that is not here, "
    )
    assert found.known == first  # everything before it is older than what is here


def test_lines_of_older_versions_come_first():
    found = follow(['{"a": 1}', '{"a": 2}', *lines(2)])
    assert str(found).endswith("before it 2 entries have no digest, so one taken out of them "
                               "does not show")  # fmt: skip
    assert str(follow(['{"a": 1}'])).startswith("no chain: 1 entries have no digest")


def test_rotated_names_sort_as_their_entries(tmp_path):
    path = tmp_path / "audit.jsonl"
    names = [chain.rotated_name(path, Link(k, "")) for k in (0, 9, 10, 999, 123456)]
    for name in reversed(names):
        name.touch()
    for other in ("audit.jsonl", "audit.jsonl.lock", "audit.jsonl.1", "b.jsonl.000000000001"):
        (tmp_path / other).touch()
    assert chain.rotated(path) == names
    assert chain.rotated(names[1]) == []
