"""Learning-rate range test: which rates are tried, when the test ends, which rate it suggests; pure.

After Leslie Smith: the rate grows by a constant factor per step, and the loss over the rate shows where learning
begins, where it is fastest, and where it diverges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST = 1e-7, 1.0
"""Rates of the first and the last step."""
STEPS = 210
"""Steps of a test: 30 per decade."""
BETA = 0.9
"""Weight of the running mean of the loss at each step."""
_DIVERGED = 4.0  # times the lowest smoothed loss, at which the test ends
_MIN_DROP = 0.05  # share of the initial loss by which a curve must fall before a rate is suggested
_NOISE = 1.5  # standard deviations of single losses from the smoothed ones by which it must fall, too
_WINDOW = 1 / 3  # decades over which a slope is measured, half of them on each side
_BELOW = 10.0  # a suggestion is this many times below the rate at which the loss rises again


@dataclass(frozen=True)
class LrSuggestion:
    """The learning rate that a curve suggests."""

    rate: float | None
    """Two digits; None: the loss does not fall."""
    reason: str
    """One line."""


@dataclass(frozen=True)
class LrCurve:
    """The steps of a range test of one phase."""

    phase: str
    rates: list[float]
    losses: list[float]
    """Mean loss of each step's batch; finite."""
    ended: str
    """Why the test ended before the highest rate; "" if it did not."""

    def suggest(self) -> LrSuggestion:
        """The learning rate for the phase."""
        return suggest_lr(self.rates, self.losses, diverged=bool(self.ended))


def candidate_lrs() -> np.ndarray:
    """(STEPS,) learning rates, each the same factor above the one before."""
    return np.geomspace(LOWEST, HIGHEST, STEPS)


def smooth(losses: Sequence[float]) -> np.ndarray:
    """(n,) exponential running means of (n,) losses, with the correction for their start that Adam uses."""
    total, weight, means = 0.0, 0.0, list[float]()
    for loss in losses:
        total = BETA * total + (1 - BETA) * loss
        weight = BETA * weight + (1 - BETA)
        means.append(total / weight)
    return np.array(means)


def measure_curve(phase: str, steps: Iterable[tuple[float, float]]) -> LrCurve:
    """The curve of a phase; takes steps until the loss diverges."""
    rates, losses = list[float](), list[float]()
    for rate, loss in steps:
        if not math.isfinite(loss):
            return LrCurve(phase, rates, losses, f"the loss is not finite at a rate of {rate:.2g}")
        rates.append(rate)
        losses.append(loss)
        mean = smooth(losses)
        if mean[-1] > _DIVERGED * mean.min():
            reason = f"the loss is {_DIVERGED:g} times its lowest at a rate of {rate:.2g}"
            return LrCurve(phase, rates, losses, reason)
    return LrCurve(phase, rates, losses, "")


def suggest_lr(rates: Sequence[float], losses: Sequence[float], *, diverged: bool = False) -> LrSuggestion:
    """The learning rate at which the smoothed loss falls most steeply over the logarithm of the rate.

    It is at least a decade below the rate at which half of the descent is lost again. The slope is that of a line
    through a third of a decade. A curve falls if its lowest smoothed loss is below the initial level by 5 % of it, and
    by 1.5 times the scatter of single losses; otherwise no rate is suggested.

    Args:
        rates: (n,) learning rates, growing.
        losses: (n,) finite losses of the steps.
        diverged: whether the test ended after the last of them because the loss diverged.

    Raises:
        ValueError: not as many rates as losses.
    """
    if len(rates) != len(losses):
        raise ValueError(f"received {len(rates)} rates and {len(losses)} losses, expected a pair for each step")
    where = np.log10(np.asarray(rates, float))
    each = _num_steps(where, _WINDOW / 2)
    if len(rates) < 4 * each + 2:
        return LrSuggestion(None, f"only {len(rates)} steps before the loss diverged: too few for a slope")
    raw, mean = np.asarray(losses, float), smooth(losses)
    first = min(_num_steps(where, 1.0), len(rates) - 1)  # steps of a decade; the mean of fewer is no better than noise
    level = float(raw[:first].mean())
    bottom = first + int(np.argmin(mean[first:]))
    drop, scatter = level - float(mean[bottom]), float(np.std((raw - mean)[: bottom + 1]))
    if drop < max(_MIN_DROP * level, _NOISE * scatter):
        levels = f"from {level:.3g} to {mean[bottom]:.3g}, scatter {scatter:.2g}"
        return LrSuggestion(None, f"the loss does not fall: {levels}")
    risen = np.flatnonzero(mean[bottom:] > mean[bottom] + drop / 2)
    up = bottom + int(risen[0]) if len(risen) else len(rates) - 1 if diverged else None
    slopes = [
        np.polyfit(where[place - each : place + each + 1], mean[place - each : place + each + 1], 1)[0]
        for place in range(each, min(bottom, len(rates) - 1 - each) + 1)
    ]
    steepest = float(rates[each + int(np.argmin(slopes))]) if slopes else math.inf
    bound = float(rates[up]) / _BELOW if up is not None else math.inf
    if steepest <= bound:
        return LrSuggestion(_two_digits(steepest), "the loss falls most steeply there")
    reason = f"a decade below {_two_digits(bound * _BELOW):.2g}, where the loss rises again"
    return LrSuggestion(_two_digits(bound), reason)


def _num_steps(where: np.ndarray, decades: float) -> int:
    """Steps per so many decades, one at least."""
    return max(1, round(decades * (len(where) - 1) / float(where[-1] - where[0]))) if len(where) > 1 else 1


def _two_digits(number: float) -> float:
    return float(f"{number:.1e}")
