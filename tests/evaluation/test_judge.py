"""The verdict on a model: each reason appears where it is true, and not where chance explains it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.epoch_records import epoch_record

from pharmclf.core.events import EpochRecord
from pharmclf.evaluation import metrics
from pharmclf.evaluation.abstention_policy import AbstentionPolicy, fit_policy
from pharmclf.evaluation.accuracy_agreement import AccuracyMismatch
from pharmclf.evaluation.evaluate import evaluate, predictions_table
from pharmclf.evaluation.judge import MIN_TEST_IMAGES, MIN_TRAIN_IMAGES, Evidence, judge
from pharmclf.evaluation.results import EvaluationResult
from pharmclf.evaluation.verdict import Level, Reason, ReasonCode, Verdict

CODES = ReasonCode


def names(num_classes: int) -> list[str]:
    return [f"c{number:02}" for number in range(num_classes)]


def confident(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(n, classes) probabilities of these answers: sure where they are right, unsure where they are wrong."""
    most = np.where(truth == predicted, 0.99, 0.6)
    probabilities = np.repeat((1 - most) / (num_classes - 1), num_classes).reshape(-1, num_classes)
    probabilities[np.arange(len(truth)), predicted] = most
    return probabilities.astype(np.float32)


def score(
    truth: Sequence[int] | np.ndarray,
    predicted: Sequence[int] | np.ndarray,
    num_classes: int,
    decision: AbstentionPolicy | None = None,
    *,
    copies: int = 1,
) -> EvaluationResult:
    """Scores of class numbers; each image has so many copies of itself in its group."""
    groups = np.repeat(np.arange(len(truth)), copies)
    labels, answers = np.asarray(truth)[groups], np.asarray(predicted)[groups]
    known = names(num_classes)
    probabilities, paths = confident(labels, answers, num_classes), ["p"] * len(groups)
    texts = [known[number] for number in labels]
    table = predictions_table(np.arange(len(groups)), paths, texts, probabilities, known, decision)
    return evaluate(table, known, groups=groups, probabilities=probabilities, decision=decision, resamples=1)


def policy(num_images: int = 400, max_error: float = 0.05) -> AbstentionPolicy:
    """The policy of a model that is right on so many validation images."""
    truth = np.arange(num_images) % 4
    return fit_policy(confident(truth, truth, 4), truth, np.arange(num_images), max_error)


def mistaken(num_classes: int, per_class: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """True and predicted class numbers; the mistakes are spread over all other classes."""
    truth = np.repeat(np.arange(num_classes), per_class)
    place = np.tile(np.arange(per_class), num_classes)
    wrong = place < round(share * per_class)
    return truth, np.where(wrong, (truth + 1 + place % (num_classes - 1)) % num_classes, truth)


def good(**changes: Any) -> Evidence:
    """All that is known of a model without a fault, with some of it changed."""
    decision = policy()
    test = score(*mistaken(4, 50, 0.02), 4, decision)
    known = Evidence(
        test=test,
        decision=decision,
        validation=score(*mistaken(4, 50, 0.02), 4, decision),
        train_images=dict.fromkeys(names(4), 100),
        history=[epoch_record("phase1", 0, val_loss=0.9), epoch_record("phase2", 0, val_loss=0.1)],
        best=("phase2", 0),
    )
    return dataclasses.replace(known, **changes)


def codes(verdict: Verdict) -> list[ReasonCode]:
    return [reason.code for reason in verdict.reasons]


def only(evidence: Evidence, code: ReasonCode, level: Level) -> Reason:
    """The one reason of a verdict, which has this code and level."""
    verdict = judge(evidence)
    assert codes(verdict) == [code], verdict
    assert verdict.level is level is verdict.reasons[0].level
    return verdict.reasons[0]


def test_a_model_without_a_fault_is_good() -> None:
    """Nothing is said against it, also where nothing but its test is known."""
    assert judge(good()) == Verdict()
    assert judge(good()).level is Level.GOOD
    assert judge(good(validation=None, train_images={}, history=(), best=None)).level is Level.GOOD


@pytest.mark.parametrize("images", [[2, 2], [4, 4], [1] * 3, [2] * 5, [20] * 10, [60, 5, 5], [3] * 30], ids=str)
@pytest.mark.parametrize("favourite", [0.0, 0.7])
def test_a_model_that_answers_at_random_is_not_usable(images: list[int], favourite: float) -> None:
    """In about 95 of 100 cases or more, whatever the number of classes and images; also with a favourite answer."""
    generator = np.random.default_rng(0)
    truth, num_classes, refused = np.repeat(np.arange(len(images)), images), len(images), 0
    for _ in range(150):
        answers = np.where(generator.random(len(truth)) < favourite, 0, generator.integers(0, num_classes, len(truth)))
        evidence = Evidence(test=score(truth, answers, num_classes), decision=None)
        refused += judge(evidence).level is Level.NOT_USABLE
    assert refused >= 0.93 * 150


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 4), st.lists(st.integers(0, 60), min_size=5, max_size=5))
def test_a_model_with_one_answer_is_never_usable(answer: int, images: list[int]) -> None:
    """However unbalanced the test images are, as long as there are two classes of them."""
    truth = np.repeat(np.arange(5), images)
    if len(set(truth.tolist())) < 2:
        return
    verdict = judge(Evidence(test=score(truth, np.full(len(truth), answer), 5), decision=None))
    assert verdict.level is Level.NOT_USABLE


