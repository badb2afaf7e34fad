"""Reliability and risk-coverage curves: PNG that opens, with every text readable, and SVG that fits into a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree

import numpy as np
import pytest
from figure_checks import boxes, check_texts, opened
from matplotlib.lines import Line2D
from support.report_examples import make_decision, make_scores

from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.results import EvaluationResult
from pharmclf.reporting import calibration_plots as drawn
from pharmclf.reporting.figures import inline_svg, png_bytes

NAMES = ("a", "b", "c")


def make_curves(decision: AbstentionPolicy, num_extra: int = 1) -> dict[str, EvaluationResult]:
    """Validation, test and extra sets, each worse than the one before."""
    names = ["validation", "test", *(f"another source {number}" for number in range(num_extra))]
    return {
        name: make_scores(NAMES, decision, mistakes=2 + 2 * place, surest=place)[0] for place, name in enumerate(names)
    }


def test_pictures_are_png_and_the_same_every_time():
    decision = make_decision()
    curves = make_curves(decision)
    for make in (
        lambda: png_bytes(drawn.reliability_figure(curves["test"], 0.8)),
        lambda: png_bytes(drawn.risk_coverage_figure(curves, decision)),
    ):
        png = make()
        opened(png)
        assert png == make()


@pytest.mark.parametrize("threshold", [0.02, 0.45, 0.8, 0.999])
def test_no_text_of_the_reliability_is_clipped_or_covered(threshold: float):
    scores = make_scores(NAMES, make_decision(threshold), mistakes=6, surest=2)[0]
    check_texts(drawn.reliability_figure(scores, threshold))


@pytest.mark.parametrize("num_extra", [0, 1, 4])
def test_no_text_of_the_risk_is_clipped_or_covered(num_extra: int):
    decision = make_decision()
    check_texts(drawn.risk_coverage_figure(make_curves(decision, num_extra), decision))


def test_every_bin_stands_where_it_was_measured():
    """One point per bin, at its mean confidence and accuracy; the bars below show its share of the images."""
    scores = make_scores(NAMES, None, mistakes=4, surest=2)[0]
    figure = drawn.reliability_figure(scores, None)
    points = figure.axes[0].collections[0].get_offsets()
    assert np.allclose(points, [(item.confidence, item.accuracy.value) for item in scores.reliability])
    shares = [bar.get_height() for bar in figure.axes[1].patches]
    assert shares == pytest.approx([item.count / scores.num_images for item in scores.reliability])
    assert sum(shares) == pytest.approx(1)


@pytest.mark.parametrize(("threshold", "drawn_"), [(None, False), (2.0, False), (0.8, True)])
def test_a_threshold_that_answers_nothing_is_not_drawn(threshold: float | None, drawn_: bool):
    figure = drawn.reliability_figure(make_scores(NAMES, None)[0], threshold)
    upright = [line for line in figure.axes[0].lines if list(line.get_xdata()) == [threshold] * 2]
    assert bool(upright) == drawn_
    assert any("answers from" in text for text, _ in boxes(figure)) == drawn_


def test_the_mark_stands_at_the_operating_point_within_the_picture():
    """Where each set is answered at the threshold, also where the error there is above all curves."""
    decision = make_decision()
    curves = make_curves(decision)
    axes = drawn.risk_coverage_figure(curves, decision).axes[0]
    marks = [line for line in axes.lines if isinstance(line, Line2D) and line.get_marker() not in ("None", "")]
    assert len(marks) == 3
    for mark, scores in zip(marks, curves.values(), strict=True):
        assert scores.answered is not None
        assert scores.answered.error is not None
        place = (scores.answered.coverage.value, scores.answered.error.value)
        assert (mark.get_xdata()[0], mark.get_ydata()[0]) == place
        assert axes.get_ylim()[0] <= scores.answered.error.low
        assert scores.answered.error.high <= axes.get_ylim()[1]


def test_curves_end_at_the_error_of_all_images_and_leave_out_the_noise():
    """The last point is (1, 1 - accuracy); the first answers twenty images or more; there are at most 300."""
    scores = make_scores(NAMES, None, per_class=400, mistakes=90, surest=40)[0]
    coverage, error = drawn._line(scores)
    assert (coverage[-1], error[-1]) == (1.0, pytest.approx(1 - scores.accuracy.value))
    assert coverage[0] * scores.num_images >= 20
    assert len(coverage) <= 300
    few = make_scores(NAMES, None, per_class=2, mistakes=1)[0]
    assert drawn._line(few)[0].tolist() == [1.0]


def test_lines_differ_without_colours():
    decision = make_decision()
    axes = drawn.risk_coverage_figure(make_curves(decision, 3), decision).axes[0]
    handles, labels = axes.get_legend_handles_labels()
    assert labels[-1] == "at most 5 %"
    assert len({str(handle._unscaled_dash_pattern) for handle in handles[:-1]}) == 5
    markers = [line.get_marker() for line in axes.lines if line.get_marker() not in ("None", "")]
    assert len(set(markers)) == 5


@pytest.mark.parametrize("threshold", [2.0, 0.01])
def test_extremes_are_a_picture(threshold: float):
    """Nothing answered, everything answered without a mistake, no decision at all."""
    decision = make_decision(threshold)
    scores = make_scores(NAMES, decision, mistakes=0)[0]
    assert png_bytes(drawn.risk_coverage_figure({"test": scores}, decision))
    assert png_bytes(drawn.risk_coverage_figure({"test": scores}, None))
    assert png_bytes(drawn.reliability_figure(scores, threshold))


def test_a_figure_within_a_page_is_whole_and_minds_its_own_business():
    """Well-formed SVG with its description, the page's colours and text, no style, script or outside address."""
    decision = make_decision()
    description = 'Errors <of> "sets" & \\1'
    text = inline_svg(drawn.risk_coverage_figure(make_curves(decision), decision), description)
    again = inline_svg(drawn.risk_coverage_figure(make_curves(decision), decision), description)
    other = inline_svg(drawn.risk_coverage_figure(make_curves(decision), decision), "another")
    assert text == again
    root = xml.etree.ElementTree.fromstring(text.replace("xlink:", ""))
    assert root.tag == "svg"
    assert root.get("aria-label") == description
    assert set(root.attrib) == {"class", "role", "aria-label", "viewBox"}
    assert {"style", "script", "metadata", "image"}.isdisjoint(element.tag for element in root.iter())
    assert "answered by the model" in ["".join(element.itertext()).strip() for element in root.iter("text")]
    assert all(use.startswith("#") for use in re.findall(r'href="([^"]*)"', text))
    assert "var(--blue)" in text
    assert set(re.findall(r"#[0-9a-f]{6}\b", text)) == set()
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (text, other)]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])
