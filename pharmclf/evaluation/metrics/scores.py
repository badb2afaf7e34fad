"""Confusion counts, top-k accuracy and F1 of a classifier, equal to those of scikit-learn.

Undefined ratios (0/0) are 0, as with scikit-learn's `zero_division=0`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pharmclf.evaluation.metrics.intervals import Estimate, bootstrap_interval, proportion, row_blocks, share_interval


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
        visible = (rows >= 0) & (columns >= 0)
        table = np.zeros((len(shown), len(shown)), np.int64)
        table[rows[visible], columns[visible]] = self.counts[visible]
        return table

    @property
    def hits(self) -> np.ndarray:
        """(classes,) int64 images of each class that were given it."""
        right = self.truth == self.predicted
        return self._sums(self.truth[right], self.counts[right])

    @property
    def support(self) -> np.ndarray:
        """(classes,) int64 images of each class."""
        return self._sums(self.truth, self.counts)

    @property
    def given(self) -> np.ndarray:
        """(classes,) int64 images that were given each class."""
        return self._sums(self.predicted, self.counts)

    @property
    def mistakes(self) -> np.ndarray:
        """(classes,) int64 images of each class that were given another, and of others that were given it."""
        return np.asarray(self.given + self.support - 2 * self.hits)

    def _sums(self, numbers: np.ndarray, counts: np.ndarray) -> np.ndarray:
        sums = np.zeros(self.num_classes, np.int64)
        np.add.at(sums, numbers, counts)
        return sums


def confusion_counts(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> ConfusionCounts:
    """Count pairs of true and predicted class.

    Args:
        truth: (n,) integers, class numbers from 0.
        predicted: (n,) integers, likewise.
        num_classes: number of classes.

    Raises:
        ValueError: arrays of different length, or a class number outside 0..num_classes-1.
    """
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"received shapes {truth.shape} and {predicted.shape}, expected two arrays of one length")
    for name, numbers in (("truth", truth), ("predicted", predicted)):
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= num_classes):
            raise ValueError(f"{name}: received {numbers.min()}..{numbers.max()}, expected 0..{num_classes - 1}")
    cells, counts = np.unique(truth.astype(np.int64) * num_classes + predicted, return_counts=True)
    return ConfusionCounts(
        num_classes=num_classes, truth=cells // num_classes, predicted=cells % num_classes, counts=counts
    )


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
        block, numbers = probabilities[rows], truth[rows, None].astype(np.int64)
        of_truth = np.take_along_axis(block, numbers, axis=1)
        before = np.arange(probabilities.shape[1])[None, :] < numbers
        hits[rows] = ((block > of_truth) | ((block == of_truth) & before)).sum(axis=1) < k
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
    """Mean F1 of the classes that occur in truth or predictions, with its interval from a bootstrap over groups.

    All draws from a sample without mistakes are equal; the interval is then the Wilson interval at the effective size.
    """
    correct = truth == predicted

    def statistic(weights: np.ndarray) -> float:
        hits = np.bincount(truth, weights=weights * correct, minlength=num_classes)
        support = np.bincount(truth, weights=weights, minlength=num_classes)
        return _mean_f1(hits, support + np.bincount(predicted, weights=weights, minlength=num_classes))

    cells = confusion_counts(truth, predicted, num_classes)
    value = _mean_f1(cells.hits, cells.support + cells.given)
    low, high = bootstrap_interval(statistic, groups, resamples=resamples, seed=seed)
    if low == high:
        return share_interval(value, groups)
    return Estimate(value, min(low, value), max(high, value))


def _mean_f1(hits: np.ndarray, totals: np.ndarray) -> float:
    """Mean over the classes with images, where totals are those of the class plus those that were given it."""
    seen = totals > 0
    return float((2 * hits[seen] / totals[seen]).mean()) if seen.any() else 0.0
