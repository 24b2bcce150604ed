import dataclasses
import io
import itertools
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import made_logs
import matplotlib.image
import numpy as np
import pytest
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from scipy import special

from tfmacer.guarantee.rule import Rule
from tfmacer.guarantee.stopping import StopRule
from tfmacer.records.logs import Log, Record
from tfmacer.report import drawing, plots
from tfmacer.report.summary import Run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    decide = Rule(n=3000, bound="beta_binomial", stop=StopRule.parse("decide:0.3"))
    rules = {"plain": (Rule(n=2000), 0.0), "better": (Rule(n=2000), 0.6), "decide": (decide, 0.0)}
    return [
        Run(name, made_logs.write(folder / f"{name}.tsv", made_logs.settings(rule), shift=shift))
        for name, (rule, shift) in rules.items()
    ]


def published(radii):
    records = [
        Record(idx=i, label=i % 2, predict=i % 2, radius=r, seconds=1.0)
        for i, r in enumerate(radii)
    ]
    return Run("published", Log(Path("published.tsv"), tuple(records), None))


def words(plot):
    figure = plot.figure
    return {text.get_text() for text in figure.findobj(lambda x: hasattr(x, "get_text"))}


def test_the_drawn_steps_are_the_certified_accuracy(runs):
    """Read off the line at many radii, on and between the steps."""
    (axes,) = plots.radius_accuracy(runs).figure.axes
    for run, line in zip(runs[:2], axes.get_lines(), strict=False):
        x, y = line.get_data()
        assert line.get_drawstyle() == "steps-pre"
        for radius in [*np.linspace(0, x[-1], 97), *run.radii[run.correct]]:
            # Steps before: y[i] is drawn over (x[i - 1], x[i]].
            drawn = y[np.searchsorted(x, radius, side="left")]
            assert drawn == pytest.approx(100 * run.certified(radius).value), radius


def test_bands_hold_the_intervals(runs):
    for curve in plots.curves(runs):
        for i in range(0, len(curve.radii), 37):
            share = curve.run.certified(curve.radii[i])
            assert (curve.shares[i], curve.low[i], curve.high[i]) == (
                share.value, share.low, share.high,
            )  # fmt: skip


def test_a_radius_that_is_just_reached_counts():
    (curve,) = plots.curves([published([0.2, 0.4, 0.8, 0.8])])
    assert curve.radii[-1] == 0.8
    assert curve.shares[-1] == 0.5
    assert curve.shares[0] == 1.0


def test_decide_runs_are_not_drawn_over_radii(runs):
    assert [curve.run.name for curve in plots.curves(runs)] == ["plain", "better"]
    assert "decide" not in words(plots.radius_accuracy(runs))
    assert plots.draw_all([runs[2]]) == []


