"""Compares the validation accuracy of a saved model with that of the epoch that it was saved from.

The two are computed in different ways: in training by several workers, in half precision, or from cached features.
An image whose best two classes are nearly equal may be right in one and wrong in the other. Such ties are counted: a
difference that they explain is no fault, and a larger one means that the file is not the model that was chosen.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pharmclf.core.events import EpochRecord

_TIES = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.4}
"""Difference of two logits that rounding can reverse: some hundred roundings of logits near ten."""
_SMALLEST = 1e-30


@dataclass(frozen=True, kw_only=True)
class AccuracyMismatch:
    """Two validation accuracies that should be equal."""

    best_epoch: float
    """Accuracy in the best epoch, 0..1."""
    saved_model: float
    """Of the saved model, 0..1."""
    images: int
    """Images by which they differ."""
    explained: int
    """How many of these rounding and quarantined images can explain at most."""

    @property
    def text(self) -> str:
        """The warning for the console."""
        return (
            f"the saved model's validation accuracy is {self.saved_model:.4f}, that of its best epoch was "
            f"{self.best_epoch:.4f}: {self.images:,} images differ, and rounding explains {self.explained:,} at most. "
            "Do not use this model before you know why"
        )


def rounding_tolerance(formats: Iterable[str]) -> float:
    """The difference of two logits that may be rounding, for the coarsest of some number formats or precisions."""
    return max(_TIES[name.removeprefix("mixed_")] for name in formats)


def best_accuracy(history: Iterable[EpochRecord], phase: str, epoch: int) -> float:
    """Validation accuracy, 0..1, of an epoch of a phase."""
    return next(record.val_accuracy for record in history if (record.phase, record.epoch) == (phase, epoch))


def accuracy_mismatch(
    best_epoch: float, probabilities: np.ndarray, labels: np.ndarray, *, lost: int, tie: float
) -> AccuracyMismatch | None:
    """Compare a saved model with its best epoch.

    Args:
        best_epoch: the accuracy of the epoch, 0..1.
        probabilities: (n, classes) of the saved model on the validation images.
        labels: (n,) class numbers.
        lost: validation images that were quarantined during the run: the epoch may have counted them.
        tie: difference of two logits that may be rounding.

    Returns:
        None where they differ by no more images than ties and quarantined images explain.
    """
    right = int((probabilities.argmax(axis=1) == labels).sum())
    images = round(abs(right - best_epoch * len(labels)))
    best = np.log(np.maximum(np.sort(probabilities.astype(np.float64), axis=1)[:, -2:], _SMALLEST))
    explained = int((best[:, 1] - best[:, 0] <= tie).sum()) + lost
    if images <= explained:
        return None
    accuracy = right / len(labels)
    return AccuracyMismatch(best_epoch=best_epoch, saved_model=accuracy, images=images, explained=explained)