def test_one_answer_for_nearly_all_is_named() -> None:
    """Also where that class holds most test images, so that the accuracy is 0.93."""
    truth = np.repeat([0, 1, 2], [930, 40, 30])
    predicted = np.where((truth != 0) & (np.arange(1000) % 20 != 0), 0, truth)
    scores = score(truth, predicted, 3)
    assert scores.accuracy.value > 0.93
    verdict = judge(Evidence(test=scores, decision=None))
    reason = verdict.reasons[0]
    assert (reason.code, reason.classes) == (CODES.ONE_ANSWER, ("c00",))
    assert verdict.level is Level.NOT_USABLE


def test_chance_is_told_from_too_few_images() -> None:
    """40 images of each class that are guessed; and one of each of two classes, both right."""
    generator = np.random.default_rng(3)
    guessed = score(np.repeat(np.arange(4), 40), generator.integers(0, 4, 160), 4)
    only(good(test=guessed), CODES.AT_CHANCE, Level.NOT_USABLE)
    few = good(test=score([0, 1], [0, 1], 2), train_images={"c00": 3, "c01": 3}, history=())
    assert codes(judge(few)) == [CODES.TOO_FEW_TEST_IMAGES, CODES.FEW_TRAINING_IMAGES]
    assert judge(few).level is Level.NOT_USABLE


def test_copies_prove_nothing() -> None:
    """Four images of each of two classes that are right may be a start; ten copies of one of each are not."""
    few = np.repeat([0, 1], 4)
    assert CODES.TOO_FEW_TEST_IMAGES not in codes(judge(good(test=score(few, few, 2))))
    assert CODES.TOO_FEW_TEST_IMAGES in codes(judge(good(test=score([0, 1], [0, 1], 2, copies=10))))


def test_images_of_one_class_cannot_show_that_a_model_guesses() -> None:
    """They say nothing of the others, which are named as not tested."""
    reason = only(
        good(test=score([2] * 30, [2] * 30, 4, policy()), validation=None), CODES.FEW_TEST_IMAGES, Level.REVIEW
    )
    assert reason.classes == ("c00", "c01", "c03")


def _phases(first: float, *losses: float) -> list[EpochRecord]:
    later = [epoch_record("phase2", epoch, val_loss=loss) for epoch, loss in enumerate(losses)]
    return [epoch_record("phase1", 0, val_loss=first), *later]


