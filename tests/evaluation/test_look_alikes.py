"""Look-alikes: planted groups are found with their classes, and even mistakes make none."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pharmclf.evaluation.evaluate import evaluate
from pharmclf.evaluation.look_alikes import MIN_CONFUSED, find_look_alikes
from pharmclf.evaluation.results import EvaluationResult


def score(truth: np.ndarray, predicted: np.ndarray, num_classes: int, *, copies: int = 1) -> EvaluationResult:
    """Scores of class numbers; each image has so many copies of itself in its group."""
    names = [f"c{number:02}" for number in range(num_classes)]
    groups = np.repeat(np.arange(len(truth)), copies)
    label, answer = np.array(names, object)[truth[groups]], np.array(names, object)[predicted[groups]]
    rows = np.arange(len(groups))
    table = pd.DataFrame({"row": rows, "path": "p", "label": label, "predicted": answer, "confidence": 0.5})
    return evaluate(table, names, groups=groups, resamples=1)


def confuse(
    num_classes: int, per_class: int, groups: list[list[int]], share: float, *, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers, true and predicted: mistakes of a share of the images within groups, and of others anywhere."""
    generator = np.random.default_rng(seed)
    truth = np.repeat(np.arange(num_classes), per_class)
    predicted = truth.copy()
    for group in groups:
        for number in group:
            rows = np.flatnonzero(truth == number)[: round(share * per_class)]
            predicted[rows] = generator.choice([other for other in group if other != number], len(rows))
    lost = generator.random(len(truth)) < noise
    predicted[lost] = (truth[lost] + generator.integers(1, num_classes, lost.sum())) % num_classes
    return truth, predicted


def names_of(evaluation: EvaluationResult) -> list[set[int]]:
    return [{int(name[1:]) for name in group.names} for group in find_look_alikes(evaluation)]


def test_a_planted_pair_is_found_and_described() -> None:
    """Two of ten classes, a third of their images confused: their share, with an interval around it."""
    groups = find_look_alikes(score(*confuse(10, 30, [[2, 7]], 1 / 3), 10))
    assert [group.names for group in groups] == [("c02", "c07")]
    assert groups[0].confused.value == pytest.approx(20 / 60)
    assert MIN_CONFUSED < groups[0].confused.low < 1 / 3 < groups[0].confused.high


def test_classes_that_are_connected_are_one_group() -> None:
    """Three red ones and two white ones among ten, with some mistakes anywhere: two groups, the larger one first."""
    planted = [[0, 1, 2], [5, 6]]
    assert names_of(score(*confuse(10, 40, planted, 0.4, noise=0.04), 10)) == [{0, 1, 2}, {5, 6}]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(8)), st.integers(0, 10))
def test_the_order_of_the_classes_does_not_matter(order: list[int], seed: int) -> None:
    """Renumbered classes give the renumbered groups."""
    truth, predicted = confuse(8, 25, [[0, 1], [3, 4, 5]], 0.4, noise=0.03, seed=seed)
    renamed = np.array(order)
    before = names_of(score(truth, predicted, 8))
    after = names_of(score(renamed[truth], renamed[predicted], 8))
    assert sorted(map(sorted, after)) == sorted(sorted(order[number] for number in group) for group in before)


def test_copies_of_images_do_not_make_look_alikes() -> None:
    """Two of ten images are confused: too few to say; five copies of each in a group are no more."""
    truth, predicted = confuse(6, 10, [[0, 1]], 0.1)
    assert names_of(score(truth, predicted, 6)) == []
    assert names_of(score(truth, predicted, 6, copies=5)) == []
    assert names_of(score(np.repeat(truth, 5), np.repeat(predicted, 5), 6)) == [{0, 1}]


@pytest.mark.parametrize(("num_classes", "per_class", "noise"), [(10, 20, 0.3), (10, 20, 0.05), (40, 8, 0.5)])
def test_mistakes_that_hit_any_class_make_no_look_alikes(num_classes: int, per_class: int, noise: float) -> None:
    """In at least 95 of 100 sets, whether few or many images are wrong."""
    sets = [score(*confuse(num_classes, per_class, [], 0, noise=noise, seed=seed), num_classes) for seed in range(100)]
    assert sum(bool(find_look_alikes(one)) for one in sets) <= 5


def test_a_perfect_model_and_a_rare_confusion_have_none() -> None:
    """No mistake at all; and 1 % of many images, all in one pair: above the rest, and no reason to warn."""
    assert names_of(score(*confuse(5, 20, [], 0), 5)) == []
    assert names_of(score(*confuse(10, 400, [[0, 1]], 0.01), 10)) == []


def test_of_two_classes_their_confusion_alone_decides() -> None:
    """There is no rest to compare with."""
    assert names_of(score(*confuse(2, 40, [[0, 1]], 0.25), 2)) == [{0, 1}]
    assert names_of(score(*confuse(2, 40, [[0, 1]], 0.025), 2)) == []
