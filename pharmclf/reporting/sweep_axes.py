"""Where the values of a sweep lie in its pictures: places, limits and ticks of axes. Numbers only, nothing is drawn."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import ticker

from pharmclf.core.events import EpochRecord
from pharmclf.reporting.plots import format_names, rate_text
from pharmclf.reporting.sweep_tables import TrialInfo, best_trial, is_category, short_names

_GOLDEN = 0.618034  # its multiples are spread evenly over 0..1, however many there are


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How the values of one parameter lie along an axis."""

    name: str
    """Short name."""
    category: bool
    places: Mapping[int, float]
    """Number of the trial -> its place: the value, its logarithm, or the number of its category."""
    limits: tuple[float, float]
    ticks: Sequence[tuple[float, str]]
    """Places and the values there as texts."""

    @property
    def longest(self) -> int:
        """Characters of the longest tick."""
        return max(len(text) for _, text in self.ticks)

    def share(self, place: float) -> float:
        """A place as a share of the axis, 0..1."""
        return (place - self.limits[0]) / (self.limits[1] - self.limits[0])


def build_scales(trials: Sequence[TrialInfo], log_names: Collection[str]) -> list[Scale]:
    """An axis for each parameter; logarithmic for `log_names` whose values are all above 0."""
    return [_scale(trials, name, short, name in log_names) for name, short in short_names(trials[0].params).items()]


def _scale(trials: Sequence[TrialInfo], name: str, short: str, logarithmic: bool) -> Scale:
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
    if len(steps) < 8 and len(steps) + 1 < len(places):  # equal values are spread a little, to be told apart
        room = 0.16 * float(steps.min()) if len(steps) else 0.16
        margin = max(margin, 2 * room)
        spread = [room * (2 * (trial.number * _GOLDEN % 1) - 1) for trial in trials]
        places = [place + shift for place, shift in zip(places, spread, strict=True)]
    numbered = {trial.number: place for place, trial in zip(places, trials, strict=True)}
    return Scale(name=short, category=category, places=numbered, limits=(low - margin, high + margin), ticks=ticks)


def _linear_ticks(values: Sequence[float], whole: bool) -> list[float]:
    """The values themselves where they are few and far apart; else round numbers between them."""
    low, high = min(values), max(values)
    own = sorted(set(values))
    gap = 0.12 if max(len(f"{value:.4g}") for value in own) <= 3 else 0.22  # as wide as the texts
    if len(own) <= 7 and (len(own) == 1 or min(np.diff(own)) >= gap * (high - low)):
        return own
    found = ticker.MaxNLocator(6, integer=whole, steps=[1, 2, 5, 10]).tick_values(low, high)
    room = 0.05 * (high - low)
    return [float(tick) for tick in found if low - room <= tick <= high + room] or [low, high]


def _log_ticks(values: Sequence[float]) -> list[float]:
    """The values themselves where they are few and far apart; else 1, 2 and 5 times powers of ten between them."""
    own = sorted({float(f"{value:.3g}") for value in values})
    logs = np.log10(own)
    if len(own) <= 5 and (len(own) == 1 or min(np.diff(logs)) >= 0.22 * (logs[-1] - logs[0])):
        return own
    powers = range(math.floor(logs[0]), math.ceil(logs[-1]) + 1)
    for digits in ((1,), (1, 3), (1, 2, 5)):
        found = [
            digit * 10.0**power for power in powers for digit in digits if own[0] <= digit * 10.0**power <= own[-1]
        ]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 5)]
    return [own[0], own[-1]]


def accuracies(trials: Sequence[TrialInfo]) -> tuple[dict[int, float], tuple[float, float]]:
    """Number -> best validation accuracy as drawn, of trials with one and of diverged ones; and the axis's limits.

    What lies below the axis, and diverged trials, are drawn at its lower edge.
    """
    shares = {trial.number: accuracy_share(trial.best) for trial in trials if trial.best and trial.state != "diverged"}
    best = best_trial(trials)
    low, high = accuracy_range(
        [*shares.values(), *([accuracy_share(best.best)] if best and best.best else [])], cut=True
    )
    heights = {number: max(share, low) for number, share in shares.items() if math.isfinite(share)}
    heights |= {trial.number: low for trial in trials if trial.state == "diverged" and trial is not best}
    if best and best.best:
        heights[best.number] = max(accuracy_share(best.best), low)
    return heights, (low, high)


def accuracy_range(shares: Sequence[float], *, cut: bool) -> tuple[float, float]:
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
    """Round accuracies between two limits, with as many digits as tell them apart."""
    ticks = ticker.MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high)
    digits = max(1, math.ceil(-math.log10(ticks[1] - ticks[0]) - 1e-9))
    return [(float(tick), f"{tick:.{digits}f}") for tick in ticks if low <= tick <= min(high, 1.0 + 1e-9)]


def accuracy_share(epoch: EpochRecord | None) -> float:
    """The validation accuracy of an epoch; NaN where there is none."""
    return math.nan if epoch is None else epoch.val_accuracy
