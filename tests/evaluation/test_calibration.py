"""Calibration: the error, the curve, and a temperature that finds what was planted and keeps every answer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from pharmclf.evaluation import metrics
from pharmclf.evaluation.metrics.calibration import TEMPERATURES

ROWS = st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.integers(1, 3)), min_size=1, max_size=60)
SEEDS = st.integers(0, 1_000_000)


def any_probabilities(seed):
    """Up to six rows and classes of what a model may say: ties, zeros, ones, numbers that differ in their last bit."""
    generator = np.random.default_rng(seed)
    kind = (np.float32, np.float64)[seed % 2]
    pool = [0, 1e-45, 0.1, 0.5, np.nextafter(kind(0.5), kind(1)), np.nextafter(kind(1), kind(0)), 1]
    return generator.choice([*pool, *generator.random(3)], generator.integers(1, 7, 2)).astype(kind)


def planted(temperature, count=20_000, classes=5, seed=0):
    """Probabilities of a model that is too sure (T > 1) or not sure enough, and the true classes."""
    generator = np.random.default_rng(seed)
    honest = 2.0 * generator.standard_normal((count, classes))
    truth = (honest + generator.gumbel(size=honest.shape)).argmax(axis=1)  # drawn from softmax(honest)
    said = np.exp(temperature * honest)
    return (said / said.sum(axis=1, keepdims=True)).astype(np.float32), truth


def log_likelihood(probabilities, truth, temperature):
    """Mean log of the probability of the true class, by scipy's log_softmax."""
    logs = np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)) / temperature
    return float(np.mean(log_softmax(logs, axis=1)[np.arange(len(truth)), truth]))


@settings(deadline=None)
@given(ROWS, st.integers(1, 20))
def test_calibration_error_is_the_mean_gap_over_bins(rows, num_bins):
    """It equals a loop over the bins that repeats every row as often as its weight says."""
    repeated = [(confidence, correct) for confidence, correct, times in rows for _ in range(times)]
    expected = 0.0
    for number in range(num_bins):
        mine = [pair for pair in repeated if min(int(pair[0] * num_bins), num_bins - 1) == number]
        if mine:
            gap = np.mean([confidence for confidence, _ in mine]) - np.mean([correct for _, correct in mine])
            expected += len(mine) / len(repeated) * abs(gap)
    confidence, correct, times = (np.array(column) for column in zip(*rows, strict=True))
    found = metrics.calibration_error(confidence, correct, times.astype(np.float64), num_bins=num_bins)
    assert found == pytest.approx(expected, abs=1e-12)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    """Sure at 0.9 and right in half of the cases: 0.4; right in nine of ten: 0; certain and right: 0; nothing: 0."""
    confidence = np.full(10, 0.9)
    assert metrics.calibration_error(confidence, np.arange(10) < 5) == pytest.approx(0.4)
    assert metrics.calibration_error(confidence, np.arange(10) < 9) == pytest.approx(0.0)
    assert metrics.calibration_error(np.array([1.0]), np.array([True])) == 0.0
    assert metrics.calibration_error(np.array([1.0, 0.95]), np.array([False, True])) == pytest.approx(0.475)  # one bin
    assert metrics.calibration_error(np.array([]), np.array([], bool)) == 0.0


@settings(deadline=None)
@given(ROWS)
def test_reliability_holds_every_image_once_and_explains_the_calibration_error(rows):
    """Bins are those with images, in order; their gaps, weighted by their counts, are the calibration error."""
    confidence, correct, _ = (np.array(column) for column in zip(*rows, strict=True))
    bins = metrics.reliability(confidence, correct, np.arange(len(rows)))
    assert sum(part.count for part in bins) == len(rows)
    assert all(part.count >= 1 and part.low <= part.confidence <= part.high <= 1 for part in bins)
    assert [part.low for part in bins] == sorted({part.low for part in bins})
    gap = sum(part.count * abs(part.confidence - part.accuracy.value) for part in bins) / len(rows)
    assert gap == pytest.approx(metrics.calibration_error(confidence, correct), abs=1e-12)


def test_reliability_counts_copies_once_in_its_intervals():
    """Ten copies of each image leave accuracies and intervals as they were."""
    confidence, correct = np.linspace(0.3, 1, 50), np.arange(50) % 4 > 0
    once = metrics.reliability(confidence, correct, np.arange(50), num_bins=4)
    often = metrics.reliability(*(np.repeat(array, 10) for array in (confidence, correct, np.arange(50))), num_bins=4)
    for one, many in zip(once, often, strict=True):
        assert many.count == 10 * one.count
        assert (many.accuracy.low, many.accuracy.high) == pytest.approx((one.accuracy.low, one.accuracy.high))


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5, 6.0])
def test_a_planted_temperature_is_found(temperature):
    """From 20,000 images T comes out within 5 %, and with it the calibration error of other images falls below 1 %."""
    found = metrics.fit_temperature(*planted(temperature))
    assert found == pytest.approx(temperature, rel=0.05)
    probabilities, truth = planted(temperature, seed=1)
    correct = probabilities.argmax(axis=1) == truth
    before = metrics.calibration_error(probabilities.max(axis=1).astype(np.float64), correct)
    after = metrics.calibration_error(metrics.apply_temperature(probabilities, found).max(axis=1), correct)
    assert after < 0.01
    assert temperature == 1.0 or after < before / 5


