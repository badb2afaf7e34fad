"""Ray Train workers: real ones, on the shared Ray."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.changed_files import CHANGED, with_changed
from support.recorder import Recorder

from pharmclf.config import ConfigError, HeadConfig, PhaseConfig
from pharmclf.core.events import EpochEnd, Event, ImagesQuarantined
from pharmclf.core.signals import StopRequested
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.distributed.cluster import resolve_workers
from pharmclf.distributed.controller import train_on_workers
from pharmclf.training.checkpoint import list_checkpoints, newest_checkpoint


class Silent:
    """Watches, and asks to stop once an epoch of a phase has been reported."""

    def __init__(self, stop_in: str | None = None) -> None:
        self.stop_in, self.seen = stop_in, False

    def on_event(self, event: Event, /) -> None:
        self.seen |= isinstance(event, EpochEnd) and event.record.phase == self.stop_in

    def should_stop(self) -> bool:
        return self.seen


def weights(folder: str) -> dict[str, np.ndarray]:
    found = newest_checkpoint(f"{folder}/checkpoints")
    assert found is not None
    return found[1]["weights"]


def largest_difference(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert set(one) == set(other)
    return max(float(np.abs(one[name] - other[name]).max()) for name in one)


# the rates of the reference run: Adam moves a weight by up to the rate whatever its gradient, so that rounding alone
# turns a gradient of nearly nothing, and with it a step of the full rate
RATES = {
    "phase1": PhaseConfig(epochs=1, learning_rate=1e-4),
    "phase2": PhaseConfig(epochs=1, learning_rate=1e-5),
}


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.parametrize("dropout", [pytest.param(0.0, marks=pytest.mark.slow), 0.3])
def test_two_workers_take_the_steps_of_one(
    make_job: Any, drawn_manifest: Manifest, tmp_path: Path, dropout: float
) -> None:
    """One and two workers: the same weights to 1e-4 and the same validation metrics; with dropout, too.

    With dropout two images have changed since they were listed: both leave out the same rows, and divide by the rest.
    """
    changed = [int(drawn_manifest.rows(split)[1]) for split in ("train", "validation")] if dropout else []
    images = ImageSet.of(with_changed(drawn_manifest, changed))
    outcomes = {}
    for workers in (1, 2):
        head = HeadConfig(dense=(32,), dropout=dropout)
        job = make_job(str(tmp_path / str(workers)), num_workers=str(workers), head=head, **RATES)
        observer = Recorder()
        outcomes[workers] = train_on_workers(dataclasses.replace(job, images=images), observer)
        told = [pair for event in observer.of(ImagesQuarantined) for pair in event.reasons.items()]
        assert dict(told) == dict.fromkeys(changed, CHANGED)
        assert outcomes[workers].workers == workers
    assert largest_difference(weights(str(tmp_path / "1")), weights(str(tmp_path / "2"))) <= 1e-4
    for one, two in zip(outcomes[1].history, outcomes[2].history, strict=True):
        assert one.val_accuracy == two.val_accuracy
        assert one.val_loss == pytest.approx(two.val_loss, abs=1e-4)
        assert one.train_loss == pytest.approx(two.train_loss, abs=1e-4)


@pytest.mark.ray
@pytest.mark.tf
def test_this_process_a_worker_and_auto_give_the_same_losses(make_job: Any, tmp_path: Path) -> None:
    """To the last bit, with dropout and augmentation; auto is this process here."""
    outcomes = {}
    for workers in ("0", "1", "auto"):
        job = make_job(str(tmp_path / workers), num_workers=workers, **RATES)
        job = dataclasses.replace(job, config=resolve_workers(job.config)[0])
        outcomes[workers] = train_on_workers(job, Silent())
    assert [outcome.workers for outcome in outcomes.values()] == [0, 1, 0]
    here, worker, chosen = (
        [(record.train_loss, record.val_loss, record.val_accuracy) for record in outcome.history]
        for outcome in outcomes.values()
    )
    assert here == worker == chosen


@pytest.mark.ray
@pytest.mark.tf
def test_workers_that_exchange_bfloat16_train_as_one_that_exchanges_nothing(make_job: Any, tmp_path: Path) -> None:
    """Each loss within one percent, and as many images counted."""
    settings: dict[str, Any] = RATES | {"all_reduce_dtype": "bfloat16"}
    one, two = (
        train_on_workers(make_job(str(tmp_path / workers), num_workers=workers, **settings), Silent())
        for workers in ("0", "2")
    )
    assert two.workers == 2
    for alone, together in zip(one.history, two.history, strict=True):
        assert together.train_loss == pytest.approx(alone.train_loss, rel=1e-2)
        assert together.val_accuracy == pytest.approx(alone.val_accuracy, abs=0.1)


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_begun_with_two_workers_ends_with_one(make_job: Any, tmp_path: Path) -> None:
    """Stopped with two workers in phase 2 and resumed with one: it goes on where it stood, as an unbroken run would."""
    settings: dict[str, Any] = RATES | {"phase2": PhaseConfig(epochs=3, learning_rate=1e-5)}
    folder = str(tmp_path / "moved")
    with pytest.raises(StopRequested):
        train_on_workers(make_job(folder, num_workers="2", **settings), Silent(stop_in="phase1"))
    position = list_checkpoints(f"{folder}/checkpoints")[-1].position
    assert position.phase == 1
    resumed = train_on_workers(make_job(folder, num_workers="1", **settings), Silent())
    whole = train_on_workers(make_job(str(tmp_path / "whole"), num_workers="1", **settings), Silent())
    losses = [[record.train_loss for record in outcome.history] for outcome in (resumed, whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert largest_difference(weights(folder), weights(str(tmp_path / "whole"))) <= 1e-4


@pytest.mark.ray
@pytest.mark.tf
def test_bad_input_that_only_a_worker_sees_comes_back_as_such(make_job: Any, tmp_path: Path) -> None:
    """An unfreeze depth beyond the backbone is a ConfigError in the driver, not a failure of a worker."""
    with pytest.raises(ConfigError, match="unfreeze_blocks: received 99"):
        train_on_workers(make_job(str(tmp_path), num_workers="1", unfreeze_blocks=99), Silent())
