"""Shortens the phases of a run for its time budget, by the speed of the epochs so far; pure but for the clock."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from pharmclf.config import ConfigError
from pharmclf.config.parsing import parse_image_sizes
from pharmclf.training.phases import Phase

_TEST_S = 20.0  # saved models, figures and the report
_TEST_PASSES = 5.0  # over images as many as those of the validation split: two models on validation and test images
_EARLIER_SHARE = 0.5  # of the time left, for a phase that is not the last one


def deadline(budget_s: float, spent_s: float) -> float:
    """`time.time()` at which a run should end.

    Args:
        budget_s: of the run; 0: none.
        spent_s: seconds that it has taken, in this process and before.
    """
    return time.time() + budget_s - spent_s if budget_s else math.inf


def time_for_phase(seconds_left: float, validation_s: float, *, is_last: bool) -> float:
    """Seconds that the rest of a phase may take, so that the model is tested in time."""
    left = seconds_left - _TEST_S - _TEST_PASSES * validation_s
    return left if is_last else left * _EARLIER_SHARE


def fit_epochs(phase: Phase, done: int, step_s: float, steps: int, validation_s: float, seconds_left: float) -> int:
    """The most epochs of a phase, up to those that are configured, that end in time.

    Args:
        phase: with its configured epochs.
        done: epochs that have ended, 1 or more.
        step_s: seconds of a training step at the size of the last one of them.
        steps: training steps of an epoch.
        validation_s: seconds of the validation after an epoch.
        seconds_left: for the rest of the phase.

    Returns:
        The fewest that its image sizes allow, `done` or more, if none ends in time.
    """
    settings, full = phase.settings, max(phase.image_sizes, default=1)
    measured, fewest = phase.step_costs(full)[done - 1], settings.epochs
    for epochs in range(settings.epochs, done - 1, -1):
        try:
            sizes = parse_image_sizes(settings.image_size, epochs, phase.name, full)
        except ConfigError:  # counts of epochs that do not add up to so few
            continue
        planned = replace(phase, settings=replace(settings, epochs=epochs), image_sizes=sizes)
        fewest, num_steps = epochs, steps * sum(planned.step_costs(full)[done:]) / measured
        if num_steps * step_s + (epochs - done) * validation_s <= seconds_left:
            break
    return fewest
