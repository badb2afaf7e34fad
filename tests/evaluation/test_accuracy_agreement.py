"""Whether a saved model is the one of its best epoch, as far as its answers tell."""

from __future__ import annotations

import numpy as np
import pytest
from support.epoch_records import epoch_record

from pharmclf.evaluation.accuracy_agreement import accuracy_mismatch, best_accuracy, rounding_tolerance

LABELS = np.zeros(100, np.int64)


def answers(wrong: int, ties: int) -> np.ndarray:
    """(100, 3) probabilities: some wrong by far, some right by next to nothing, the rest right by far."""
    found = np.tile(np.array([[0.9, 0.06, 0.04]], np.float32), (100, 1))
    found[:wrong] = (0.1, 0.8, 0.1)
    found[wrong : wrong + ties] = (0.451, 0.449, 0.1)
    return found


@pytest.mark.parametrize(
    ("best", "ties", "lost", "images"),
    [
        (0.90, 0, 0, None),  # the very same
        (0.91, 0, 0, 1),  # one image, and no tie
        (0.91, 1, 0, None),
        (0.89, 1, 0, None),  # either way
        (0.86, 3, 0, 4),
        (0.86, 3, 1, None),  # one that was lost may have counted then
        (0.50, 4, 3, 40),
    ],
)
def test_ties_and_lost_images_explain_as_many_images_as_there_are(
    best: float, ties: int, lost: int, images: int | None
):
    """Of 100 validation images the saved model has 90 right; a difference beyond those that can turn is a mismatch."""
    found = accuracy_mismatch(best, answers(10, ties), LABELS, lost=lost, tie=rounding_tolerance(["mixed_float16"]))
    assert (found and found.images) == images
    if found:
        assert (found.best_epoch, found.saved_model, found.explained) == (best, 0.9, ties + lost)
        assert f"{images} images differ, and rounding explains {ties + lost} at most" in found.text


def test_the_coarsest_format_says_what_a_tie_is():
    """0.451 to 0.449 is a tie in half precision, and none in float32."""
    assert rounding_tolerance(["float32"]) < np.log(0.451 / 0.449) < rounding_tolerance(["float32", "float16"])
    assert (
        rounding_tolerance(["mixed_bfloat16", "float16"])
        == rounding_tolerance(["bfloat16"])
        > rounding_tolerance(["float16"])
    )
    assert accuracy_mismatch(0.91, answers(10, 1), LABELS, lost=0, tie=rounding_tolerance(["float32"])) is not None


def test_the_best_epoch_is_that_of_its_phase():
    records = [epoch_record(f"phase{p}", e, val_accuracy=p + e / 10) for p in (1, 2) for e in range(3)]
    assert best_accuracy(records, "phase2", 1) == 2.1
