"""Scores of a classifier, checked against scikit-learn.

Everything starts from counts: a confusion matrix, or row weights that say how often each image counts. Undefined ratios
(0/0) are 0, as with scikit-learn's `zero_division=0`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pharmclf.evaluation.metrics.intervals import Estimate, bootstrap_interval, proportion, row_blocks, share_interval


@dataclass(frozen=True, eq=False)
class ClassScores:
    """Scores of every class, each an array of shape (classes,)."""

    precision: np.ndarray
    """Share of the images given this class that are of it, 0..1."""
    recall: np.ndarray
    """Share of the images of this class that were given it, 0..1."""
    f1: np.ndarray
    """Harmonic mean of precision and recall, 0..1."""
    support: np.ndarray
    """Images of this class."""
    predicted: np.ndarray
    """Images given this class."""

    @property
    def macro_f1(self) -> float:
        """Mean F1 of the classes that occur in truth or predictions, each class counting the same (as scikit-learn)."""
        seen = (self.support + self.predicted) > 0
        return float(self.f1[seen].mean()) if seen.any() else 0.0


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count pairs of true and predicted class.

    Args:
        truth: (n,) integers, class numbers from 0.
        predicted: (n,) integers, likewise.
        num_classes: number of classes.

    Returns:
        (num_classes, num_classes) int64; row: true class, column: predicted class.

    Raises:
        ValueError: arrays of different length, or a class number outside 0..num_classes-1.
    """
    return confusion_counts(truth, predicted, num_classes).matrix()


@dataclass(frozen=True, kw_only=True, eq=False)
class ConfusionCounts:
    """A confusion matrix as the cells that hold images: of 10,000 classes the matrix would take 800 MB."""

    num_classes: int
    truth: np.ndarray
    """(cells,) int64, true class of each cell; cells are sorted by true class, then by predicted class."""
    predicted: np.ndarray
    """(cells,) int64, predicted class of each cell."""
    counts: np.ndarray
    """(cells,) int64, images, at least one each."""

    def matrix(self, shown: np.ndarray | None = None) -> np.ndarray:
        """(classes, classes) int64; row: true class, column: predicted class.

        Args:
            shown: class numbers, each once; the rows and columns of these only, in this order.
        """
        shown = np.arange(self.num_classes) if shown is None else shown
        places = np.full(self.num_classes, -1)
        places[shown] = np.arange(len(shown))
        rows, columns = places[self.truth], places[self.predicted]
        kept = (rows >= 0) & (columns >= 0)
        found = np.zeros((len(shown), len(shown)), np.int64)
        found[rows[kept], columns[kept]] = self.counts[kept]
        return found

    @property
    def hits(self) -> np.ndarray:
        """(classes,) int64 images of each class that were given it."""
        right = self.truth == self.predicted
        found = np.zeros(self.num_classes, np.int64)
        found[self.truth[right]] = self.counts[right]
        return found

    @property
    def support(self) -> np.ndarray:
        """(classes,) int64 images of each class."""
        return self._sums(self.truth)

    @property
    def given(self) -> np.ndarray:
        """(classes,) int64 images that were given each class."""
        return self._sums(self.predicted)

    def _sums(self, numbers: np.ndarray) -> np.ndarray:
        found = np.zeros(self.num_classes, np.int64)
        np.add.at(found, numbers, self.counts)
        return found


def confusion_counts(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> ConfusionCounts:
    """As `confusion_matrix`, but only the cells that hold images."""
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"received shapes {truth.shape} and {predicted.shape}, expected two arrays of one length")
    for name, numbers in (("truth", truth), ("predicted", predicted)):
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= num_classes):
            raise ValueError(f"{name}: received {numbers.min()}..{numbers.max()}, expected 0..{num_classes - 1}")
    cells, counts = np.unique(truth.astype(np.int64) * num_classes + predicted, return_counts=True)
    return ConfusionCounts(
        num_classes=num_classes, truth=cells // num_classes, predicted=cells % num_classes, counts=counts
    )


def accuracy(confusion: np.ndarray) -> float:
    """Share of the images on the diagonal of a confusion matrix, 0..1; 0 without images."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else 0.0


def class_scores(confusion: np.ndarray) -> ClassScores:
    """Scores of every class from a (classes, classes) confusion matrix."""
    return _scores(np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0))


def _scores(hits: np.ndarray, support: np.ndarray, predicted: np.ndarray) -> ClassScores:
    return ClassScores(
        precision=_ratio(hits, predicted),
        recall=_ratio(hits, support),
        f1=_ratio(2 * hits, support + predicted),
        support=support,
        predicted=predicted,
    )


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)


def top_k_hits(truth: np.ndarray, probabilities: np.ndarray, k: int) -> np.ndarray:
    """Whether the true class is among the k most probable; of equal ones the lower number comes first, as in argmax.

    Args:
        truth: (n,) integers, class numbers from 0.
        probabilities: (n, classes) floats.
        k: 1 or more.

    Returns:
        (n,) booleans.
    """
    hits = np.zeros(len(truth), bool)
    for rows in row_blocks(*probabilities.shape):
        given, numbers = probabilities[rows], truth[rows, None].astype(np.int64)
        own = np.take_along_axis(given, numbers, axis=1)
        before = np.arange(probabilities.shape[1])[None, :] < numbers
        hits[rows] = ((given > own) | ((given == own) & before)).sum(axis=1) < k
    return hits


def class_f1(truth: np.ndarray, predicted: np.ndarray, number: int, groups: np.ndarray) -> Estimate:
    """F1 of one class with its interval.

    F1 = 2J / (1 + J), where J is a proportion: of the images that are of the class or were given it, those for which
    both is true. So the Wilson interval of J gives that of F1, also for a class without mistakes.
    """
    concerned = (truth == number) | (predicted == number)
    jaccard = proportion((truth == predicted)[concerned], groups[concerned])
    return Estimate(*(2 * share / (1 + share) for share in (jaccard.value, jaccard.low, jaccard.high)))


def macro_f1(
    truth: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    *,
    groups: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> Estimate:
    """Macro F1 with its interval from a bootstrap over groups.

    Draws from a sample without mistakes have none; there the Wilson interval at the effective size stands in.
    """
    correct = truth == predicted

    def statistic(weights: np.ndarray) -> float:
        hits = np.bincount(truth, weights=weights * correct, minlength=num_classes)
        support = np.bincount(truth, weights=weights, minlength=num_classes)
        return _scores(hits, support, np.bincount(predicted, weights=weights, minlength=num_classes)).macro_f1

    cells = confusion_counts(truth, predicted, num_classes)
    value = _scores(cells.hits, cells.support, cells.given).macro_f1
    low, high = bootstrap_interval(statistic, groups, resamples=resamples, seed=seed)
    if low == high:
        return share_interval(value, groups)
    return Estimate(value, min(low, value), max(high, value))
