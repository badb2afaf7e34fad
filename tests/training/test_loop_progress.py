"""The time to the end of a phase: of steps and validations, without the first of either."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.training.loop_progress import PhaseClock

EPOCHS = 5


def simulate(
    step_s: float,
    validation_s: float,
    compile_s: float = 0.0,
    slow: float = 1.0,
    epochs: int = EPOCHS,
    costs: Sequence[float] = (),
) -> list[tuple[float, float, float]]:
    """A phase of epochs of 20 steps and a validation -> (time, ETA, time that was really left), for each ETA.

    The first step and the first validation take `compile_s` longer; the first epoch is `slow` times as long. `costs`
    are those of a step, epoch by epoch.
    """
    plan = BatchPlan(np.arange(200), np.arange(50), 10, 0, 0, epochs)
    assert (plan.train_steps, plan.validation_steps) == (20, 5)
    now, etas = 0.0, list[tuple[float, float]]()
    costs = costs or [1.0] * epochs
    clock = PhaseClock(plan, costs, lambda: now)
    for number in range(epochs * plan.train_steps):
        epoch, step = divmod(number, plan.train_steps)
        now += step_s * costs[epoch] * (slow if epoch == 0 else 1.0) + (compile_s if number == 0 else 0.0)
        clock.after_step(epoch, step + 1)
        if (eta := clock.eta_s(epoch, step + 1)) is not None:
            etas.append((now, eta))
        if step + 1 == plan.train_steps:
            seconds = validation_s + (compile_s if epoch == 0 else 0.0)
            now += seconds
            clock.after_validation(seconds)
    return [(at, eta, now - at) for at, eta in etas if at < 0.95 * now]


@pytest.mark.parametrize("step_s", [0.1, 0.5, 4.0, 30.0])
@pytest.mark.parametrize("validation", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("compile_s", [0.0, 20.0])
def test_an_eta_is_right_to_within_a_factor_of_two(step_s: float, validation: float, compile_s: float):
    """Graphs that are compiled at the first step and the first validation do not count."""
    etas = simulate(step_s, validation * 5 * step_s, compile_s)
    assert etas
    assert all(left / 2 <= eta <= 2 * left for _, eta, left in etas)


def test_a_first_epoch_that_is_slow_gives_no_eta():
    """It fills caches: three times as long as the others was measured. From two epochs on the speed is steady."""
    etas = simulate(0.5, 1.0, slow=3.0, epochs=30)
    first, *_ = etas[0]
    assert first > 3 * 20 * 0.5 + 3.0
    assert all(left / 2 <= eta <= 2 * left for _, eta, left in etas)


@pytest.mark.parametrize("small", [4, 8])
def test_an_eta_counts_that_later_images_are_larger(small: int):
    """At 128 pixels a step takes a third of one at 224."""
    etas = simulate(0.5, 1.0, costs=[(128 / 224) ** 2] * small + [1.0] * (12 - small), epochs=12)
    assert etas
    assert all(left / 1.5 <= eta <= 1.5 * left for _, eta, left in etas)


def test_long_epochs_give_an_eta_after_two_minutes():
    """Nobody waits for two epochs of an hour."""
    first, *_ = simulate(60.0, 60.0)[0]
    assert 120.0 <= first <= 20 * 60.0


def test_the_speed_is_that_of_the_steps_without_validations():
    now = 0.0
    clock = PhaseClock(BatchPlan(np.arange(200), np.arange(50), 10, 0, 0, EPOCHS), [0.5] * EPOCHS, lambda: now)
    assert clock.steps_per_second(0) is None
    assert clock.eta_s(0, 0) is None
    for epoch in range(2):
        for step in range(1, 21):
            now += 0.25
            clock.after_step(epoch, step)
        now += 7.0
        clock.after_validation(7.0)
    assert clock.steps_per_second(1) == pytest.approx(4.0)
