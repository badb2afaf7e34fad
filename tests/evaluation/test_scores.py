"""The scores against scikit-learn, on random and degenerate input."""

import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from pharmclf.evaluation import metrics

NUM_CLASSES = 6
PAIRS = st.lists(st.tuples(st.integers(0, NUM_CLASSES - 1), st.integers(0, NUM_CLASSES - 1)), min_size=1, max_size=60)
NEVER_PREDICTED = [(0, 0), (1, 1), (2, 1), (2, 0)]
NEVER_PRESENT = [(0, 0), (1, 5), (1, 1)]


@settings(deadline=None, max_examples=80)
@given(PAIRS)
@example([(3, 3)])
@example([(3, 2)])
@example([(0, 1), (1, 2), (2, 0)])
@example([(0, 0), (1, 1), (2, 2)])
@example(NEVER_PREDICTED)
@example(NEVER_PRESENT)
def test_counts_equal_those_of_scikit_learn(pairs):
    """The confusion matrix, hits, support and predicted images of each class agree: also for one image, for all wrong
    and all right, for a class never predicted and one never present."""
    truth, predicted = np.array(pairs).T
    cells = metrics.confusion_counts(truth, predicted, NUM_CLASSES)
    confusion = sk.confusion_matrix(truth, predicted, labels=list(range(NUM_CLASSES)))
    np.testing.assert_array_equal(cells.matrix(), confusion)
    np.testing.assert_array_equal(cells.hits, np.diagonal(confusion))
    np.testing.assert_array_equal(cells.support, confusion.sum(axis=1))
    np.testing.assert_array_equal(cells.given, confusion.sum(axis=0))
    np.testing.assert_array_equal(
        cells.mistakes,
        [sum(wrong != right and number in (wrong, right) for wrong, right in pairs) for number in range(NUM_CLASSES)],
    )


@settings(deadline=None, max_examples=40)
@given(PAIRS)
@example([(3, 3)])
@example([(0, 1), (1, 2), (2, 0)])
@example(NEVER_PREDICTED)
@example(NEVER_PRESENT)
def test_estimates_equal_scikit_learn_within_their_intervals(pairs):
    """Macro F1 and each class's F1 with intervals have scikit-learn's value, low <= value <= high in 0..1."""
    truth, predicted = np.array(pairs).T
    groups = np.arange(len(truth))
    macro = metrics.macro_f1(truth, predicted, NUM_CLASSES, groups=groups, resamples=20)
    assert macro.value == pytest.approx(sk.f1_score(truth, predicted, average="macro", zero_division=0))
    estimates = [macro]
    for number in range(NUM_CLASSES):
        estimates.append(metrics.class_f1(truth, predicted, number, groups))
        expected = sk.f1_score(truth, predicted, labels=[number], average=None, zero_division=0)[0]
        assert estimates[-1].value == pytest.approx(expected)
    assert all(0 <= estimate.low <= estimate.value <= estimate.high <= 1 for estimate in estimates)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 30))
def test_top_k_accuracy_equals_that_of_scikit_learn(seed, k, count):
    """Without ties the hits among the k most probable classes are those of scikit-learn, from one image on."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, NUM_CLASSES, count)
    probabilities = generator.dirichlet(np.ones(NUM_CLASSES), count)
    expected = sk.top_k_accuracy_score(truth, probabilities, k=k, labels=list(range(NUM_CLASSES)))
    assert metrics.top_k_hits(truth, probabilities, k).mean() == pytest.approx(expected)


def test_top_1_of_equal_probabilities_is_the_argmax():
    """A model that knows nothing has one guess, not a hit on every class."""
    hits = metrics.top_k_hits(np.arange(4), np.full((4, 4), 0.25), 1)
    assert hits.tolist() == [True, False, False, False]


def test_perfect_macro_f1_is_not_certain():
    """20 images without a mistake: macro F1 of 1, with the lower bound of the Wilson interval."""
    truth = np.arange(20) % 4
    estimate = metrics.macro_f1(truth, truth, 4, groups=np.arange(20), resamples=50)
    assert (estimate.value, estimate.high) == (1.0, 1.0)
    assert estimate.low == pytest.approx(metrics.wilson_interval(20, 20).low)


def test_macro_f1_covers_the_truth_in_about_95_of_100_samples():
    """Over 150 samples of 150 images the bootstrap interval holds the macro F1 of the population in 88 to 99 %."""
    generator = np.random.default_rng(0)
    joint = np.array([[0.40, 0.04, 0.01], [0.03, 0.25, 0.02], [0.02, 0.03, 0.20]])  # truth, predicted
    expected = np.mean(2 * np.diagonal(joint) / (joint.sum(axis=0) + joint.sum(axis=1)))
    covered = []
    for _ in range(150):
        truth, predicted = np.divmod(generator.choice(9, 150, p=joint.ravel()), 3)
        estimate = metrics.macro_f1(truth, predicted, 3, groups=np.arange(150), resamples=100)
        covered.append(estimate.low <= expected <= estimate.high)
    assert 0.88 < np.mean(covered) < 0.99


def test_class_number_outside_the_classes_is_refused():
    """A wrong number of classes is said, not counted into another cell."""
    with pytest.raises(ValueError, match=r"truth: received 0..3, expected 0..2"):
        metrics.confusion_counts(np.array([0, 3]), np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="one length"):
        metrics.confusion_counts(np.array([0, 1]), np.array([0]), 3)


def test_no_rows_score_zero_without_a_warning():
    """Empty input gives 0 with the widest interval; only the bootstrap, which cannot draw, refuses."""
    nothing = np.array([], np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.confusion_counts(nothing, nothing, 3).matrix().sum() == 0
        assert metrics.proportion(nothing.astype(bool), nothing) == metrics.Estimate(0.0, 0.0, 1.0)
    with pytest.raises(ValueError, match="no rows"):
        metrics.bootstrap_interval(np.sum, nothing)
