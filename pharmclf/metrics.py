"""Scores of a classifier and how sure they are: pure numpy, checked against scikit-learn.

Everything starts from counts: a confusion matrix, or row weights that say how often each image counts. Undefined ratios
(0/0) are 0, as with scikit-learn's `zero_division=0`. Intervals hold 95 % and know about groups: near duplicates of one
picture carry the information of one picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution: 95 % lie within ± this many standard deviations."""


@dataclass(frozen=True)
class Estimate:
    """A number measured on a sample, with its 95 % interval; low <= value <= high."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


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
    if truth.shape != predicted.shape or truth.ndim != 1:
        raise ValueError(f"received shapes {truth.shape} and {predicted.shape}, expected two arrays of one length")
    for name, numbers in (("truth", truth), ("predicted", predicted)):
        if len(numbers) and (numbers.min() < 0 or numbers.max() >= num_classes):
            raise ValueError(f"{name}: received {numbers.min()}..{numbers.max()}, expected 0..{num_classes - 1}")
    cells = truth.astype(np.int64) * num_classes + predicted
    return np.bincount(cells, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


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
    own = np.take_along_axis(probabilities, truth[:, None].astype(np.int64), axis=1)
    before = np.arange(probabilities.shape[1])[None, :] < truth[:, None]
    rank = ((probabilities > own) | ((probabilities == own) & before)).sum(axis=1)
    return rank < k


def calibration_error(
    confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None, *, num_bins: int = 15
) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over bins of confidence.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", 15 bins of equal width.

    Args:
        confidence: (n,) floats 0..1, probability of the predicted class.
        correct: (n,) booleans.
        weights: (n,) how often each row counts; once where not given.
        num_bins: bins over 0..1.

    Returns:
        0 (a confidence of 0.8 is right in 80 of 100 cases) to 1.
    """
    weights = np.ones(len(confidence)) if weights is None else weights
    bins = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    gaps = np.bincount(bins, weights=weights * (confidence - correct), minlength=num_bins)
    total = weights.sum()
    return float(np.abs(gaps).sum() / total) if total else 0.0


def wilson_interval(successes: float, total: float) -> Estimate:
    """A proportion with its Wilson 95 % interval, which is sound near 0 and 1 and for few images.

    Source: Wilson 1927; Brown, Cai and DasGupta 2001. Fractional counts are welcome (see `effective_size`).

    Raises:
        ValueError: fewer successes than 0 or more than the total.
    """
    if not 0 <= successes <= total:
        raise ValueError(f"received {successes} successes of {total}, expected 0 <= successes <= total")
    if total == 0:
        return Estimate(0.0, 0.0, 1.0)  # nothing is known
    share = successes / total
    scale = 1.0 + Z95**2 / total
    centre = (share + Z95**2 / (2 * total)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def effective_size(groups: np.ndarray) -> float:
    """How many independent images a sample is worth: n² / Σ m², m the sizes of its groups (Kish 1965).

    It takes images of one group for repetitions of one picture, which near duplicates are; where they are less alike,
    intervals come out wider than they need be, never narrower.
    """
    sizes = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / np.square(sizes).sum()) if len(sizes) else 0.0


def proportion(hits: np.ndarray, groups: np.ndarray) -> Estimate:
    """Share of the hits with its Wilson interval at the sample's effective size.

    Args:
        hits: (n,) booleans.
        groups: (n,) what tells the groups apart; rows of one value are near duplicates.
    """
    return _interval(float(hits.mean()), groups) if len(hits) else wilson_interval(0, 0)


def _interval(share: float, groups: np.ndarray) -> Estimate:
    """A share with the Wilson interval at the effective size of the groups."""
    size = effective_size(groups)
    bounds = wilson_interval(share * size, size)
    return Estimate(share, min(share, bounds.low), max(share, bounds.high))


def class_f1(truth: np.ndarray, predicted: np.ndarray, number: int, groups: np.ndarray) -> Estimate:
    """F1 of one class with its interval.

    F1 = 2J / (1 + J), where J is a proportion: of the images that are of the class or were given it, those for which
    both is true. So the Wilson interval of J gives that of F1, also for a class without mistakes.
    """
    concerned = (truth == number) | (predicted == number)
    jaccard = proportion((truth == predicted)[concerned], groups[concerned])
    return Estimate(*(2 * share / (1 + share) for share in (jaccard.value, jaccard.low, jaccard.high)))


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], groups: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap 95 % interval, drawing whole groups with replacement (Efron and Tibshirani 1993).

    Args:
        statistic: gets (n,) float64 row weights, how often each row was drawn, and returns a finite number.
        groups: (n,) what tells the groups apart.
        resamples: number of draws.
        seed: the same seed gives the same interval.

    Raises:
        ValueError: no rows.
    """
    if not len(groups):
        raise ValueError("received no rows, expected at least one")
    codes = np.unique(groups, return_inverse=True)[1]
    num_groups = int(codes.max()) + 1
    generator = np.random.default_rng(seed)
    values = np.empty(resamples)
    for index in range(resamples):
        drawn = np.bincount(generator.integers(0, num_groups, num_groups), minlength=num_groups)
        values[index] = statistic(drawn[codes].astype(np.float64))
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


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

    value = class_scores(confusion_matrix(truth, predicted, num_classes)).macro_f1
    low, high = bootstrap_interval(statistic, groups, resamples=resamples, seed=seed)
    if low == high:
        return _interval(value, groups)
    return Estimate(value, min(low, value), max(high, value))
