"""The metrics against scikit-learn, and the intervals against what they promise."""

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pharmclf import metrics

NUM_CLASSES = 6
PAIRS = st.lists(st.tuples(st.integers(0, NUM_CLASSES - 1), st.integers(0, NUM_CLASSES - 1)), min_size=1, max_size=60)


@settings(deadline=None, max_examples=80)
@given(PAIRS)
def test_scores_equal_those_of_scikit_learn(pairs):
    """Accuracy, confusion, precision, recall, F1, support and macro F1 agree, also for classes that are absent."""
    truth, predicted = np.array(pairs).T
    confusion = metrics.confusion_matrix(truth, predicted, NUM_CLASSES)
    labels = list(range(NUM_CLASSES))
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(truth, predicted, labels=labels))
    scores = metrics.class_scores(confusion)
    expected = sk.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    for ours, theirs in zip((scores.precision, scores.recall, scores.f1, scores.support), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    assert metrics.accuracy(confusion) == pytest.approx(sk.accuracy_score(truth, predicted))
    assert scores.macro_f1 == pytest.approx(sk.f1_score(truth, predicted, average="macro", zero_division=0))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_top_k_accuracy_equals_that_of_scikit_learn(seed, k):
    """Without ties the hits among the k most probable classes are those of scikit-learn."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, NUM_CLASSES, 30)
    probabilities = generator.dirichlet(np.ones(NUM_CLASSES), 30)
    expected = sk.top_k_accuracy_score(truth, probabilities, k=k, labels=list(range(NUM_CLASSES)))
    assert metrics.top_k_hits(truth, probabilities, k).mean() == pytest.approx(expected)


def test_top_1_of_equal_probabilities_is_the_argmax():
    """A model that knows nothing has one guess, not a hit on every class."""
    hits = metrics.top_k_hits(np.arange(4), np.full((4, 4), 0.25), 1)
    assert hits.tolist() == [True, False, False, False]


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_wilson_interval_contains_the_proportion(total, share):
    """The interval lies in 0..1 around the proportion, and is never a point."""
    estimate = metrics.wilson_interval(share * total, total)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1
    assert estimate.low < estimate.high


def test_wilson_interval_equals_published_values():
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611."""
    estimate = metrics.wilson_interval(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)
    assert round(metrics.wilson_interval(0, 20).high, 4) == 0.1611


def test_wilson_interval_of_nothing_is_everything():
    """Without images the interval is 0..1; impossible counts are refused."""
    assert metrics.wilson_interval(0, 0) == metrics.Estimate(0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="expected 0 <= successes <= total"):
        metrics.wilson_interval(3, 2)


def test_wilson_interval_covers_the_truth_in_95_of_100_samples():
    """Over 4,000 samples of 100 images with a true accuracy of 0.9 the interval holds it in 93 to 97 %."""
    hits = np.random.default_rng(0).binomial(100, 0.9, 4000)
    covered = [metrics.wilson_interval(count, 100) for count in hits]
    assert 0.93 < np.mean([estimate.low <= 0.9 <= estimate.high for estimate in covered]) < 0.97


def test_near_duplicates_do_not_count_twice():
    """Every image five times in one group: same proportion, same interval as once."""
    hits = np.random.default_rng(0).random(100) < 0.9
    once = metrics.proportion(hits, np.arange(100))
    often = metrics.proportion(np.repeat(hits, 5), np.repeat(np.arange(100), 5))
    assert often.low == pytest.approx(once.low)
    assert often.high == pytest.approx(once.high)
    naive = metrics.wilson_interval(float(hits.sum() * 5), 500)
    assert naive.high - naive.low < often.high - often.low


def test_bootstrap_of_near_duplicates_equals_that_of_the_pictures():
    """Five copies of every row in one group leave the interval of macro F1 as it is."""
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 4, 120)
    predicted = np.where(generator.random(120) < 0.8, truth, generator.integers(0, 4, 120))
    once = metrics.macro_f1(truth, predicted, 4, groups=np.arange(120), resamples=200)
    groups = np.repeat(np.arange(120), 5)
    often = metrics.macro_f1(np.repeat(truth, 5), np.repeat(predicted, 5), 4, groups=groups, resamples=200)
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_bootstrap_is_decided_by_its_seed():
    """One seed gives one interval, another seed another."""
    values = np.random.default_rng(0).random(50)

    def interval(seed):
        return metrics.bootstrap_interval(
            lambda weights: float(weights @ values / weights.sum()), np.arange(50), resamples=100, seed=seed
        )

    assert interval(0) == interval(0) != interval(1)
    low, high = interval(0)
    assert low < values.mean() < high


def test_perfect_macro_f1_is_not_certain():
    """20 images without a mistake: macro F1 of 1, with the lower bound of the Wilson interval."""
    truth = np.arange(20) % 4
    estimate = metrics.macro_f1(truth, truth, 4, groups=np.arange(20), resamples=50)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(metrics.wilson_interval(20, 20).low)


@settings(deadline=None, max_examples=50)
@given(PAIRS)
def test_class_f1_equals_that_of_scikit_learn_within_its_interval(pairs):
    """F1 computed from the proportion J is the F1 of scikit-learn."""
    truth, predicted = np.array(pairs).T
    estimate = metrics.class_f1(truth, predicted, 2, np.arange(len(truth)))
    expected = sk.f1_score(truth, predicted, labels=[2], average=None, zero_division=0)[0]
    assert estimate.value == pytest.approx(expected)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    """Sure at 0.9 and right in half of the cases: 0.4; right in nine of ten: 0. Weights repeat rows."""
    confidence = np.full(10, 0.9)
    assert metrics.calibration_error(confidence, np.arange(10) < 5) == pytest.approx(0.4)
    assert metrics.calibration_error(confidence, np.arange(10) < 9) == pytest.approx(0.0)
    weights = np.array([9.0, 1.0])
    assert metrics.calibration_error(confidence[:2], np.array([True, False]), weights) == pytest.approx(0.0)
    assert metrics.calibration_error(np.array([1.0]), np.array([True])) == 0.0


def test_class_number_outside_the_classes_is_refused():
    """A wrong number of classes is said, not counted into another cell."""
    with pytest.raises(ValueError, match=r"truth: received 0..3, expected 0..2"):
        metrics.confusion_matrix(np.array([0, 3]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="one length"):
        metrics.confusion_matrix(np.array([0, 1]), np.array([0]), 3)


def test_no_rows_score_zero_without_a_warning():
    """Empty input gives 0 with the widest interval; only the bootstrap, which cannot draw, refuses."""
    nothing = np.array([], np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        confusion = metrics.confusion_matrix(nothing, nothing, 3)
        assert metrics.accuracy(confusion) == metrics.class_scores(confusion).macro_f1 == 0.0
        assert metrics.proportion(nothing.astype(bool), nothing) == metrics.Estimate(0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="no rows"):
        metrics.bootstrap_interval(np.sum, nothing)


def test_bootstrap_of_ten_thousand_rows_takes_seconds():
    """1,000 draws of 10,000 rows in 100 classes end in less than 3 s of processor time."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 100, 10_000)
    predicted = np.where(generator.random(10_000) < 0.9, truth, 0)
    start = time.process_time()
    estimate = metrics.macro_f1(truth, predicted, 100, groups=generator.integers(0, 8000, 10_000))
    assert time.process_time() - start < 3
    assert 0 < estimate.high - estimate.low < 0.03