@pytest.mark.parametrize(
    ("history", "level"),
    [
        (_phases(1.0, 1e4), Level.NOT_USABLE),
        (_phases(1.0, 0.5, 1e4), Level.REVIEW),
        (_phases(1.0, 0.5, float("nan")), Level.REVIEW),
        (_phases(1e5, 0.5), Level.REVIEW),
    ],
    ids=["chosen", "last", "not finite", "earlier phase"],
)
def test_a_loss_that_diverged_is_named(history: list[EpochRecord], level: Level) -> None:
    """Not usable where the chosen weights are those that diverged, which are of the first epoch of phase 2."""
    only(good(history=history), CODES.DIVERGED, level)


def test_a_loss_that_recovered_is_no_reason() -> None:
    assert judge(good(history=_phases(1.0, 1e4, 0.5), best=("phase2", 1))).level is Level.GOOD


def test_a_saved_model_that_is_not_the_chosen_one_is_not_usable() -> None:
    mismatch = AccuracyMismatch(best_epoch=0.9, saved_model=0.1, images=80, explained=0)
    assert "0.9000" in only(good(mismatch=mismatch), CODES.SAVED_MODEL_DIFFERS, Level.NOT_USABLE).text


@pytest.mark.parametrize(
    ("share", "code", "level"), [(0.3, CODES.WEAK, Level.REVIEW), (0.7, CODES.MOSTLY_WRONG, Level.NOT_USABLE)]
)
def test_an_accuracy_that_is_low_beyond_chance_is_a_reason(share: float, code: ReasonCode, level: Level) -> None:
    """70 % and 30 % of 600 images; far above the tenth of a guess."""
    evidence = good(test=score(*mistaken(12, 50, share), 12, policy()), validation=None, history=())
    assert codes(judge(evidence)) == [code]
    assert judge(evidence).level is level


def test_an_accuracy_whose_interval_reaches_the_limit_is_none() -> None:
    """68 of 80 images are right: it may be nine of ten."""
    assert CODES.WEAK not in codes(judge(good(test=score(*mistaken(4, 20, 0.15), 4, policy()))))


def test_few_training_images_of_a_class_are_a_reason() -> None:
    """One fewer than enough of one class; the class is named."""
    images = good().train_images | {"c02": MIN_TRAIN_IMAGES - 1}
    reason = only(good(train_images=images), CODES.FEW_TRAINING_IMAGES, Level.REVIEW)
    assert reason.classes == ("c02",)
    assert judge(good(train_images=images | {"c02": MIN_TRAIN_IMAGES})).level is Level.GOOD


