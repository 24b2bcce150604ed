import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shown import VISIBLE

from tfmacer.common.errors import UserError
from tfmacer.common.text import csv_cell, markdown, one_line, visible


@pytest.mark.parametrize(("text", "shown"), VISIBLE)
def test_what_shows_nothing_is_spelled_out(text, shown):
    assert visible(text) == shown


def test_names_of_files_that_are_no_text_can_be_printed():
    assert visible("a\udcffb") == "a\\udcffb"


@given(st.text(st.characters()))
def test_what_is_visible_stays_so_and_can_be_written(text):
    shown = visible(text)
    assert visible(shown) == shown
    shown.encode()
    assert "\n" not in shown
    assert "\x1b" not in shown


def test_a_message_is_one_line():
    assert one_line("a\n b\t\x1b[2Jc\u2028d") == "a b \\x1b[2Jc d"


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quoted_values_are_cut_at_200_characters(quote):
    value = "x" * 1000
    cut = one_line(f"--n={quote}{value}{quote} is no number, {quote}ok{quote} is")
    assert cut == f"--n={quote}{'x' * 199}…{quote} is no number, {quote}ok{quote} is"
    assert one_line(cut) == cut
    kept = f"--n={quote}{'x' * 200}{quote} is no number"
    assert one_line(kept) == kept


def test_values_with_quotes_inside_and_bytes_are_cut_too():
    assert len(one_line(f"found {'a' * 150 + chr(39) + chr(34) + 'b' * 900!r}")) == 208
    assert len(one_line(f"found {b'a' * 900!r}")) == 209


def test_apostrophes_are_no_quotes():
    text = f"the log's {'many ' * 50}words are not the user's fault"
    assert one_line(text) == text


def test_a_message_ends_somewhere():
    assert len(one_line("word " * 100_000)) == 2000


@pytest.mark.parametrize("piece", ["'", "\"'", "' ", "'\\", "\\", "'a\\'", " '\\'a", "'a'b "])
def test_hostile_messages_are_read_once(piece):
    """Were the work to grow with the square of the length, this would not end."""
    assert len(one_line(piece * 200_000)) == 2000


def test_a_user_error_is_one_harmless_line():
    assert str(UserError(f"log\x1b]0;owned\x07.tsv:\n{'z' * 500!r}")) == (
        f"log\\x1b]0;owned\\x07.tsv: '{'z' * 199}…'"
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("mnist_macer_0.5/seed-1", "mnist_macer_0.5/seed-1"),
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("a & b | c", "a &amp; b \\| c"),
        ("[x](javascript:alert(1))", "\\[x\\](javascript:alert(1))"),
        ("![x](http://example.com)", "!\\[x\\](http://example.com)"),
        ("_em_ **strong** `code`", "\\_em\\_ \\*\\*strong\\*\\* \\`code\\`"),
        ("~~gone~~ $x$", "\\~\\~gone\\~\\~ \\$x\\$"),
        ("12.5 (11.0)", "12.5 (11.0)"),
        ("+0.5 (+0.1 to +0.9)", "+0.5 (+0.1 to +0.9)"),
        ("---", "\\---"),
        ("back\\slash", "back\\\\slash"),
        ("# head", "\\# head"),
        ("- item", "\\- item"),
        ("12. item", "12\\. item"),
        ("12 images", "12 images"),
        ("    code", "code"),
        ("a\n\n# head", "a\\\\n\\\\n# head"),
    ],
)  # fmt: skip
def test_markdown_shows_the_text(text, shown):
    assert markdown(text) == shown


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("run", "run"),
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+1-cmd|' /C calc'!A0", "'+1-cmd|' /C calc'!A0"),
        ("-x", "'-x"),
        (" =1+1", "' =1+1"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("\t=1+1", "\\t=1+1"),
        ("\r=1+1", "\\r=1+1"),
        ("-0.02570", "-0.02570"),
        ("+3", "+3"),
        ("-1e-05", "-1e-05"),
        ("", ""),
    ],
)
def test_csv_cells_are_no_formulas_and_numbers_stay_numbers(text, cell):
    assert csv_cell(text) == cell
    file = io.StringIO()
    csv.writer(file).writerow([csv_cell(text), "next"])
    (row,) = csv.reader(io.StringIO(file.getvalue()))
    assert row == [cell, "next"]
