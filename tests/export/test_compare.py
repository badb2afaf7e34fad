"""Whether an exported model is near enough to the Keras model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pharmclf.evaluation.abstention_policy import AbstentionPolicy, UnknownLimit
from pharmclf.evaluation.metrics import Estimate
from pharmclf.export.compare import ExportError, ModelOutputs, check_policy, check_tolerance, compare
from pharmclf.export.formats import TOLERANCES, Precision, tolerance


def sure(classes: list[int], confidence: float = 0.9, num_classes: int = 3) -> np.ndarray:
    """Probabilities that give these classes with this confidence."""
    table = np.full((len(classes), num_classes), (1 - confidence) / (num_classes - 1), np.float32)
    table[np.arange(len(classes)), classes] = confidence
    return table


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_answers_are_counted_image_by_image(pairs: list[tuple[int, int]]):
    """As many equal answers as classes agree; the largest difference is 0 only where all do."""
    one, other = zip(*pairs, strict=True)
    found = compare(ModelOutputs(sure(list(one))), ModelOutputs(sure(list(other))))
    equal = sum(a == b for a, b in pairs)
    assert (found.num_images, found.num_equal, found.num_same_side) == (len(pairs), equal, None)
    assert found.largest_difference == pytest.approx(0 if equal == len(pairs) else 0.85)


@pytest.mark.parametrize(
    ("precision", "difference", "changed", "accepted"),
    [
        ("float32", 5e-5, 0, True), ("float32", 2e-4, 0, False), ("float32", 0.8, 1, False),
        ("float16", 0.04, 0, True), ("float16", 0.06, 0, False),
        ("int8", 0.3, 0, True), ("int8", 0.8, 2, True), ("int8", 0.8, 3, False),
    ],
)  # fmt: skip
def test_each_precision_has_its_tolerance(precision: Precision, difference: float, changed: int, accepted: bool):
    """100 images: float32 within 0.0001, float16 within 0.05, int8 with at most two changed answers."""
    reference = sure([0] * 100)
    found = reference.copy()
    found[:, 0] -= difference if not changed else 0
    found[:changed] = sure([1] * changed) if changed else found[:0]
    comparison = compare(ModelOutputs(reference), ModelOutputs(found))
    assert comparison.num_equal == 100 - changed
    if accepted:
        check_tolerance(comparison, TOLERANCES[precision])
        return
    with pytest.raises(ExportError, match="equal answers"):
        check_tolerance(comparison, TOLERANCES[precision])


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_what_is_not_a_number_is_refused(precision: Precision):
    """One probability that is not a number, in an image whose answer is still the same."""
    reference, found = sure([0, 1]), sure([0, 1])
    found[0, 2] = np.nan
    with pytest.raises(ExportError):
        check_tolerance(compare(ModelOutputs(reference), ModelOutputs(found)), TOLERANCES[precision])


def test_another_shape_is_refused():
    """A class too few."""
    with pytest.raises(ExportError, match=r"\(2, 2\), expected \(2, 3\)"):
        compare(ModelOutputs(sure([0, 1])), ModelOutputs(sure([0, 1], num_classes=2)))


def decided(threshold: float, assured: bool = True) -> AbstentionPolicy:
    return AbstentionPolicy(
        temperature=1.0, threshold=threshold, max_error=0.01, assured=assured, num_validation_images=9, num_answered=9,
        coverage=Estimate(1.0, 0.9, 1.0), error=None, upper_bound=0.01, num_needed=1,
    )  # fmt: skip


def test_a_model_that_promises_less_is_refused():
    """It answers nothing, or assures nothing, where the Keras model does; another threshold alone is none of that."""
    check_policy(decided(0.8), decided(0.95))
    check_policy(decided(2.0, assured=False), decided(2.0, assured=False))
    with pytest.raises(ExportError, match=r"no threshold keeps the error at 1.00%, so that it answers no image"):
        check_policy(decided(0.8, assured=False), decided(2.0, assured=False))
    with pytest.raises(ExportError, match=r"9 validation images do not assure an error of at most 1.00%"):
        check_policy(decided(0.8), decided(0.8, assured=False))


def test_images_that_cross_the_threshold_are_counted():
    """Of three images with equal classes one is answered by the Keras model alone; each by its own threshold."""
    decision = decided(0.8)
    reference = ModelOutputs(np.concatenate([sure([0]), sure([1], 0.81), sure([2], 0.7)]))
    found = ModelOutputs(np.concatenate([sure([0]), sure([1], 0.79), sure([2], 0.7)]))
    comparison = compare(reference, found, decision)
    assert (comparison.num_equal, comparison.num_same_side) == (3, 2)
    assert "1 on the other side of the threshold" in str(comparison)
    assert compare(reference, found, decision, decided(0.78)).num_same_side == 3


def test_images_that_become_unknown_are_counted_and_their_scores_compared():
    """One of three is unknown to the exported model alone; a score too far apart, or not a number, is refused."""
    decision = dataclasses.replace(decided(0.8), unknown=UnknownLimit(limit=2.0, share=Estimate(0.1, 0.0, 0.2)))
    reference, found = (
        ModelOutputs(sure([0, 1, 2]), np.array(scores)) for scores in ([0.0, 1.999, 3.0], [0.0, 2.001, 3.0])
    )
    comparison = compare(reference, found, decision)
    assert comparison.num_same_side == 2
    assert comparison.strangeness_difference == pytest.approx(0.002)
    assert "largest difference of a strangeness 2.0e-03" in str(comparison)
    check_tolerance(comparison, TOLERANCES["float32"])
    for score in (2.5, np.nan):
        away = ModelOutputs(found.probabilities, np.array([0.0, score, 3.0]))
        with pytest.raises(ExportError, match=r"expected a difference of strangeness of at most 0\.02"):
            check_tolerance(compare(reference, away), TOLERANCES["float32"])
    with pytest.raises(ExportError, match=r"strangeness of shape \(3, 1\), expected \(3,\)"):
        compare(reference, ModelOutputs(found.probabilities, np.zeros((3, 1))))


def test_of_a_model_that_crops_most_images_must_be_close():
    """A product may be found a thousandth of the side away in some; a conversion that moves all is refused."""
    allowed = tolerance("float32", crops=True)
    reference = sure([0] * 100)
    for moved, accepted in ((15, True), (30, False)):
        found = reference.copy()
        found[:moved, 0] -= 0.01
        comparison = compare(ModelOutputs(reference), ModelOutputs(found))
        assert comparison.num_close == 100 - moved
        if accepted:
            check_tolerance(comparison, allowed)
        else:
            with pytest.raises(ExportError, match=r"70 within 0\.0001; expected at least 80%"):
                check_tolerance(comparison, allowed)
    assert tolerance("float32", crops=False) == TOLERANCES["float32"]
    assert tolerance("int8", crops=True) == TOLERANCES["int8"]
