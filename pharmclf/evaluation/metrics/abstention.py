"""When a model should not answer: what a confidence threshold costs in coverage, its error, and how it is chosen.

An image is answered where its confidence reaches the threshold; the others are left to a human. Coverage is the share
of the images answered; error is the share of the answered ones that is wrong. The lower the threshold, the more images
are answered and, as a rule, the more of the answers are wrong. Every threshold between two confidences answers the same
images, so the confidences that occur are the candidates.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from pharmclf.evaluation.metrics.intervals import (
    Estimate,
    min_samples_for_guarantee,
    proportion,
    tail_probability,
    upper_bound,
)  # fmt: skip

REJECT_ALL = 2.0
"""A threshold that no confidence reaches."""
_RISK = 0.05
"""How often a promise may be broken."""
_MIN_ANSWERED = 10
"""Images that must be answered for a threshold to be worth trying where nothing is promised."""


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The error among answered images for every share of images answered (El-Yaniv and Wiener 2010)."""

    thresholds: np.ndarray
    """(points,) float64, falling: every confidence that occurs; images of one confidence are answered together."""
    coverage: np.ndarray
    """(points,) float64, rising to 1: share of the images answered at the threshold."""
    error: np.ndarray
    """(points,) float64, 0..1: share of the answered images that is wrong."""

    def downsampled(self, max_points: int) -> RiskCoverage:
        """The curve with at most so many of its points (2 or more), evenly over the coverage; both ends stay."""
        if len(self.coverage) <= max_points:
            return self
        shares = np.linspace(self.coverage[0], 1.0, max_points)
        places = np.unique(np.minimum(self.coverage.searchsorted(shares), len(self.coverage) - 1))
        return RiskCoverage(self.thresholds[places], self.coverage[places], self.error[places])


@dataclass(frozen=True)
class OperatingPoint:
    """What happens at one threshold."""

    threshold: float
    """Images of at least this confidence are answered; above 1 none is."""
    coverage: Estimate
    """Share of the images answered, 0..1."""
    error: Estimate | None
    """Share of the answered images that is wrong, 0..1; None where none is answered."""
    num_answered: int
    num_images: int


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A confidence from which a model answers, and what is known of the error among its answers."""

    value: float
    """Images of at least this confidence are answered; `REJECT_ALL`: none is."""
    assured: bool
    """Whether the error is at most the requested one, at 95 % confidence."""
    upper_bound: float
    """The error is at most this at 95 % confidence, one-sided, looking at this threshold alone; 1 without answers."""
    num_needed: int
    """Independent images that must be answered without an error before the requested error can be assured."""


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Every threshold from the highest to the lowest, and what it answers."""

    thresholds: np.ndarray
    error: np.ndarray
    """Share of the answered images that is wrong, 0..1."""
    sizes: np.ndarray
    """How many independent images the answered ones are worth."""


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """The error for every share of images answered.

    Args:
        confidence: (n,) floats 0..1, probability of the predicted class.
        correct: (n,) booleans.
    """
    order, ends = _sort_by_confidence(confidence)
    answered, wrong = ends + 1, np.cumsum(~correct[order])[ends]
    return RiskCoverage(confidence[order][ends].astype(np.float64), answered / len(confidence), wrong / answered)


def operating_point(
    confidence: np.ndarray, correct: np.ndarray, groups: np.ndarray, threshold: float
) -> OperatingPoint:
    """What happens at a threshold.

    Args:
        confidence: (n,) floats 0..1, probability of the predicted class.
        correct: (n,) booleans.
        groups: (n,) group of near duplicates of each row.
        threshold: images of at least this confidence are answered.
    """
    answered = confidence >= threshold
    return OperatingPoint(
        threshold=threshold,
        coverage=proportion(answered, groups),
        error=proportion(~correct[answered], groups[answered]) if answered.any() else None,
        num_answered=int(answered.sum()),
        num_images=len(confidence),
    )


