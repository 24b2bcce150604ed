import contextlib
import io

import pytest

from tfmacer.common import progress
from tfmacer.common.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_gets_a_bar_and_lines_above_it():
    screen = Terminal()
    with Progress(3, "images", done=1, name="log[1].tsv", file=screen) as shown:
        shown.advance("certified [/] 50%")
        shown.print("epoch [1]")
        shown.advance("certified [/] 51%")
    text = screen.getvalue()
    for part in ("log[1].tsv", "epoch [1]\n", "3/3", "images", "certified [/] 51%"):
        assert part in text
    assert text.endswith("\x1b[?25h")  # the cursor is back


@pytest.mark.parametrize(
    ("total", "line"),
    [(1500, "1,200 of 1,500 images, ACR 0.5, 0:0"), (None, "1,200 images, ACR 0.5, ? left")],
)
def test_elsewhere_a_line_comes_now_and_then(total, line, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with Progress(total, "images", done=1199) as shown:
        shown.advance("ACR 0.5")
        out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(line)
    assert err.endswith(" left\n")


def test_the_last_note_is_printed_at_the_end_unless_it_failed(capsys):
    for note in ("", "flipped within: 0"):
        with Progress(2, "images") as shown:
            shown.show(1, note)
            shown.show(2, note)
    assert capsys.readouterr().err == "2 of 2 images, flipped within: 0\n"
    with contextlib.suppress(KeyError), Progress(2, "images") as shown:
        shown.show(1, "flipped within: 0")
        raise KeyError
    assert capsys.readouterr().err == ""


def test_nothing_is_printed_where_lines_are_unwanted(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with Progress(2, "steps", lines=False) as shown:
        shown.show(2, "loss 1")
    assert capsys.readouterr() == ("", "")
