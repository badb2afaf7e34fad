"""The learning-rate range test as a matter of numbers: which rates are tried, when it ends, what it proposes; pure.

After Leslie Smith: the rate grows by the same factor from step to step, and the loss over the rate tells where learning
begins, where it is fastest, and where it breaks down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOWEST, HIGHEST = 1e-7, 1.0
"""The rates of the first and of the last step."""
STEPS = 210
"""Steps of a test: 30 a decade."""
BETA = 0.9
"""What the running mean of the loss keeps of itself at each step."""
_DIVERGED = 4.0  # times the lowest smoothed loss, at which the test ends
_MIN_DROP = 0.05  # share of the loss at the start, which a curve must fall by to propose anything
_NOISE = 1.5  # deviations of single losses from the smoothed ones, which it must fall by as well
_WINDOW = 1 / 3  # decades over which a slope is measured, half of them on each side
_BELOW = 10.0  # a proposal is this many times below the rate at which the loss is on its way up again


@dataclass(frozen=True)
class LrSuggestion:
    """What a curve says."""

    rate: float | None
    """The proposed learning rate, two digits; None: the curve shows no descent."""
    reason: str
    """In one line: why this one, or why none."""


@dataclass(frozen=True)
class LrCurve:
    """What a test has seen of a phase."""

    phase: str
    rates: list[float]
    losses: list[float]
    """Mean loss of each step's batch; finite."""
    ended: str
    """Why it ended before the highest rate; "" where it did not."""


def candidate_lrs(steps: int = STEPS, lowest: float = LOWEST, highest: float = HIGHEST) -> np.ndarray:
    """(steps,) learning rates, each the same factor above the one before.

    Raises:
        ValueError: fewer than two steps, or bounds that are no range.
    """
    if steps < 2 or not 0 < lowest < highest:
        raise ValueError(f"received {steps} steps from {lowest} to {highest}, expected two or more, of rates above 0")
    return np.geomspace(lowest, highest, steps)


class Smoothing:
    """The running mean of losses, each weighing `BETA` times what the one behind it weighs, corrected for its start."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0
        self.lowest = math.inf
        """The lowest mean so far."""

    def add(self, loss: float) -> float:
        """The mean with one more loss."""
        self._sum = BETA * self._sum + (1 - BETA) * loss
        self._weight = BETA * self._weight + (1 - BETA)
        mean = self._sum / self._weight
        self.lowest = min(self.lowest, mean)
        return mean


def smooth(losses: Sequence[float]) -> np.ndarray:
    """(n,) running means of (n,) losses."""
    smoothing = Smoothing()
    return np.array([smoothing.add(loss) for loss in losses])


def stop_reason(loss: float, mean: float, lowest: float) -> str:
    """Why a test ends behind a step; "" where it goes on.

    Args:
        loss: of the step.
        mean: the smoothed loss.
        lowest: the lowest smoothed loss so far.
    """
    if not math.isfinite(loss):
        return "the loss is not finite"
    return f"the loss is {_DIVERGED:g} times its lowest" if mean > _DIVERGED * lowest else ""


def suggest_lr(rates: Sequence[float], losses: Sequence[float], *, diverged: bool = False) -> LrSuggestion:
    """The learning rate that a curve speaks for.

    It is the rate at which the smoothed loss falls most steeply over the logarithm of the rate, but at least a decade
    below the one at which half of the descent is lost again. The slope is that of a line through a third of a decade.
    A curve falls if its lowest smoothed loss is below the level at the start by 5 % of it, and by 1.5 times the
    scatter of single losses; else there is no proposal.

    Args:
        rates: (n,) learning rates, growing.
        losses: (n,) finite losses of the steps.
        diverged: whether the test ended behind the last of them because the loss broke down.

    Raises:
        ValueError: not as many rates as losses.
    """
    if len(rates) != len(losses):
        raise ValueError(f"received {len(rates)} rates and {len(losses)} losses, expected a pair for each step")
    where = np.log10(np.asarray(rates, float))
    each = _num_steps(where, _WINDOW / 2)
    if len(rates) < 4 * each + 2:
        return LrSuggestion(None, f"only {len(rates)} steps before the loss broke down: too few for a slope")
    raw, mean = np.asarray(losses, float), smooth(losses)
    first = min(_num_steps(where, 1.0), len(rates) - 1)  # steps of a decade; the mean of fewer is no better than noise
    level = float(raw[:first].mean())
    bottom = first + int(np.argmin(mean[first:]))
    drop, scatter = level - float(mean[bottom]), float(np.std((raw - mean)[: bottom + 1]))
    if drop < max(_MIN_DROP * level, _NOISE * scatter):
        return LrSuggestion(
            None, f"the loss does not fall: from {level:.3g} to {mean[bottom]:.3g}, scatter {scatter:.2g}"
        )
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
    return LrSuggestion(
        _two_digits(bound), f"a decade below {_two_digits(bound * _BELOW):.2g}, where the loss rises again"
    )


def _num_steps(where: np.ndarray, decades: float) -> int:
    """Steps within so many decades, one at least."""
    return max(1, round(decades * (len(where) - 1) / float(where[-1] - where[0]))) if len(where) > 1 else 1


def _two_digits(number: float) -> float:
    return float(f"{number:.1e}")