def test_temperature_is_that_of_the_greatest_likelihood():
    """On 500 images it is where a fine grid of temperatures finds it."""
    probabilities, truth = planted(2.5, count=500)
    grid = np.geomspace(*TEMPERATURES, 400)
    best = grid[np.argmax([log_likelihood(probabilities, truth, temperature) for temperature in grid])]
    assert metrics.fit_temperature(probabilities, truth) == pytest.approx(best, rel=0.03)


@settings(deadline=None, max_examples=60)
@given(SEEDS)
def test_temperature_is_never_worse_than_none(seed):
    """On the images that it was fitted on the truth is at least as probable as before, whatever the model said."""
    probabilities = any_probabilities(seed)
    truth = np.random.default_rng(seed).integers(0, probabilities.shape[1], len(probabilities))
    temperature = metrics.fit_temperature(probabilities, truth)
    assert TEMPERATURES[0] <= temperature <= TEMPERATURES[1]
    before, after = (log_likelihood(probabilities, truth, value) for value in (1.0, temperature))
    assert after >= before - 1e-9 * (1 + abs(before))


def test_a_few_images_without_a_mistake_are_no_reason_for_certainty():
    """One image that is right moves T a little, one on which the model was certain not at all, none not at all; two
    thousand without a mistake move it further than twenty."""
    sure = np.array([[0.9, 0.1]])
    assert 0.75 < metrics.fit_temperature(sure, np.array([0])) < 1
    assert metrics.fit_temperature(np.array([[1.0, 0.0]]), np.array([0])) == pytest.approx(1.0)
    assert metrics.fit_temperature(np.zeros((0, 3)), np.zeros(0, np.int64)) == pytest.approx(1.0)
    few, many = (metrics.fit_temperature(np.repeat(sure, n, axis=0), np.zeros(n, np.int64)) for n in (20, 2000))
    assert TEMPERATURES[0] < many < few < 1


def test_certain_and_always_wrong_gives_the_highest_temperature():
    """A model that gives the truth no chance at all is as unsure as it can be made."""
    assert metrics.fit_temperature(np.array([[1.0, 0.0]] * 5), np.ones(5, np.int64)) == pytest.approx(TEMPERATURES[1])


def test_copies_weigh_as_one_picture():
    """Five copies of a wrong answer, a fifth each, give the temperature of one; unweighted they give a higher one."""
    probabilities, truth = planted(1.0, count=60, classes=3)
    wrong = int(np.flatnonzero(probabilities.argmax(axis=1) != truth)[0])
    rows = np.concatenate([np.arange(60), np.full(4, wrong)])
    weights = np.where(rows == wrong, 0.2, 1.0)
    once = metrics.fit_temperature(probabilities, truth)
    assert metrics.fit_temperature(probabilities[rows], truth[rows], weights) == pytest.approx(once)
    assert metrics.fit_temperature(probabilities[rows], truth[rows]) > once * 1.01


@settings(deadline=None, max_examples=300)
@given(SEEDS, st.floats(*TEMPERATURES))
def test_temperature_changes_no_answer(seed, temperature):
    """The first of the largest stays that, of equal ones too and where float32 has lost small ones; rows sum to 1."""
    probabilities = any_probabilities(seed)
    scaled = metrics.apply_temperature(probabilities, temperature)
    assert scaled.dtype == np.float64
    np.testing.assert_array_equal(scaled.argmax(axis=1), probabilities.argmax(axis=1))
    np.testing.assert_allclose(scaled.sum(axis=1), 1.0, rtol=1e-12)
    assert (scaled >= 0).all()


def test_temperature_of_one_changes_nothing_and_higher_ones_make_less_sure():
    """T = 1 gives the probabilities back; the confidence falls as T rises; no temperature is refused."""
    probabilities = planted(1.0, count=50)[0]
    np.testing.assert_allclose(metrics.apply_temperature(probabilities, 1.0), probabilities, atol=1e-6)
    confidence = [metrics.apply_temperature(probabilities, value).max(axis=1) for value in (0.5, 1.0, 2.0)]
    assert (confidence[0] > confidence[1]).all()
    assert (confidence[1] > confidence[2]).all()
    for value in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="expected a number above 0"):
            metrics.apply_temperature(probabilities, value)


def test_certain_float32_confidences_are_told_apart():
    """Where float32 rounds to 1, what the other classes got still says which image is surer."""
    probabilities = np.array([[1.0, 1e-9], [1.0, 1e-12]], np.float32)
    first, second = metrics.apply_temperature(probabilities, 1.0).max(axis=1)
    assert first < second < 1
