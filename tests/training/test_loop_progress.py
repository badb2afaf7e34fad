"""The time to the end of a phase: of steps and validations, without the first of either."""

from __future__ import annotations

import numpy as np
import pytest

from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.training.loop_progress import PhaseClock

EPOCHS = 5


def simulate(step_s: float, validation_s: float, first_step_s: float, first_validation_s: float) -> list[float]:
    """A phase of 5 epochs of 20 steps and 5 validation steps -> true time divided by the ETA, for each ETA that is
    given before the last tenth."""
    plan = BatchPlan(np.arange(200), np.arange(50), 10, 0, 0, EPOCHS)
    assert (plan.train_steps, plan.validation_steps) == (20, 5)
    now, etas = 0.0, list[tuple[float, float]]()
    clock = PhaseClock(plan, EPOCHS, lambda: now)
    for epoch in range(EPOCHS):
        for step in range(1, plan.train_steps + 1):
            now += first_step_s if (epoch, step) == (0, 1) else step_s
            clock.after_step(epoch, step)
            if (eta := clock.eta_s(epoch, step)) is not None:
                etas.append((now, eta))
        seconds = first_validation_s if epoch == 0 else validation_s
        now += seconds
        clock.after_validation(seconds)
    return [(now - at) / eta for at, eta in etas if at < 0.9 * now]


@pytest.mark.parametrize("step_s", [0.1, 0.5, 4.0])
@pytest.mark.parametrize("validation", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("slow", [1.0, 30.0])
def test_an_eta_is_right_to_within_a_factor_of_two(step_s: float, validation: float, slow: float):
    """Graphs that are compiled at the first step and the first validation do not count."""
    whole = validation * 5 * step_s
    ratios = simulate(step_s, whole, slow * step_s, whole + slow * step_s)
    assert ratios
    late = ratios if slow == 1.0 else ratios[20:]  # the first validation itself cannot be foreseen
    assert all(0.5 <= ratio <= 2.0 for ratio in late), (min(late), max(late))


def test_the_speed_is_that_of_the_steps_without_validations():
    now = 0.0
    clock = PhaseClock(BatchPlan(np.arange(200), np.arange(50), 10, 0, 0, EPOCHS), EPOCHS, lambda: now)
    assert clock.steps_per_second() is None
    assert clock.eta_s(0, 0) is None
    for epoch in range(2):
        for step in range(1, 21):
            now += 0.25
            clock.after_step(epoch, step)
        now += 7.0
        clock.after_validation(7.0)
    assert clock.steps_per_second() == pytest.approx(4.0)
