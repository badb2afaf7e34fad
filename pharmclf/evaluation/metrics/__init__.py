"""Scores of a classifier and their uncertainty: pure numpy, checked against scikit-learn and by simulation."""

from pharmclf.evaluation.metrics.abstention import (
    REJECT_ALL,
    OperatingPoint,
    RiskCoverage,
    choose_threshold,
    operating_point,
    risk_coverage,
)  # fmt: skip
from pharmclf.evaluation.metrics.calibration import (
    ReliabilityBin,
    apply_temperature,
    calibration_error,
    fit_temperature,
    most_probable,
    reliability,
)  # fmt: skip
from pharmclf.evaluation.metrics.intervals import (
    Estimate,
    bootstrap_interval,
    effective_size,
    exact_interval,
    independent_size,
    mean_proportion,
    min_samples_for_guarantee,
    paired_difference,
    proportion,
    proportion_difference,
    tail_probability,
    upper_bound,
    wilson_interval,
)  # fmt: skip
from pharmclf.evaluation.metrics.scores import ConfusionCounts, class_f1, confusion_counts, macro_f1, top_k_hits

__all__ = [
    "REJECT_ALL", "ConfusionCounts", "Estimate", "OperatingPoint", "ReliabilityBin", "RiskCoverage",
    "apply_temperature", "bootstrap_interval", "calibration_error", "choose_threshold", "class_f1",
    "confusion_counts", "effective_size", "exact_interval", "fit_temperature", "independent_size", "macro_f1",
    "mean_proportion", "min_samples_for_guarantee", "most_probable", "operating_point", "paired_difference",
    "proportion", "proportion_difference", "reliability", "risk_coverage", "tail_probability", "top_k_hits",
    "upper_bound", "wilson_interval",
]  # fmt: skip
