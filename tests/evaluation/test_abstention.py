"""Risk and coverage against a plain loop over thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.evaluation import metrics

ROWS = st.lists(st.tuples(st.sampled_from([0.2, 0.5, 0.7, 0.75, 0.9, 1.0]), st.booleans()), min_size=1, max_size=40)


@settings(deadline=None)
@given(ROWS)
def test_risk_coverage_equals_a_loop_over_the_thresholds(rows):
    """One point for each confidence that occurs; images of one confidence are answered at once; the end answers all."""
    confidence, correct = (np.array(column) for column in zip(*rows, strict=True))
    curve = metrics.risk_coverage(confidence, correct)
    assert curve.thresholds.tolist() == sorted(set(confidence), reverse=True)
    for threshold, coverage, error in zip(curve.thresholds, curve.coverage, curve.error, strict=True):
        answered = [right for value, right in rows if value >= threshold]
        assert coverage == pytest.approx(len(answered) / len(rows))
        assert error == pytest.approx(1 - np.mean(answered))
    assert curve.coverage[-1] == 1.0


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(2, 50))
def test_a_thinned_curve_is_a_part_of_the_curve_with_both_ends(count, max_points):
    """At most so many points, all of them the curve's own, and no gap much wider than asked for."""
    generator = np.random.default_rng(count)
    curve = metrics.risk_coverage(generator.random(count).round(2), generator.random(count) < 0.9)
    thin = curve.downsampled(max_points)
    assert len(thin.coverage) <= max_points
    places = curve.coverage.searchsorted(thin.coverage)
    for name in ("thresholds", "coverage", "error"):
        np.testing.assert_array_equal(getattr(thin, name), getattr(curve, name)[places])
    assert (thin.coverage[0], thin.coverage[-1]) == (curve.coverage[0], 1.0)
    widest = np.diff(curve.coverage, prepend=0).max()
    assert len(thin.coverage) == 1 or np.diff(thin.coverage).max() <= 1 / (max_points - 1) + widest + 1e-12


def test_operating_point_counts_what_reaches_the_threshold():
    """Three of four reach 0.5, the threshold itself among them, and one of them is wrong; copies widen intervals."""
    confidence, correct = np.array([0.9, 0.5, 0.4, 0.8]), np.array([True, False, False, True])
    point = metrics.operating_point(confidence, correct, np.arange(4), 0.5)
    assert (point.num_answered, point.num_images) == (3, 4)
    assert point.coverage == metrics.wilson_interval(3, 4)
    assert point.error == metrics.wilson_interval(1, 3)
    copies = metrics.operating_point(confidence, correct, np.zeros(4), 0.5)
    assert copies.error is not None
    assert copies.error.value == pytest.approx(1 / 3)
    assert copies.error.high > point.error.high


def test_where_none_is_answered_there_is_no_error():
    """Above every confidence the coverage is 0, with an interval, and the error is not known."""
    point = metrics.operating_point(np.array([0.9, 0.5]), np.array([True, True]), np.arange(2), metrics.REJECT_ALL)
    assert (point.num_answered, point.error) == (0, None)
    assert point.coverage == metrics.wilson_interval(0, 2)
