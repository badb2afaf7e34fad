"""The set of an image has its true class as often as is asked, and as few others as possible."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pharmclf.evaluation.abstention_policy import fit_policy, read_policy, write_policy
from pharmclf.evaluation.prediction_sets import PredictionSets, fit_sets, score_sets, set_names


def draw_answers(count: int, seed: int, twins: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    """Calibrated probabilities of four classes, of which the first two are look-alikes; and the true classes."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 1, (count, 4)) + 6 * np.eye(4)[draw.integers(0, 4, count)]
    is_twin = logits.argmax(axis=1) < 2
    logits[is_twin, :2] = logits[is_twin, :2].mean(axis=1, keepdims=True) + draw.normal(0, twins, (is_twin.sum(), 2))
    shares = np.exp(logits)
    shares /= shares.sum(axis=1, keepdims=True)
    truth = (shares.cumsum(axis=1) > draw.random((count, 1))).argmax(axis=1)
    return shares, truth


@pytest.mark.parametrize("coverage", [0.9, 0.98])
def test_the_true_class_is_in_the_set_as_often_as_asked(coverage: float):
    """Mean over 200 validation sets of 150 images, each with its own test images; classes need more in some of them."""
    found = []
    for seed in range(200):
        sets = fit_sets(*draw_answers(150, seed), np.arange(150), coverage)
        assert sets is not None
        shares, truth = draw_answers(300, 1000 + seed)
        found.append(score_sets(sets, shares, truth, np.arange(300)).coverage.value)
    assert coverage - 0.005 < np.mean(found) < coverage + 0.04


def test_a_class_with_enough_images_has_the_coverage_too():
    """With the same least probability for all, some classes would have less."""
    shares, truth = draw_answers(4000, 0, twins=1.0)
    sets = fit_sets(shares, truth, np.arange(4000), 0.95)
    assert sets is not None
    assert all(value < sets.least for value in sets.least_of_class.values())
    alone = PredictionSets(coverage=0.95, least=sets.least, least_of_class={}, num_groups=4000)
    shares, truth = draw_answers(20_000, 1, twins=1.0)
    by_class = [[each.members(shares)[truth == number, number].mean() for number in range(4)] for each in (sets, alone)]
    assert min(by_class[0]) > 0.945
    assert min(by_class[1]) < 0.94


def test_look_alikes_go_together():
    shares, truth = draw_answers(2000, 0)
    sets = fit_sets(shares, truth, np.arange(2000))
    assert sets is not None
    scores = score_sets(sets, shares, truth, np.arange(2000))
    assert scores.common[0][0] == (0, 1)
    assert 1.0 < scores.mean_size < 2.0
    assert scores.single.value == pytest.approx((sets.members(shares).sum(axis=1) == 1).mean())


def test_near_duplicates_count_as_one_image():
    """Each image three times gives the sets of each once."""
    shares, truth = draw_answers(100, 0)
    thrice = fit_sets(np.repeat(shares, 3, axis=0), np.repeat(truth, 3), np.repeat(np.arange(100), 3))
    assert thrice == fit_sets(shares, truth, np.arange(100))


def test_too_few_images_give_no_sets():
    """For 98 % the least probable of 49 is the first that says something."""
    shares, truth = draw_answers(49, 0)
    assert fit_sets(shares[:48], truth[:48], np.arange(48)) is None
    sets = fit_sets(shares, truth, np.arange(49))
    assert sets is not None
    assert sets.least == pytest.approx(shares[np.arange(49), truth].min())
    assert sets.least_of_class == {}


def test_the_most_probable_class_is_always_possible():
    sets = PredictionSets(coverage=0.9, least=0.6, least_of_class={2: 0.1}, num_groups=20)
    members = sets.members(np.array([[0.5, 0.45, 0.05], [0.7, 0.15, 0.15]]))
    assert set_names(members, ["a", "b", "c"]) == ["a", "a|c"]


def test_a_decision_keeps_its_sets(tmp_path: Path):
    shares, truth = draw_answers(4000, 0, twins=1.0)
    policy = fit_policy(shares, truth, np.arange(4000), 0.05)
    assert policy.sets is not None
    assert policy.sets.least_of_class
    write_policy(policy, str(tmp_path / "decision.json"))
    assert read_policy(str(tmp_path / "decision.json")) == policy


def test_sets_are_those_of_mapie():
    """Its split conformal classifier with the score 1 - p, on the same images."""
    from mapie.classification import SplitConformalClassifier
    from sklearn.base import BaseEstimator, ClassifierMixin

    class Given(ClassifierMixin, BaseEstimator):
        """Predicts what it is given."""

        classes_ = np.arange(4)
        fitted_ = True

        def fit(self, *_: object) -> Given:
            return self

        def predict_proba(self, values: np.ndarray) -> np.ndarray:
            return values

        def predict(self, values: np.ndarray) -> np.ndarray:
            return np.asarray(values.argmax(axis=1))

    shares, truth = draw_answers(500, 0)
    others, _ = draw_answers(300, 1)
    theirs = SplitConformalClassifier(Given(), confidence_level=0.95, conformity_score="lac", prefit=True)
    expected = theirs.conformalize(shares, truth).predict_set(others)[1][:, :, 0]
    sets = fit_sets(shares, truth, np.arange(500), 0.95)
    assert sets is not None
    alone = PredictionSets(coverage=0.95, least=sets.least, least_of_class={}, num_groups=500)
    expected[np.arange(300), others.argmax(axis=1)] = True
    np.testing.assert_array_equal(alone.members(others), expected)
