"""When the model should not answer: what a confidence threshold costs in coverage, and what its error is.

An image is answered where its confidence reaches the threshold; the others are left to a human. Coverage is the share
of the images answered; error is the share of the answered ones that is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pharmclf.evaluation.metrics.intervals import Estimate, proportion


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
    """Images answered."""
    num_images: int
    """All images."""


def sort_by_confidence(confidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The order in which images are answered as a threshold falls.

    Args:
        confidence: (n,) floats.

    Returns:
        (n,) places of the rows, those of the highest confidence first; (thresholds,) places in that order at which the
        last image of each confidence stands.
    """
    order = np.argsort(-confidence, kind="stable")
    ranked = confidence[order]
    return order, np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)[: len(ranked)])


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """The error for every share of images answered.

    Args:
        confidence: (n,) floats 0..1, probability of the predicted class.
        correct: (n,) booleans.
    """
    order, ends = sort_by_confidence(confidence)
    answered, wrong = ends + 1, np.cumsum(~correct[order])[ends]
    return RiskCoverage(confidence[order][ends].astype(np.float64), answered / len(confidence), wrong / answered)


def operating_point(
    confidence: np.ndarray, correct: np.ndarray, groups: np.ndarray, threshold: float
) -> OperatingPoint:
    """What happens at a threshold.

    Args:
        confidence: (n,) floats 0..1, probability of the predicted class.
        correct: (n,) booleans.
        groups: (n,) what tells groups of near duplicates apart.
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
