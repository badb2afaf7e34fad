"""Axes of the plots of a sweep: places of the values, limits and ticks, as numbers; draws nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import ticker

from pharmclf.reporting.figures import rate_text
from pharmclf.reporting.fonts import format_names
from pharmclf.reporting.trial_info import TrialInfo, best_trial, is_category, short_names

_GOLDEN = 0.618034  # the fractional parts of its multiples are spread evenly over 0..1


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The axis of one parameter."""

    name: str
    category: bool
    places: Mapping[int, float]
    """Number of the trial -> its place: the value, its logarithm, or the index of its category."""
    limits: tuple[float, float]
    ticks: Sequence[tuple[float, str]]
    """(place, text of the value there)."""

    @property
    def longest(self) -> int:
        """Characters of the longest tick."""
        return max(len(text) for _, text in self.ticks)

    def share(self, place: float) -> float:
        """A place as a share of the axis, 0..1."""
        return (place - self.limits[0]) / (self.limits[1] - self.limits[0])


def build_scales(trials: Sequence[TrialInfo], log_names: Collection[str]) -> list[Scale]:
    """An axis for each parameter; logarithmic for `log_names` whose values are all above 0."""
    names = short_names(trials[0].params if trials else ())
    return [_build_scale(trials, name, short, name in log_names) for name, short in names.items()]


def _build_scale(trials: Sequence[TrialInfo], name: str, short: str, logarithmic: bool) -> Scale:
    values: list[Any] = [trial.params[name] for trial in trials]
    if category := is_category(values):
        known = sorted({str(value) for value in values})
        places = [float(known.index(str(value))) for value in values]
        ticks = [(float(index), format_names(text, 18)) for index, text in enumerate(known)]
    elif logarithmic and min(values) > 0:
        places = [math.log10(value) for value in values]
        ticks = [(math.log10(value), rate_text(value)) for value in _log_ticks(values)]
    else:
        places = [float(value) for value in values]
        ticks = [
            (tick, f"{tick:.4g}") for tick in _linear_ticks(places, all(isinstance(value, int) for value in values))
        ]
    low, high, steps = min(places), max(places), np.diff(np.unique(places))
    margin = 0.5 if category else 0.06 * (high - low) or 0.5
    if len(steps) < 8 and len(steps) + 1 < len(places):  # spread equal values, so that their marks differ
        room = 0.16 * float(steps.min()) if len(steps) else 0.16
        margin = max(margin, 2 * room)
        spread = [room * (2 * (trial.number * _GOLDEN % 1) - 1) for trial in trials]
        places = [place + shift for place, shift in zip(places, spread, strict=True)]
    numbered = {trial.number: place for place, trial in zip(places, trials, strict=True)}
    return Scale(name=short, category=category, places=numbered, limits=(low - margin, high + margin), ticks=ticks)


def _linear_ticks(values: Sequence[float], whole: bool) -> list[float]:
    """The values themselves where they are few and far apart; else round numbers between them."""
    low, high = min(values), max(values)
    unique = sorted(set(values))
    gap = 0.12 if max(len(f"{value:.4g}") for value in unique) <= 3 else 0.22  # as wide as the texts
    if len(unique) <= 7 and (len(unique) == 1 or min(np.diff(unique)) >= gap * (high - low)):
        return unique
    ticks = ticker.MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
    room = 0.05 * (high - low)
    return [float(tick) for tick in ticks if low - room <= tick <= high + room] or [low, high]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """The values themselves where they are few and far apart; else 1, 2 and 5 times powers of ten between them."""
    unique = sorted({float(f"{value:.3g}") for value in values})
    logs = np.log10(unique)
    if len(unique) <= 5 and (len(unique) == 1 or min(np.diff(logs)) >= 0.22 * (logs[-1] - logs[0])):
        return unique
    powers = range(math.floor(logs[0]), math.ceil(logs[-1]) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        ticks = [digit * 10.0**power for power in powers for digit in digits]
        ticks = [tick for tick in ticks if unique[0] <= tick <= unique[-1]]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 5)]
    return [unique[0], unique[-1]]


def clipped_accuracies(trials: Sequence[TrialInfo]) -> tuple[dict[int, float], tuple[float, float]]:
    """Best validation accuracies as they are drawn, and the limits of their axis.

    Returns:
        Number -> accuracy, of trials with one and of diverged ones: these, and others below the axis, are at its lower
        edge. (lowest, highest) accuracy of the axis.
    """
    best = best_trial(trials)
    shown = [trial for trial in trials if trial.best and trial.state != "diverged"] + ([best] if best else [])
    low, high = accuracy_range([trial.best_accuracy for trial in shown], cut=True)
    heights = {trial.number: low for trial in trials if trial.state == "diverged"}
    heights |= {trial.number: max(trial.best_accuracy, low) for trial in shown if math.isfinite(trial.best_accuracy)}
    return heights, (low, high)


def accuracy_range(shares: Sequence[float], *, cut: bool = False) -> tuple[float, float]:
    """Limits of an axis of accuracies; with `cut` the lower one leaves out what is far below most."""
    finite = [share for share in shares if math.isfinite(share)]
    if not finite:
        return 0.0, 1.0
    low, middle, high = min(finite), float(np.median(finite)), max(finite)
    if cut:
        low = max(low, middle - 2.5 * (high - middle) - 0.02)
    room = max(0.08 * (high - low), 0.01)
    return max(0.0, low - room), high + room


def accuracy_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round accuracies between two limits and their texts, with as many digits as necessary."""
    ticks = ticker.MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    digits = max(1, math.ceil(-math.log10(ticks[1] - ticks[0]) - 1e-9))
    return [(float(tick), f"{tick:.{digits}f}") for tick in ticks if low <= tick <= min(high, 1.0 + 1e-9)]
