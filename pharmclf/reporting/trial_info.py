"""A trial of a sweep as reports show it, and the order of trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pharmclf.core.events import EpochRecord
from pharmclf.training.lr_schedule import selection_score

TrialState = Literal["running", "trained", "stopped", "diverged", "failed"]
ParameterValue = float | int | str | bool


@dataclass(frozen=True, kw_only=True)
class TrialInfo:
    """Parameters, state and epochs of one trial."""

    number: int
    """0 is the configuration of the plain run."""
    params: Mapping[str, ParameterValue]
    """The searched parameters with the values in effect; every trial of a sweep has the same names, in one order."""
    state: TrialState
    """running; trained to its end; stopped by successive halving; diverged: its loss is not finite; failed."""
    reason: str = ""
    """Why it was stopped, diverged or failed."""
    history: Mapping[int, EpochRecord] = field(default_factory=dict)
    """Its epochs in order, by their number from 1, counted over both phases."""
    seconds: float = 0.0
    """Wall-clock time of the trial in its worker; of trials that were trained as one program, its share."""
    cpu_s: float = 0.0
    """CPU-seconds of its workers."""
    gpu_s: float = 0.0
    """GPU-seconds that it held."""

    @property
    def best_number(self) -> int | None:
        """Number of the epoch that the trial has chosen: by `selection_score`, of equals the lowest loss."""
        return max(self.history, key=lambda number: _score(self.history[number]), default=None)

    @property
    def best(self) -> EpochRecord | None:
        """Record of that epoch."""
        return None if self.best_number is None else self.history[self.best_number]

    @property
    def best_accuracy(self) -> float:
        """Validation accuracy of that epoch, 0..1; NaN where there is none."""
        return self.best.val_accuracy if self.best else math.nan

    @property
    def train_s(self) -> float:
        """Seconds of all its epochs."""
        return sum(epoch.seconds for epoch in self.history.values())


def rank_trials(trials: Iterable[TrialInfo]) -> list[TrialInfo]:
    """The best validation accuracy first, of equals the lowest loss, then the number; trials without epochs last."""

    def key(trial: TrialInfo) -> tuple[bool, float, float, int]:
        accuracy, gain = _score(trial.best) if trial.best else (0.0, 0.0)
        return trial.best is None, -accuracy, -gain, trial.number

    return sorted(trials, key=key)


def best_trial(trials: Iterable[TrialInfo]) -> TrialInfo | None:
    """The first of the ranked trials; None where no epoch is finished."""
    return next((trial for trial in rank_trials(trials) if trial.best), None)


def _score(epoch: EpochRecord) -> tuple[float, float]:
    """(accuracy, -loss) of an epoch; a number that is not finite counts as the worst, so that epochs have an order."""
    accuracy, gain = (
        number if math.isfinite(number) else -math.inf for number in (selection_score(epoch), -epoch.val_loss)
    )
    return accuracy, gain


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Each dotted name with the fewest of its last parts that no other name ends in: head.dropout -> dropout."""
    split = {name: name.split(".") for name in names}

    def shorten(name: str) -> str:
        for count in range(1, len(split[name])):
            tail = split[name][-count:]
            if sum(parts[-count:] == tail for parts in split.values()) == 1:
                return ".".join(tail)
        return name

    return {name: shorten(name) for name in split}


def is_category(values: Iterable[ParameterValue]) -> bool:
    """Whether a parameter with these values has no order: texts, or yes and no."""
    return any(isinstance(value, str | bool) for value in values)