def test_names_and_the_largest_radius_are_written(runs):
    plot = plots.radius_accuracy(runs)
    assert {"plain", "better", "largest certifiable, 2,000 draws"} <= words(plot)
    dashed = [line for line in plot.figure.axes[0].get_lines() if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [runs[0].largest_radius]
    assert "certified l2 radius (pixels in [0, 1])" in words(plot)


def test_a_run_has_one_colour_in_all_plots(runs):
    assert drawing.colour(runs, runs[0]) != drawing.colour(runs, runs[1])
    for draw in (plots.radius_accuracy, plots.p_true):
        lines = draw(runs).figure.axes[0].get_lines()
        assert [line.get_color() for line in lines[:2]] == [
            drawing.colour(runs, run) for run in runs[:2]
        ]


def test_p_true_at_a_half_is_the_share_of_majorities(runs):
    (axes,) = plots.p_true(runs).figure.axes
    for run, line in zip(runs[:2], axes.get_lines(), strict=False):
        x, y = line.get_data()
        drawn = y[np.searchsorted(x, 0.0, side="left")]
        assert drawn == pytest.approx(100 * np.mean(run.p_true >= 0.5))


def test_histogram_rows_of_classes_add_up_to_one(runs):
    figure = plots.radius_by_class(runs).figure
    assert len([axes for axes in figure.axes if axes.collections]) == 2
    assert figure.axes[0].yaxis_inverted()  # class 0 on top, however many panels share the axis
    (mesh,) = figure.axes[0].collections
    shares = np.asarray(mesh.get_array()).reshape(made_logs.CLASSES, -1)
    assert shares.sum(axis=1) == pytest.approx(np.full(made_logs.CLASSES, 100.0))
    for label in range(made_logs.CLASSES):
        mine = runs[0].labels == label
        assert shares[label, 0] == pytest.approx(100 * np.mean(~runs[0].correct[mine]))


def test_log_gap_holds_every_image(runs):
    for axes in plots.log_gap(runs).figure.axes:
        heights = [patch.get_height() for patch in axes.patches[1:]]
        assert sum(heights) == pytest.approx(100.0)


def test_published_logs_have_the_plots_that_need_no_votes():
    names = [plot.name for plot in plots.draw_all([published([0.1, 0.5, 0.9, 0.9])])]
    assert names == ["radius_accuracy", "radius_by_class"]


@pytest.mark.parametrize("radii", [[0.0], [0.0, 0.0], [0.7]])
def test_degenerate_runs_are_drawn(radii):
    for plot in plots.draw_all([published(radii)]):
        plot.image("png")


def outside(plot):
    """Texts that leave the page, and axes that have collapsed."""
    FigureCanvasAgg(plot.figure).draw()
    page = plot.figure.bbox
    # Those of ticks beyond the limits are there, and never drawn.
    ticks = {label for tick in plot.figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    texts = set(plot.figure.findobj(lambda x: isinstance(x, Text) and x.get_text())) - ticks
    found = []
    for text in texts:
        box = Text.get_window_extent(text)  # an annotation's own would hold its arrow, too
        if box.x0 < page.x0 or box.x1 > page.x1 or box.y0 < page.y0 or box.y1 > page.y1:
            found.append(text.get_text())
    for axes in plot.figure.axes:
        if min(axes.bbox.width, axes.bbox.height) < 0.7 * plot.figure.dpi:
            found.append(axes)
    return found


@pytest.mark.parametrize(
    ("many", "name"),
    [
        (1, "{}"),
        (10, "method_{:02d}_lambda_10.0_of_a_name_that_goes_on_and_on/noise_0.50/seed_1"),
        (45, "{:02d}" + "W" * 60),
        (38, "method_{:02d}/" + 30 * "a_long_way/" + "end"),
    ],
)
def test_the_names_of_many_runs_stay_on_the_page(runs, many, name):
    """Without a warning: this project's tests turn none into errors, so it is asked for here."""
    named = [Run(name.format(i), runs[i % 2].log) for i in range(many)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for draw in (plots.radius_accuracy, plots.p_true, plots.radius_by_class):
            plot = draw(named)
            plot.image("svg")
            assert outside(plot) == []


def test_panels_of_runs_with_long_names_stay_on_the_page(runs):
    named = [Run(f"{i}/" + 30 * "a_long_way/" + "end", runs[i % 2].log) for i in range(5)]
    assert outside(plots.log_gap(named)) == []


def test_lines_of_many_runs_are_told_apart(runs):
    many = [Run(f"run{i}", runs[i % 2].log) for i in range(40)]
    lines = plots.radius_accuracy(many).figure.axes[0].get_lines()[:40]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 40
    legend = plots.radius_accuracy(many).figure.axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [f"run{i}" for i in range(40)]


def test_names_are_drawn_as_they_are(runs):
    """Dollars are no mathematics, and what the font lacks is spelled out without a warning."""
    name = "cost_$x^2$_\N{CJK UNIFIED IDEOGRAPH-6570}_{}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for plot in plots.draw_all([Run(name, runs[0].log)]):
            assert plot.image("svg").startswith(b"<?xml")
            plot.image("png")
    assert "cost_$x^2$_\\u6570_{}" in words(plots.radius_accuracy([Run(name, runs[0].log)]))
    assert b"cost_$x^2$" in plots.radius_accuracy([Run(name, runs[0].log)]).image("svg")


def test_a_picture_of_very_many_runs_is_no_larger_than_can_be_drawn(runs):
    plot = plots.radius_accuracy(runs)
    plot.figure.set_size_inches(4, 600)
    assert plot.image("png")


def test_many_runs_are_drawn(runs):
    many = [Run(f"run{i}", runs[i % 2].log) for i in range(9)]
    plot = plots.radius_accuracy(many)
    assert {f"run{i}" for i in range(9)} <= words(plot)
    assert not plot.figure.axes[0].collections  # no bands


def test_files_are_pictures(runs):
    drawn = plots.draw_all(runs)
    assert [plot.name for plot in drawn] == [
        "radius_accuracy", "p_true", "log_probability_gap", "radius_by_class",
    ]  # fmt: skip
    for plot in drawn:
        assert plot.note.endswith(".")
        picture = matplotlib.image.imread(io.BytesIO(plot.image("png")))
        assert min(picture.shape[:2]) > 250
        assert picture.std() > 0.05  # not blank
        assert ElementTree.fromstring(plot.image("svg")).tag.endswith("svg")


def test_largest_radii_that_nearly_agree_are_marked_once(runs):
    settings = runs[0].log.settings
    near = dataclasses.replace(
        settings,
        classifier=dataclasses.replace(settings.classifier, sigma=0.5005),
        rule=dataclasses.replace(settings.rule, n=2010),
    )
    log = dataclasses.replace(runs[0].log, settings=near)
    plot = plots.radius_accuracy([runs[0], Run("near", log)])
    assert "largest certifiable, 2,000 and 2,010 draws" in words(plot)


@pytest.mark.parametrize(("share", "below"), [(0.9, True), (0.1, False)])
def test_the_mark_of_the_largest_radius_keeps_off_the_curves(runs, share, below):
    radius = runs[0].largest_radius
    many = len(runs[0].log.records)
    records = tuple(
        dataclasses.replace(record, radius=radius, predict=record.label if i < share * many else -1)
        for i, record in enumerate(runs[0].log.records)
    )
    run = Run("run", dataclasses.replace(runs[0].log, records=records))
    (axes,) = plots.radius_accuracy([run]).figure.axes
    (mark,) = (text for text in axes.texts if "largest certifiable" in text.get_text())
    assert (mark.xy[1] < 0.5) == below


@pytest.mark.parametrize("width", [2.0, 5.0, 9.0])
def test_probabilities_on_an_axis_leave_room_for_their_labels(width):
    kept = plots._spaced(plots._PROBABILITIES, width)
    places = special.ndtri(kept)
    assert 0.5 in kept
    assert (np.diff(places) > 0.09 * width).all()


@pytest.mark.parametrize("values", [[], [5.0], [1, 1, 1, 1], [0, 50, 99, 100], [100, 100, 100]])
def test_names_are_kept_apart_in_order_and_within(values):
    sizes = [4.0, 8.0, 2.0, 6.0][: len(values)]
    placed = drawing._apart(values, sizes, 2.0, 98.0)
    places = list(zip(placed, sizes, strict=True))
    for (first, before), (second, after) in itertools.pairwise(places):
        assert second - first >= (before + after) / 2 - 1e-9
    assert all(2 + size / 2 <= place <= 98 - size / 2 + 1e-9 for place, size in places)
    if values == [0, 50, 99, 100]:
        assert placed == [4.0, 50, 91.0, 95.0]


def test_names_that_do_not_fit_go_on_beyond_the_end():
    assert drawing._apart([1, 2, 3], [4.0, 4.0, 4.0], 0.0, 10.0) == [2.0, 6.0, 10.0]


def test_no_runs_no_plots():
    assert plots.draw_all([]) == []
