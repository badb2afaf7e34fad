"""Scores of a classifier and how sure they are: pure numpy, checked against scikit-learn and by simulation."""

from pharmclf.metrics.abstention import OperatingPoint, RiskCoverage, operating_point, risk_coverage
from pharmclf.metrics.calibration import (
    ReliabilityBin,
    calibration_error,
    fit_temperature,
    most_probable,
    reliability,
    with_temperature,
)
from pharmclf.metrics.intervals import (
    Z95,
    Estimate,
    bootstrap_interval,
    effective_size,
    num_needed,
    proportion,
    proportion_difference,
    row_blocks,
    share_interval,
    tail_probability,
    upper_bound,
    wilson_interval,
)
from pharmclf.metrics.scores import (
    ClassScores,
    ConfusionCounts,
    accuracy,
    class_f1,
    class_scores,
    confusion_counts,
    confusion_matrix,
    macro_f1,
    top_k_hits,
)
from pharmclf.metrics.threshold import NO_ANSWER, Threshold, choose_threshold

__all__ = [
    "NO_ANSWER", "Z95", "ClassScores", "ConfusionCounts", "Estimate", "OperatingPoint", "ReliabilityBin",
    "RiskCoverage", "Threshold", "accuracy", "bootstrap_interval", "calibration_error", "choose_threshold", "class_f1",
    "class_scores", "confusion_counts", "confusion_matrix", "effective_size", "fit_temperature", "macro_f1",
    "most_probable", "num_needed", "operating_point", "proportion", "proportion_difference", "reliability",
    "risk_coverage", "row_blocks", "share_interval", "tail_probability", "top_k_hits", "upper_bound",
    "wilson_interval", "with_temperature",
]  # fmt: skip
