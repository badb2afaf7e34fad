"""The learning rate of a step, and what a phase makes of its epochs."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.epoch_records import epoch_record

from pharmclf.config import PhaseConfig, StoppingConfig
from pharmclf.training.lr_schedule import EarlyStoppingState, best_phase, is_best_of_run, learning_rate, selection_score

STOPPING = StoppingConfig(early_patience=3, plateau_patience=2, plateau_factor=0.5, learning_rate_floor=1e-7)


def _after(epochs: list[tuple[float, float]], stopping: StoppingConfig = STOPPING) -> EarlyStoppingState:
    """The monitor after epochs of (validation accuracy, validation loss)."""
    monitor = EarlyStoppingState()
    for epoch, (accuracy, loss) in enumerate(epochs):
        monitor = monitor.after_epoch(epoch, accuracy, loss, stopping)
    return monitor


def test_a_constant_rate_is_constant_but_for_plateaus():
    """Any step has the same rate; what plateaus have left of it multiplies it, down to the floor."""
    phase = PhaseConfig(learning_rate=1e-4)
    assert {learning_rate(phase, STOPPING, step, 100, 1.0) for step in range(100)} == {1e-4}
    assert learning_rate(phase, STOPPING, 0, 100, 0.25) == pytest.approx(2.5e-5)
    assert learning_rate(phase, STOPPING, 0, 100, 1e-9) == 1e-7


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_rate_below_the_floor_is_not_lifted_to_it(schedule: str):
    """A floor stops a fall; it does not raise what was given lower."""
    phase = PhaseConfig(learning_rate=1e-9, schedule=schedule, warmup=0)  # type: ignore[arg-type]
    assert {learning_rate(phase, STOPPING, step, 10, 1.0) for step in range(10)} == {1e-9}


def test_a_cosine_warms_up_in_a_line_to_the_peak():
    """Ten steps of warm-up: a tenth of the peak more at each, the peak at the tenth and still at the next."""
    phase = PhaseConfig(learning_rate=1e-3, schedule="cosine", warmup=0.1)
    rates = [learning_rate(phase, STOPPING, step, 100, 1.0) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert rates[10] == max(rates) == 1e-3


def test_a_cosine_falls_by_half_a_cosine_to_the_floor():
    """Half the peak in the middle of the fall, ever lower, and never below the floor; plateaus do not count."""
    phase = PhaseConfig(learning_rate=1e-3, schedule="cosine", warmup=0)
    rates = [learning_rate(phase, STOPPING, step, 1000, 0.1) for step in range(1000)]
    assert rates[0] == 1e-3
    assert rates[500] == pytest.approx(5e-4)
    assert rates[250] == pytest.approx(1e-3 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 1e-7 < rates[-10]


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 500), st.floats(0, 1), st.sampled_from(["constant", "cosine"]))
def test_no_rate_is_negative_or_above_the_peak(rate: float, warmup: float, steps: int, floor: float, schedule: str):
    """For any phase of any length, all warm-up and one step included."""
    phase = PhaseConfig(learning_rate=rate, schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    stopping = StoppingConfig(learning_rate_floor=floor)
    rates = [learning_rate(phase, stopping, step, steps, 1.0) for step in range(steps)]
    assert min(rates) >= 0
    assert max(rates) <= rate * (1 + 1e-12)  # but for rounding


def test_early_stopping_waits_for_its_patience():
    """Three epochs without a better accuracy end the phase, two do not; a better one begins the count anew."""
    epochs = [(0.5, 1.0), (0.4, 0.9), (0.5, 0.8)]
    assert not _after(epochs).should_stop(STOPPING)
    assert _after([*epochs, (0.3, 0.7)]).should_stop(STOPPING)
    assert not _after([*epochs, (0.6, 0.7), (0.1, 1.0)]).should_stop(STOPPING)
    assert not _after([*epochs, (0.3, 0.7)]).should_stop(StoppingConfig(early_patience=0))


def test_nothing_stops_before_the_first_epoch():
    """A phase that has no epoch yet goes on, with a patience of one too, and its first epoch is its best."""
    stopping = StoppingConfig(early_patience=1)
    assert not EarlyStoppingState().should_stop(stopping)
    first = _after([(0.0, 9.0)], stopping)
    assert (first.best_epoch, first.best_accuracy, first.best_loss) == (0, 0.0, 9.0)
    assert not first.should_stop(stopping)


def test_a_plateau_halves_the_rate_once_per_patience():
    """Two epochs without a lower loss halve it, two more halve it again; a lower loss begins the count anew."""
    flat = [(0.5, 1.0)] * 2
    assert _after([(0.5, 1.0), *flat[:1]]).scale == 1
    assert _after([(0.5, 1.0), *flat]).scale == 0.5
    assert _after([(0.5, 1.0), *flat, *flat[:1]]).scale == 0.5
    assert _after([(0.5, 1.0), *flat, *flat]).scale == 0.25
    assert _after([(0.5, 1.0), (0.5, 1.0), (0.5, 0.9), (0.5, 0.9)]).scale == 1
    assert _after([(0.5, 1.0), *flat, *flat], StoppingConfig(plateau_patience=0)).scale == 1


def test_a_loss_must_fall_by_more_than_1e_4_to_count():
    """As in Keras: what creeps down by less is a plateau; creeping over several epochs adds up."""
    creeping = [(0.5, 1.0 - 0.00004 * epoch) for epoch in range(3)]
    assert _after(creeping).scale == 0.5
    assert _after(creeping).lowest_loss == 1.0
    falling = [(0.5, 1.0 - 0.0002 * epoch) for epoch in range(3)]
    assert _after(falling).scale == 1
    adding_up = [(0.5, 1.0 - 0.00006 * epoch) for epoch in range(3)]
    assert _after(adding_up).scale == 1


def test_early_stopping_and_plateaus_agree_with_keras():
    """The decisions of keras.callbacks.EarlyStopping and ReduceLROnPlateau, written out, over a hundred histories."""

    def keras_decisions(epochs: list[tuple[float, float]]) -> tuple[bool, float]:
        best, wait, stop = -math.inf, 0, False
        lowest, idle, rate = math.inf, 0, 1.0
        for accuracy, loss in epochs:
            wait += 1
            if accuracy > best:
                best, wait = accuracy, 0
            stop = wait >= STOPPING.early_patience
            if loss < lowest - 1e-4:
                lowest, idle = loss, 0
            else:
                idle += 1
                if idle >= STOPPING.plateau_patience:
                    rate, idle = rate * 0.5, 0
            if stop:
                break
        return stop, rate

    def ours(epochs: list[tuple[float, float]]) -> tuple[bool, float]:
        monitor = EarlyStoppingState()
        for epoch, (accuracy, loss) in enumerate(epochs):
            monitor = monitor.after_epoch(epoch, accuracy, loss, STOPPING)
            if monitor.should_stop(STOPPING):
                break
        return monitor.should_stop(STOPPING), monitor.scale

    for seed in range(100):
        drawn = np.random.default_rng(seed).integers(0, [7, 11], (12, 2)) / 10
        epochs = [(float(accuracy), float(loss)) for accuracy, loss in drawn]
        assert ours(epochs) == keras_decisions(epochs)


def test_of_equally_accurate_epochs_the_one_of_lower_loss_is_best():
    """A tie goes to the lower loss, and to the earlier epoch where that is equal too; patience still counts."""
    monitor = _after([(0.5, 1.0), (0.5, 0.8), (0.5, 0.8), (0.4, 0.1)])
    assert (monitor.best_epoch, monitor.best_accuracy, monitor.best_loss) == (1, 0.5, 0.8)
    assert monitor.since_best == 3
    assert monitor.should_stop(STOPPING)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 100)), max_size=10))
def test_a_monitor_survives_json(epochs: list[tuple[float, float]]):
    """Strict JSON holds it before the first epoch too, when its losses are infinite, and it goes on as the unbroken."""
    monitor = _after(epochs)
    there = EarlyStoppingState.from_dict(json.loads(json.dumps(monitor.to_dict(), allow_nan=False)))
    assert there == monitor
    assert there.after_epoch(9, 0.5, 0.5, STOPPING) == monitor.after_epoch(9, 0.5, 0.5, STOPPING)


def test_epochs_are_chosen_by_balanced_accuracy_where_it_is_known():
    """Where classes are weighed the record has it; elsewhere, and in older records, validation accuracy counts."""
    assert selection_score(epoch_record(val_accuracy=0.9, val_balanced_accuracy=0.5)) == 0.5
    assert selection_score(epoch_record(val_accuracy=0.9)) == 0.9


def test_the_best_phase_has_the_best_accuracy_then_the_lowest_loss():
    """Not the last one by itself; of equal phases the first."""

    def monitors(*bests: tuple[float, float]) -> dict[str, EarlyStoppingState]:
        return {f"phase{i + 1}": _after([best]) for i, best in enumerate(bests)}

    assert best_phase(monitors((0.7, 1.0), (0.8, 2.0))) == "phase2"
    assert best_phase(monitors((0.8, 2.0), (0.7, 1.0))) == "phase1"
    assert best_phase(monitors((0.8, 2.0), (0.8, 1.0))) == "phase2"
    assert best_phase(monitors((0.8, 1.0), (0.8, 1.0))) == "phase1"
    assert best_phase(monitors((0.1, 1.0))) == "phase1"


def test_the_best_epoch_of_a_run_is_the_best_of_all_phases():
    """A first epoch of phase 2 is the best of its phase and not of the run, until it beats phase 1."""
    first = EarlyStoppingState(best_accuracy=0.9, best_loss=0.3, best_epoch=4)
    second = EarlyStoppingState(best_accuracy=0.8, best_loss=0.1, best_epoch=0)
    assert is_best_of_run({"phase1": first}, "phase1", 4)
    assert not is_best_of_run({"phase1": first}, "phase1", 3)
    assert not is_best_of_run({"phase1": first, "phase2": second}, "phase2", 0)
    assert not is_best_of_run({"phase1": first, "phase2": first}, "phase2", 4)
    assert is_best_of_run({"phase1": first, "phase2": dataclasses.replace(second, best_accuracy=0.9)}, "phase2", 0)
