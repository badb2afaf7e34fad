"""Calibration of confidences: calibration error, reliability bins, and temperature scaling.

Confidence is the probability of the predicted class. It is calibrated when of the images with a confidence of 0.8 eight
in ten are right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pharmclf.evaluation.metrics.intervals import Estimate, proportion, row_blocks

TEMPERATURES = (0.1, 10.0)
"""Lowest and highest temperature that is fitted."""
_HALVINGS = 30
"""Of the range of temperatures: the fitted one is then known to eight digits."""
_MAX_TABLE_CELLS = 2**27
"""Up to so many logarithms, 1 GiB, are kept while the temperature is fitted; more are computed again in each step."""
_FLOOR = float(np.finfo(np.float32).tiny)
"""Probabilities below count as this: float32 cannot hold them, so their logits are unknown."""


@dataclass(frozen=True)
class ReliabilityBin:
    """The images whose confidence lies in one interval."""

    low: float
    """Lower edge of the bin, which belongs to it, 0..1."""
    high: float
    """Upper edge, which belongs to the next bin; that of the last bin, 1, belongs to it."""
    count: int
    """Images in the bin; at least one."""
    confidence: float
    """Their mean confidence, 0..1."""
    accuracy: Estimate
    """Share of them that is right; the bin is calibrated where the interval holds `confidence`."""


def _bins(confidence: np.ndarray, num_bins: int) -> np.ndarray:
    """(n,) int64: which of the bins of equal width over 0..1 each confidence lies in."""
    return np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)


def calibration_error(
    confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None = None, *, num_bins: int = 15
) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over bins of confidence.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", 15 bins of equal width. Few images in a bin
    are off by chance, so that the error of a small set is too high; compare it between sets of one size only.

    Args:
        confidence: (n,) floats 0..1, probability of the predicted class.
        correct: (n,) booleans.
        weights: (n,) how often each row counts; once where not given.
        num_bins: bins over 0..1.

    Returns:
        0 (a confidence of 0.8 is right in 80 of 100 cases) to 1.
    """
    weights = np.ones(len(confidence)) if weights is None else weights
    gaps = np.bincount(_bins(confidence, num_bins), weights=weights * (confidence - correct), minlength=num_bins)
    total = weights.sum()
    return float(np.abs(gaps).sum() / total) if total else 0.0


def reliability(
    confidence: np.ndarray, correct: np.ndarray, groups: np.ndarray, *, num_bins: int = 15
) -> tuple[ReliabilityBin, ...]:
    """The points of the reliability curve (DeGroot and Fienberg 1983), in the bins of `calibration_error`.

    Args:
        confidence: (n,) floats 0..1, probability of the predicted class.
        correct: (n,) booleans.
        groups: (n,) group of near duplicates of each row.
        num_bins: bins over 0..1.

    Returns:
        The bins that hold at least one image, from low to high confidence.
    """
    numbers = _bins(confidence, num_bins)
    bins = []
    for number in np.unique(numbers).tolist():
        rows = numbers == number
        accuracy = proportion(correct[rows], groups[rows])
        mean = float(confidence[rows].mean())
        bins.append(ReliabilityBin(number / num_bins, (number + 1) / num_bins, int(rows.sum()), mean, accuracy))
    return tuple(bins)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities at another temperature: softmax(log p / T). Above 1 they are less sure, below 1 surer.

    Args:
        probabilities: (n, classes) floats 0..1; rows need not sum to 1.
        temperature: T > 0.

    Returns:
        (n, classes) float64; rows sum to 1, and argmax stays the same, also among equal ones.

    Raises:
        ValueError: a temperature that is not a number above 0.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"temperature: received {temperature}, expected a number above 0")
    logs = _logs(probabilities)
    top = logs.max(axis=1, keepdims=True)
    scaled = np.exp((logs - top) / temperature)
    # two that differ in their last bit must not come out equal, or argmax would take the first of them
    best = probabilities == probabilities.max(axis=1, keepdims=True)
    scaled = np.where(best, 1.0, np.minimum(scaled, 1.0 - 4 * np.finfo(np.float64).eps))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))


def most_probable(probabilities: np.ndarray, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """The predicted class of each row and its probability at a temperature, in blocks of rows to save memory.

    Args:
        probabilities: (n, classes) floats 0..1.
        temperature: as in `apply_temperature`.

    Returns:
        (n,) int64 class numbers, of equal probabilities the lowest; (n,) float64 probabilities.
    """
    best, confidence = np.zeros(len(probabilities), np.int64), np.zeros(len(probabilities))
    for rows in row_blocks(*probabilities.shape):
        scaled = apply_temperature(probabilities[rows], temperature)
        best[rows], confidence[rows] = scaled.argmax(axis=1), scaled.max(axis=1)
    return best, confidence


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(np.asarray(probabilities, np.float64), _FLOOR))


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The temperature at which the truth is most probable, from images that the model was not trained on.

    Source: Guo et al. 2017: it minimises the negative log-likelihood of softmax(log p / T), convex in β = 1/T. A weak
    prior, β - 1 - log β, worth about one image, is added: without it, a few images without a mistake would call for
    certainty (T = 0). It is 0 at T = 1, so that on these images the likelihood is never less than that of T = 1.

    Args:
        probabilities: (n, classes) floats 0..1.
        truth: (n,) integers, class numbers from 0.
        weights: (n,) how much each row counts, such as 1 / size of its group; once where not given.

    Returns:
        T within `TEMPERATURES`; 1 without rows.
    """
    weights = np.ones(len(truth)) if weights is None else np.asarray(weights, np.float64)
    blocks = list(row_blocks(*probabilities.shape))

    def logs_of(rows: slice) -> np.ndarray:
        logs = _logs(probabilities[rows])
        logs -= logs.max(axis=1, keepdims=True)
        return logs

    cached = [logs_of(rows) for rows in blocks] if probabilities.size <= _MAX_TABLE_CELLS else None
    of_truth, expected = np.zeros(len(truth)), np.zeros(len(truth))
    for rows, logs in zip(blocks, cached or map(logs_of, blocks), strict=True):
        of_truth[rows] = np.take_along_axis(logs, truth[rows, None].astype(np.int64), axis=1)[:, 0]
    observed = float(weights @ of_truth)

    def slope(beta: float) -> float:
        """Derivative of the objective by β; it rises with β."""
        for rows, logs in zip(blocks, cached or map(logs_of, blocks), strict=True):
            scaled = np.exp(beta * logs)
            expected[rows] = (scaled * logs).sum(axis=1) / scaled.sum(axis=1)
        return float(weights @ expected) - observed + 1.0 - 1.0 / beta

    low, high = (-np.log(temperature) for temperature in reversed(TEMPERATURES))  # of log β
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(float(np.exp(middle))) > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))