def test_few_test_images_of_a_class_are_a_reason() -> None:
    """One fewer than enough, or copies of so many; the class is named."""
    truth = np.repeat([0, 1], [50, MIN_TEST_IMAGES - 1])
    reason = only(good(test=score(truth, truth, 2, policy())), CODES.FEW_TEST_IMAGES, Level.REVIEW)
    assert reason.classes == ("c01",)
    truth = np.repeat([0, 1], [50, MIN_TEST_IMAGES])
    assert judge(good(test=score(truth, truth, 2, policy()))).level is Level.GOOD
    truth = np.repeat([0, 1], MIN_TEST_IMAGES // 2)
    assert CODES.FEW_TEST_IMAGES in codes(judge(good(test=score(truth, truth, 2, policy(), copies=4))))


def test_a_threshold_that_the_test_contradicts_is_a_reason() -> None:
    """8 % of the answers are wrong where at most 1 % was promised; it was assured, so the test alone says so."""
    decision = dataclasses.replace(policy(400, 0.01), threshold=0.3)
    assert decision.assured
    evidence = good(decision=decision, test=score(*mistaken(4, 50, 0.08), 4, decision), validation=None)
    only(evidence, CODES.THRESHOLD_CONTRADICTED, Level.REVIEW)
    once = good(decision=decision, test=score(*mistaken(4, 50, 0.02), 4, decision))
    assert judge(once).level is Level.GOOD  # 4 of 200: it may be one in a hundred


def test_a_threshold_that_validation_does_not_assure_is_a_reason() -> None:
    """Few validation images; no threshold at all; and one that nothing reaches."""
    decision = policy(40, 0.01)
    assert not decision.assured
    test = score(*mistaken(4, 50, 0.0), 4, decision)
    only(good(decision=decision, test=test), CODES.THRESHOLD_NOT_ASSURED, Level.REVIEW)
    unsure = dataclasses.replace(decision, threshold=2.0, num_answered=0, error=None)
    for none in (None, unsure):
        test = score(*mistaken(4, 50, 0.0), 4, none)
        only(good(decision=none, test=test, validation=None), CODES.NO_THRESHOLD, Level.REVIEW)


def test_validation_and_test_that_differ_beyond_chance_are_a_reason() -> None:
    """99 and 90 %, or the other way round; 98 and 95 % of 200 may be chance."""
    decision = policy()
    worse, better = (score(*mistaken(4, 50, share), 4, decision) for share in (0.12, 0.0))
    only(good(validation=better, test=worse), CODES.SPLITS_DISAGREE, Level.REVIEW)
    only(good(validation=worse, test=better), CODES.SPLITS_DISAGREE, Level.REVIEW)
    near = score(*mistaken(4, 50, 0.04), 4, decision)
    assert judge(good(validation=better, test=near)).level in (Level.GOOD, Level.REVIEW)
    assert judge(good(validation=near)).level is Level.GOOD


def test_a_set_of_another_source_where_it_does_worse_is_named() -> None:
    sets = {"lamp": score(*mistaken(4, 50, 0.3), 4), "day": score(*mistaken(4, 50, 0.04), 4)}
    assert "lamp" in only(good(elsewhere=sets), CODES.WORSE_ELSEWHERE, Level.REVIEW).text
    loose = dataclasses.replace(policy(400, 0.01), threshold=0.3)
    fails = {"dim": score(*mistaken(4, 100, 0.03), 4, loose)}  # 12 of 400 answers are wrong
    assert "answers" in only(good(decision=loose, elsewhere=fails), CODES.WORSE_ELSEWHERE, Level.REVIEW).text


def test_a_model_that_answers_images_of_unknown_products_is_to_be_reviewed() -> None:
    """Beyond chance more than one in twenty; of a set of which it answers few, nothing is said."""
    sets = {"pharmacy": metrics.wilson_interval(40, 200), "drawn": metrics.wilson_interval(12, 200)}
    reason = only(good(unknown=sets), CODES.ANSWERS_UNKNOWN, Level.REVIEW)
    assert "pharmacy" in reason.text
    assert "20" in reason.text


def test_look_alikes_are_named_as_a_group() -> None:
    """Two of six classes, a quarter of their images confused."""
    truth = np.repeat(np.arange(6), 40)
    predicted = np.where((truth < 2) & (np.arange(240) % 4 == 0), 1 - truth, truth)
    decision = policy()
    reason = only(good(test=score(truth, predicted, 6, decision), validation=None), CODES.LOOK_ALIKES, Level.REVIEW)
    assert reason.classes == ("c00", "c01")


def test_the_most_severe_reason_decides_and_comes_first() -> None:
    """A model that learnt nothing, of few images: nothing is said of its threshold or of look-alikes."""
    test = score(np.repeat(np.arange(4), 40), np.zeros(160, int), 4)
    verdict = judge(good(test=test, decision=None, train_images=dict.fromkeys(names(4), 5)))
    assert codes(verdict) == [CODES.ONE_ANSWER, CODES.AT_CHANCE, CODES.FEW_TRAINING_IMAGES]
    assert verdict.level is Level.NOT_USABLE


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_verdict_survives_its_record(data: st.DataObject) -> None:
    """Of any predictions: as JSON, and back; a record without one has none."""
    num_classes = data.draw(st.integers(2, 5))
    count = data.draw(st.integers(1, 60))
    truth, predicted = (
        np.array(data.draw(st.lists(st.integers(0, num_classes - 1), min_size=count, max_size=count))) for _ in range(2)
    )
    verdict = judge(Evidence(test=score(truth, predicted, num_classes), decision=None))
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    assert (verdict.level is Level.GOOD) == (not verdict.reasons)
    assert all(reason.text and reason.remedy for reason in verdict.reasons)


def test_a_record_from_before_has_no_verdict() -> None:
    assert Verdict.from_dict({"name": "tablets", "test_accuracy": 0.9}) is None
