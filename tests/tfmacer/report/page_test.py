import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import made_logs
import pytest

from tfmacer.guarantee.rule import Rule
from tfmacer.report import plots, tables
from tfmacer.report.page import page, settings_rows
from tfmacer.report.summary import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    named = {"plain": (Rule(n=2000), 0.0), "<b>bold</b>": (Rule(n=3000), 0.6)}
    return [
        Run(
            name,
            made_logs.write(folder / f"{rule.n}.tsv", made_logs.settings(rule), shift=shift),
        )
        for name, (rule, shift) in named.items()
    ]


@pytest.fixture(scope="module")
def html(runs):
    shown = [tables.results(runs, [0.0, 0.5])]
    return page(runs, shown, plots.draw_all(runs), ["n differs & matters"])


NUMBERS = re.compile(r"([\d.]+) % \(([\d.]+) to ([\d.]+)\)")


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_nothing_is_fetched_from_elsewhere(html):
    for tag, attributes in Elements(html).found:
        assert tag not in ("link", "iframe", "object")
        for name in ("src", "href", "srcset", "action"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in html
    assert "import" not in html
    assert "fetch(" not in html


def test_names_and_warnings_are_text_not_markup(html):
    assert "<b>bold</b>" not in html
    assert "&lt;b&gt;bold&lt;/b&gt;" in html
    assert "n differs &amp; matters" in html


def test_texts_cannot_turn_the_page_around(tmp_path):
    log = made_logs.write(
        tmp_path / "log.tsv", made_logs.settings(total=5, dataset="\u202egnp", split="a\x1b[2J")
    )
    (run,) = [Run("\u2066name\x07", log)]
    made = page([run], [tables.results([run], [0.0])], plots.draw_all([run]), ["\u202ewarned"])
    assert all(line.isprintable() for line in made.split("\n"))
    (hover,) = [a["data-hover"] for _, a in Elements(made).found if "data-hover" in a]
    assert json.loads(hover)["runs"][0]["name"] == "\\u2066name\\x07"
    assert "\\u202egnp" in made


def test_every_plot_is_there_with_words_for_who_cannot_see_it(html, runs):
    pictures = [a for tag, a in Elements(html).found if tag == "img"]
    assert [a["alt"] for a in pictures] == [plot.title for plot in plots.draw_all(runs)]
    for picture in pictures:
        svg = base64.b64decode(picture["src"].partition("base64,")[2])
        assert svg.lstrip().startswith(b"<?xml")


def test_hover_values_are_the_certified_accuracies(html, runs):
    (hover,) = [a["data-hover"] for _, a in Elements(html).found if "data-hover" in a]
    data = json.loads(hover)
    assert [run["name"] for run in data["runs"]] == ["plain", "<b>bold</b>"]
    for run, shown in zip(runs, data["runs"], strict=True):
        for i in (0, 111, 399):
            value, low, high = map(float, NUMBERS.fullmatch(shown["shares"][i]).groups())
            certified = run.certified(float(data["radii"][i]))
            assert value == pytest.approx(100 * certified.value, abs=3)
            curve = plots.curves(runs)[runs.index(run)]
            assert 0 <= 100 * curve.low[i] - low < 0.1
            assert 0 <= high - 100 * curve.high[i] < 0.1
            assert 0 <= curve.radii[i] - float(data["radii"][i]) < 0.001
    assert 0 < data["left"] < data["left"] + data["width"] < 1
    assert 0 < data["top"] < data["top"] + data["height"] < 1
    assert data["places"][0] == 0
    assert 0.9 < data["places"][-1] < 1


def test_settings_that_differ_are_marked(runs):
    rows = {name: (values, differs) for name, values, differs in settings_rows(runs)}
    assert rows["n"] == (["2000", "3000"], True)
    assert rows["sigma"] == (["0.5", "0.5"], False)
    assert rows["log"][1] is False
    assert "model_digest" in rows


def test_cells_carry_what_a_column_is_sorted_by(html):
    orders = [
        a["data-order"] for tag, a in Elements(html).found if tag == "td" and "data-order" in a
    ]
    assert orders[:2] == ["plain", "40"]
    assert float(orders[2]) > 0


# What a visitor does, and what is then on the page.
VISIT = """
<script>
const said = [];
const rows = () => [...document.querySelectorAll("table.sortable tbody tr")]
  .map(row => row.cells[0].textContent.trim()).join(",");
const head = [...document.querySelectorAll("table.sortable th button")]
  .find(button => button.textContent === "ACR");
said.push(rows());
head.click(); said.push(rows());
head.click(); said.push(rows());
const frame = document.querySelector("[data-hover]");
const tip = frame.querySelector(".tip");
said.push(tip.hidden);
const box = frame.getBoundingClientRect();
const hover = JSON.parse(frame.dataset.hover);
const x = box.left + box.width * hover.left + 1;
frame.dispatchEvent(new PointerEvent("pointermove", {clientX: x, clientY: box.top + 9}));
said.push(tip.hidden, tip.textContent);
frame.parentElement.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowRight"}));
said.push(tip.textContent);
frame.dispatchEvent(new PointerEvent("pointerleave"));
said.push(tip.hidden);
const answer = document.createElement("pre");
answer.id = "said";
answer.textContent = JSON.stringify(said);
document.body.append(answer);
</script>
"""


@pytest.mark.browser
def test_a_browser_sorts_and_shows_values(html, tmp_path):
    chromium = shutil.which("chromium")
    file = tmp_path / "page.html"
    file.write_text(html.replace("</body>", VISIT + "</body>"), encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path}", "--window-size=1200,2000", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    said = json.loads(re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL).group(1))
    first, descending, ascending, hidden, shown, tip, later, gone = (
        text.replace("&lt;", "<").replace("&gt;", ">") if isinstance(text, str) else text
        for text in said
    )
    assert first == "plain,<b>bold</b>"
    assert descending == "<b>bold</b>,plain"
    assert ascending == "plain,<b>bold</b>"
    assert (hidden, shown, gone) == (True, False, True)
    assert tip.startswith("radius 0.00")
    assert "plain" in tip
    assert later != tip