def choose_threshold(confidence: np.ndarray, correct: np.ndarray, groups: np.ndarray, max_error: float) -> Threshold:
    """The lowest threshold at which the error among answered images is at most `max_error`.

    It is *assured* where an exact test (Clopper and Pearson 1934, at the effective size of the answered images) says
    so of it and of the thresholds before it: they are tested from high to low in a fixed sequence that ends where a
    test fails, so that however many there are, they share one chance of 5 % (Geifman and El-Yaniv 2017; Angelopoulos
    et al. 2021, "Learn then Test"). Among the few surest images one error ends a sequence that thousands of right
    answers would have continued; so there are several, which start where a half, a quarter, an eighth … of the images
    are answered, as long as one error does not fail the test there (in sets too small for that, there is one, which
    starts as early as a test can succeed). They share the 5 %, and each hands its part to the next if all its tests
    succeed (fallback procedure, Wiens and Dmitrienko 2005).

    The promise: of 100 such choices at most 5 assure a threshold whose error is above `max_error`, if future images
    are drawn like these, and if answering more of them does not lower the error. It says nothing of images from
    another source.

    Where nothing can be assured, it is the lowest threshold at which the observed error is at most `max_error`, there
    and at every higher threshold that answers at least 1 / `max_error` images (of fewer, a single error is too much).
    Where there is none that answers ten images, none is answered.

    Args:
        confidence: (n,) floats 0..1, probability of the predicted class; n >= 1.
        correct: (n,) booleans.
        groups: (n,) group of near duplicates of each row.
        max_error: above 0, below 1.

    Raises:
        ValueError: no rows, or a `max_error` outside its limits.
    """
    if not 0 < max_error < 1:
        raise ValueError(f"max_error: received {max_error}, expected a share above 0 and below 1")
    if not len(confidence):
        raise ValueError("received no rows, expected at least one image")
    candidates = _candidates(confidence, correct, groups)
    place = _lowest_assured(candidates, max_error)
    assured = place is not None
    if place is None:
        place = _lowest_observed(candidates, max_error)
    needed = min_samples_for_guarantee(max_error)
    if place is None:
        return Threshold(value=REJECT_ALL, assured=False, upper_bound=1.0, num_needed=needed)
    error, size = candidates.error[place], candidates.sizes[place]
    bound = float(upper_bound(error * size, size))
    return Threshold(value=float(candidates.thresholds[place]), assured=assured, upper_bound=bound, num_needed=needed)


def _sort_by_confidence(confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n,) places of the rows, the surest first; (thresholds,) places in that of the last row of each confidence."""
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    return order, np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])


def _candidates(confidence: np.ndarray, correct: np.ndarray, groups: np.ndarray) -> _Candidates:
    order, ends = _sort_by_confidence(confidence)
    answered, wrong = ends + 1.0, np.cumsum(~correct[order])[ends]
    # Σ m² over the groups grows by 2c + 1 when an image joins c others of its group
    codes, sizes = np.unique(groups[order], return_inverse=True, return_counts=True)[1:]
    by_group = np.argsort(codes, kind="stable")
    others = np.empty(len(order), np.int64)
    others[by_group] = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    squares = np.cumsum(2.0 * others + 1.0)[ends]
    return _Candidates(confidence[order][ends], wrong / answered, answered**2 / squares)


def _lowest_assured(candidates: _Candidates, max_error: float) -> int | None:
    """Place of the lowest candidate that the fallback procedure assures."""
    starts = _sequence_starts(float(candidates.sizes[-1]), max_error)
    if not starts:
        return None
    first = [int((candidates.sizes >= start).argmax()) for start in starts]
    lowest, level = None, 0.0
    for begin, end in zip(first, [*first[1:], len(candidates.sizes)], strict=True):
        level += _RISK / len(starts)
        sizes = candidates.sizes[begin:end]
        passed = tail_probability(candidates.error[begin:end] * sizes, sizes, max_error) <= level
        length = len(passed) if passed.all() else int(passed.argmin())
        if length:
            lowest = begin + length - 1
        if length < len(passed):
            level = 0.0
    return lowest


def _sequence_starts(size: float, max_error: float) -> list[float]:
    """Effective sizes at which the sequences start, rising. Only the size of the sample decides, never its errors."""
    needed = min_samples_for_guarantee(max_error, level=1 - _RISK)
    starts = [float(needed)] if needed <= size else []
    for count in itertools.count(1):
        more = [size / 2**halvings for halvings in range(count, 0, -1)]
        if tail_probability(1.0, more[0], max_error) > _RISK / count:
            break
        starts = more
    return starts


def _lowest_observed(candidates: _Candidates, max_error: float) -> int | None:
    """Place of the lowest candidate whose observed error, and that of those before it, is not too high."""
    low = candidates.error <= max_error
    unbroken = np.logical_and.accumulate(low | (candidates.sizes < 1 / max_error))
    places = np.flatnonzero(low & unbroken & (candidates.sizes >= _MIN_ANSWERED))
    return int(places[-1]) if len(places) else None
