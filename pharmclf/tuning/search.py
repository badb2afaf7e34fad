"""Which parameters a trial has: a function of its number, the seed, and what is known of the other trials.

It holds no state, so that a resumed sweep continues like an unbroken one.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import TrialState, create_trial

from pharmclf.config import RunConfig
from pharmclf.tuning.options import SearchName
from pharmclf.tuning.space import Parameter, Space, Value

STARTUP = 10
"""Trials that TPE draws at random before it begins to learn."""


@dataclass(frozen=True)
class ObservedTrial:
    """A trial as the search sees it."""

    values: dict[str, Value]
    """Of the parameters that count in it."""
    score: float | None
    """Best validation accuracy; None: it has not ended, or failed."""
    ended: bool


@dataclass(frozen=True)
class Search:
    """A way to choose parameters."""

    name: SearchName
    space: Space
    seed: int

    @property
    def max_trials(self) -> float:
        """Trials that there can be at most, the plain run's not counted.

        Raises:
            ConfigError: a grid over a range without points.
        """
        return len(self._grid) if self.name == "grid" else float("inf")

    def depends_on_others(self, number: int) -> bool:
        """Whether the choice of a trial depends on what others have shown."""
        return self.name == "tpe" and number >= STARTUP

    def propose(self, number: int, known: Sequence[ObservedTrial]) -> dict[str, Value]:
        """The parameters of a trial.

        Args:
            number: of the trial, from 1; 0 is the plain run's.
        """
        if self.name == "grid":
            return dict(self._grid[number - 1])
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        seed = (self.seed * 1_000_003 + number) % 2**32
        if self.depends_on_others(number):
            with warnings.catch_warnings():  # of constant_liar, once for every trial
                warnings.simplefilter("ignore", ExperimentalWarning)
                sampler: Any = optuna.samplers.TPESampler(n_startup_trials=0, constant_liar=True, seed=seed)
        else:
            sampler = optuna.samplers.RandomSampler(seed=seed)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in known if self.depends_on_others(number) else ():
            if frozen := self._frozen(trial):
                study.add_trial(frozen)
        asked = study.ask()
        values: dict[str, Value] = {}
        for parameter in self.space.parameters:
            if self.space.is_active(parameter, values):
                values[parameter.name] = _suggest(asked, parameter)
        return values

    @functools.cached_property
    def _grid(self) -> list[dict[str, Value]]:
        return list(self.space.grid())

    def _frozen(self, trial: ObservedTrial) -> Any:
        """A trial for Optuna; None where it failed, or lies outside of the space, as the plain run may."""
        if trial.ended and (trial.score is None or math.isnan(trial.score)):
            return None
        distributions = {p.name: _distribution(p) for p in self.space.parameters if p.name in trial.values}
        state = TrialState.COMPLETE if trial.ended else TrialState.RUNNING
        value = trial.score if trial.ended else None
        try:
            return create_trial(params=dict(trial.values), distributions=distributions, value=value, state=state)
        except ValueError:  # a value is outside of its distribution
            return None


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """What decides the trials of a sweep."""

    base: RunConfig
    """The plain run."""
    space: Space
    search: Search
    total: int
    """Trials in all."""
    folder: str
    """Of the sweep."""
    fingerprints: Mapping[str, Any]
    """data and weights, as of a plain run."""
    kept: Mapping[str, Sequence[int]]
    """By `feature_cache_settings` a configuration, the depths with cached features."""
    rungs: Sequence[int]
    """Where trials are compared; none: all train to their end."""
    factor: int
    batch_heads: bool
    precision: str
    """That trials compute in; `auto` has become what the device takes."""


def _distribution(parameter: Parameter) -> BaseDistribution:
    if parameter.values:
        return CategoricalDistribution(list(parameter.values))
    if parameter.is_whole:
        return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
    return FloatDistribution(parameter.low, parameter.high, log=_is_log(parameter))


def _is_log(parameter: Parameter) -> bool:
    """Whether TPE works on logarithms; not where both ends have the same one, by whose difference it would divide."""
    return parameter.log and math.log(parameter.low) < math.log(parameter.high)


def _suggest(asked: Any, parameter: Parameter) -> Value:
    name, low, high = parameter.name, parameter.low, parameter.high
    if parameter.values:
        choice: Value = asked.suggest_categorical(name, list(parameter.values))
        return choice
    if parameter.is_whole:
        return int(asked.suggest_int(name, int(low), int(high), log=parameter.log))
    value = float(asked.suggest_float(name, low, high, log=_is_log(parameter)))
    return min(high, max(low, value))  # exp(log(low)) may round below low
