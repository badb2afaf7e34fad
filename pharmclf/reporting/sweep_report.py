"""The content of the page of a sweep: its trials, its winner, and how the winner compares with the plain run."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pharmclf.core.units import format_count
from pharmclf.evaluation.metrics import Estimate
from pharmclf.reporting.text_format import THIN, format_percent, format_points, format_with_interval
from pharmclf.reporting.trial_info import TrialInfo, best_trial

INDISTINCT = "not distinguishable"


@dataclass(frozen=True, kw_only=True)
class PlainComparison:
    """The winner and the plain run, which is trial 0, on the same test images."""

    num_images: int
    plain: Estimate
    """Test accuracy of the plain run, 0..1."""
    winner: Estimate
    """Test accuracy of the winner, 0..1."""
    difference: Estimate
    """Winner minus plain run, -1..1, with the interval of paired samples."""

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return not self.difference.low <= 0 <= self.difference.high

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON: accuracies, their difference and its interval as [low, high]."""
        return {
            "images": self.num_images,
            "plain_accuracy": self.plain.value,
            "winner_accuracy": self.winner.value,
            "difference": self.difference.value,
            "difference_interval": [self.difference.low, self.difference.high],
            "is_clear": self.is_clear,
        }


@dataclass(frozen=True, kw_only=True)
class SweepReport:
    """A sweep, complete or not."""

    name: str
    trials: Sequence[TrialInfo]
    """Those that have begun, at least one."""
    num_trials: int
    """Of the complete sweep."""
    log_names: Sequence[str]
    """Parameters that are searched by factors."""
    val_images: int
    """Images of the validation split, for the intervals of accuracies."""
    price_per_hour: float = 0.0
    """Of the share of the cluster that a trial holds; 0: unknown."""
    importances: Mapping[str, float] = field(default_factory=dict)
    """Share of each parameter, 0..1; {}: too few trials."""
    winner: TrialInfo | None = None
    """The tested trial; None: the sweep is not complete."""
    winner_folder: str = ""
    """Of the tested model, relative to that of the sweep."""
    test_accuracy: Estimate | None = None
    """Of the winner."""
    comparison: PlainComparison | None = None
    """None: there is none, because the winner is the plain run, or that has no model."""
    verdict: str = ""
    """What the result of the winner is good for; "": unknown."""
    settings: str = ""
    """Configuration of the plain run as YAML."""
    created: str = ""


def comparison_line(comparison: PlainComparison) -> str:
    """The difference of winner and plain run in a line for the console."""
    low, high = comparison.difference.low, comparison.difference.high
    text = (
        f"on {format_count(comparison.num_images, 'test image')}: {comparison.winner.value:.3f}, the plain run "
        f"{comparison.plain.value:.3f}; difference {100 * comparison.difference.value:+.1f} points "
        f"({100 * low:.1f} to {100 * high:.1f})"
    )
    return text if comparison.is_clear else f"{text}, {INDISTINCT}"


def headline(report: SweepReport) -> str:
    """What the sweep has found, in one sentence without a full stop."""
    best = best_trial(report.trials)
    if report.winner is None:
        found = f"trial {best.number} leads" if best else "none has finished an epoch"
        return f"Not complete: {len(report.trials)} of {format_count(report.num_trials, 'trial')} begun, {found}"
    if report.winner.number == 0:
        return "No trial was better than the plain run"
    name, comparison = f"Trial {report.winner.number}", report.comparison
    if comparison is None:
        return f"{name} won; there is no plain run to compare it with"
    points = f"{abs(100 * comparison.difference.value):.1f} points"
    if not comparison.is_clear:
        return f"{name} won, but is {INDISTINCT} from the plain run"
    if comparison.difference.value < 0:
        return f"{name} won on the validation images, but is {points} worse than the plain run on the test images"
    return f"{name} won: {points} better than the plain run"


def comparison_sentences(report: SweepReport) -> list[str]:
    """What is known of the difference to the plain run, and on what it rests."""
    comparison, winner = report.comparison, report.winner
    plain = next((trial for trial in report.trials if trial.number == 0), None)
    if winner is None:
        return []
    if winner.number == 0:
        return [
            "The plain run, trial 0, has the best validation accuracy. Its settings are as good as any of the sweep."
        ]
    if comparison is None:
        return [_missing_plain(plain), *_median_sentence(report.trials, winner)]
    low, high = format_points(comparison.difference.low), format_points(comparison.difference.high)
    sentences = [
        f"On the same {format_count(comparison.num_images, 'test image')} the winner is right on "
        f"{format_with_interval(comparison.winner)}, the plain run on {format_with_interval(comparison.plain)}.",
        f"Difference: {format_points(comparison.difference.value)} points, 95{THIN}% interval {low} to {high}."
        + ("" if comparison.is_clear else " The interval includes 0, so the difference may be chance."),
    ]
    if plain is not None and plain.state == "stopped":
        epochs = format_count(len(plain.history), "epoch")
        sentences.append(f"The plain run was stopped after {epochs}; trained to its end it may be better.")
    return sentences


def _missing_plain(plain: TrialInfo | None) -> str:
    if plain is None:
        return "The plain run, trial 0, has not begun."
    reason = f": {plain.reason}" if plain.reason else ""
    return f"The plain run, trial 0, has no model to compare with: it {plain.state}{reason}."


def _median_sentence(trials: Sequence[TrialInfo], winner: TrialInfo) -> list[str]:
    scores = [trial.best_accuracy for trial in trials if math.isfinite(trial.best_accuracy)]
    gap = winner.best_accuracy - statistics.median(scores)
    return [
        f"On the validation images, by which it was chosen, the winner is {100 * gap:.1f} points above the median of "
        f"{format_count(len(scores), 'trial')}. That is no measure of a gain, because the best of several is always "
        "above the median."
    ]


def crowd_sentence(report: SweepReport, low: float) -> str:
    """How many other trials reach `low`, the lower end of the interval of the best validation accuracy, 0..1."""
    best = best_trial(report.trials)
    near = sum(trial is not best and trial.best_accuracy >= low for trial in report.trials)
    others = "no other trial" if not near else "1 other trial" if near == 1 else f"{near} other trials"
    verb = "lies" if near < 2 else "lie"
    return (
        f"{others[0].upper()}{others[1:]} {verb} within the interval of the best validation accuracy "
        f"({format_percent(low)} or more)."
    )
