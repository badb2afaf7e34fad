"""The scores of one model on one set of images, each with its 95 % interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pharmclf.evaluation import metrics
from pharmclf.evaluation.metrics import ConfusionCounts, Estimate, OperatingPoint, ReliabilityBin, RiskCoverage
from pharmclf.evaluation.prediction_sets import SetScores


@dataclass(frozen=True)
class ClassResult:
    """Scores of one class."""

    name: str
    support: int
    """Images of this class; without any the recall is not known: 0 in 0..1."""
    predicted: int
    """Images given this class; without any the precision is not known: 0 in 0..1."""
    precision: Estimate
    recall: Estimate
    f1: Estimate

    @property
    def has_examples(self) -> bool:
        """Whether an image is of this class or was given it; without examples the scores mean nothing."""
        return self.support + self.predicted > 0


@dataclass(frozen=True)
class ConfusedPair:
    """Images of one class that were given another."""

    label: str
    """The true class."""
    predicted: str
    """The class given."""
    count: int
    share: float
    """Share of the true class's images, 0..1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationResult:
    """Scores of one model on one set of images; classes are in the order of the model's outputs."""

    num_images: int
    num_groups: int
    """Groups of near duplicates among the images; as many as images where there are none."""
    accuracy: Estimate
    macro_f1: Estimate
    """Mean F1 of the classes that occur in truth or predictions."""
    top_k_accuracy: Mapping[int, Estimate]
    """k -> share of the images whose class is among the k most probable; only k below the number of classes."""
    calibration_error: Estimate
    """Expected calibration error of the confidences, 0..1; after temperature scaling where there is a decision."""
    raw_calibration_error: Estimate | None
    """The same before temperature scaling; None without a decision, or without probabilities."""
    reliability: tuple[ReliabilityBin, ...]
    """Accuracy by confidence; the bins that hold images."""
    risk_coverage: RiskCoverage
    """The error among answered images for every share of images answered."""
    answered: OperatingPoint | None
    """What happens at the threshold of the decision; None without one."""
    sets: SetScores | None = None
    """The prediction sets of the decision; None without them, or without probabilities."""
    unknown: Estimate | None = None
    """Share of the images that the decision calls unknown; None where it has no limit for that."""
    classes: tuple[ClassResult, ...]
    cells: ConfusionCounts
    """The confusion matrix; of many classes, most of its cells hold no image."""

    @property
    def confusion(self) -> np.ndarray:
        """(classes, classes) int64; row: true class, column: predicted class. Large for many classes: see `cells`."""
        return self.cells.matrix()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the model's outputs."""
        return tuple(result.name for result in self.classes)


def accuracy_difference(first: EvaluationResult, second: EvaluationResult) -> Estimate:
    """Accuracy of the second minus that of the first, -1..1, with its 95 % interval; below 0 the second is worse.

    Args:
        first: of the reference set, such as the test split.
        second: of a set without copies of the first set's images, such as photographs under other light.
    """
    return metrics.proportion_difference(first.accuracy, second.accuracy)


def most_confused_pairs(evaluation: EvaluationResult, limit: int = 10) -> list[ConfusedPair]:
    """The pairs (true class, given class) with most images; equal ones by share, then in the order of the classes."""
    cells, names = evaluation.cells, evaluation.class_names
    pairs = [
        ConfusedPair(names[label], names[predicted], count, count / evaluation.classes[label].support)
        for label, predicted, count in np.column_stack([cells.truth, cells.predicted, cells.counts]).tolist()
        if label != predicted
    ]
    return sorted(pairs, key=lambda pair: (-pair.count, -pair.share))[:limit]
