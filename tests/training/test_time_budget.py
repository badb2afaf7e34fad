"""A time budget shortens phases by the speed of their first epoch."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import pytest
from support.recorder import Recorder

from pharmclf.config import ConfigError, PhaseConfig, RunConfig
from pharmclf.core.events import Note
from pharmclf.training.phases import Phase, build_phases
from pharmclf.training.time_budget import deadline, fit_epochs, time_for_phase


def phase(**settings: Any) -> Phase:
    """The last phase of a run at 128 pixels."""
    return build_phases(RunConfig(image_size=128, phase2=PhaseConfig(**{"epochs": 10} | settings)))[-1]


def test_as_many_epochs_are_trained_as_end_in_time():
    """Each takes 10 steps of a second and a validation of two."""
    planned = phase()
    assert [fit_epochs(planned, 1, 1.0, 10, 2.0, left) for left in (1000.0, 108.0, 107.0, 12.0, 11.9, -5.0)] == [
        10, 10, 9, 2, 1, 1,
    ]  # fmt: skip


def test_larger_images_of_later_epochs_take_longer():
    """At 64 pixels a step takes a second, at 128 four: 10 epochs are 4 more at 64 and 5 at 128."""
    planned = phase(image_size="64-full")
    assert planned.image_sizes == (64,) * 5 + (128,) * 5
    assert fit_epochs(planned, 1, 1.0, 10, 0.0, 240.0) == 10
    assert fit_epochs(planned, 1, 1.0, 10, 0.0, 239.0) == 9
    assert fit_epochs(planned, 1, 1.0, 10, 0.0, 0.0) == 1


def test_counted_epochs_are_not_taken_apart():
    """Four epochs at 64 pixels are given as such, so that one at full size must follow."""
    assert fit_epochs(phase(image_size="64x4-full"), 1, 1.0, 10, 0.0, 0.0) == 5


def test_time_is_left_for_the_tests_and_for_a_later_phase():
    assert time_for_phase(100.0, 2.0, is_last=True) == 70.0
    assert time_for_phase(100.0, 2.0, is_last=False) == 35.0


def test_time_that_a_run_has_taken_before_counts():
    assert deadline(0.0, 100.0) == math.inf
    assert deadline(600.0, 100.0) - time.time() == pytest.approx(500.0, abs=5.0)


@pytest.mark.parametrize(("text", "expected"), [("0m", "above 0"), ("soon", "a duration")])
def test_a_budget_that_is_no_time_is_refused(text: str, expected: str):
    with pytest.raises(ConfigError, match=expected):
        RunConfig(time_budget=text)


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_out_of_time_ends_after_an_epoch_of_each_phase_and_has_a_model(make_job: Any, tmp_path: Any):
    """The schedule ends there too, and a resumed run keeps to it, however much time it has."""
    from pharmclf.training import collectives, trainer

    phases = {name: PhaseConfig(epochs=3, learning_rate=1e-3, schedule="cosine") for name in ("phase1", "phase2")}
    job = make_job(str(tmp_path), time_budget="1m", **phases)
    seen = Recorder()
    late = dataclasses.replace(job, deadline=time.time() - 1.0)
    result = trainer.Trainer(late, collectives.single_worker(), seen).fit()
    assert [(record.phase, record.epoch) for record in result.history] == [("phase1", 0), ("phase2", 0)]
    assert [event.text for event in seen.of(Note)] == [
        f"time budget: {name} trains 1 of 3 epochs" for name in ("phase1", "phase2")
    ]
    assert (tmp_path / "model" / "model.keras").is_file()
    again = trainer.Trainer(job, collectives.single_worker(), Recorder()).fit()
    assert again.history == result.history


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_with_time_enough_is_the_run_without_a_budget(make_job: Any, tmp_path: Any):
    from pharmclf.training import collectives, trainer

    losses = []
    for name, ends in (("free", math.inf), ("timed", time.time() + 3600.0)):
        job = dataclasses.replace(make_job(str(tmp_path / name)), deadline=ends)
        result = trainer.Trainer(job, collectives.single_worker(), Recorder()).fit()
        losses.append([(record.train_loss, record.val_loss) for record in result.history])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
