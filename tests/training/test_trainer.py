"""The loop in this process: small, on drawn images, with the real network at 64 pixels."""

from __future__ import annotations

import dataclasses
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.recorder import Recorder

from pharmclf import storage
from pharmclf.config import ConfigError, HeadConfig, OptimizerConfig, PhaseConfig, RunConfig, StoppingConfig
from pharmclf.core.events import EpochEnd, EpochRecord, Event
from pharmclf.core.signals import StopRequested
from pharmclf.data.batch_sampler import BatchPlan, effective_batch_size
from pharmclf.training.checkpoint import list_checkpoints, newest_checkpoint
from pharmclf.training.context import (
    CHECKSUMS_FILE,
    LABELS_FILE,
    MODEL_FILE,
    PIXELS_FILE,
    TrainingContext,
    TrainingDivergedError,
)
from pharmclf.training.lr_schedule import BALANCED_NOTE, best_phase
from pharmclf.training.phases import Position, build_phases
from pharmclf.training.train_state import TrainResult

pytestmark = [pytest.mark.tf, pytest.mark.ray]


def run(job: TrainingContext, stop_after: int | None = None) -> tuple[TrainResult, Recorder]:
    from pharmclf.training import collectives, trainer

    recorder = Recorder(stop_after)
    return trainer.Trainer(job, collectives.single_worker(), recorder).fit(), recorder


def final_tensors(job: TrainingContext) -> dict[str, dict[str, np.ndarray]]:
    found = newest_checkpoint(job.checkpoints)
    assert found is not None
    return found[1]


def same_bits(one: dict[str, dict[str, np.ndarray]], other: dict[str, dict[str, np.ndarray]]) -> bool:
    return all(
        set(one[file]) == set(other[file]) and all(np.array_equal(one[file][k], other[file][k]) for k in one[file])
        for file in ("weights", "optimizer")
    )


def without_times(history: list[EpochRecord]) -> list[EpochRecord]:
    return [dataclasses.replace(record, seconds=0.0, images_per_second=0.0) for record in history]


@pytest.fixture(scope="module")
def unbroken(make_job: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingContext, TrainResult]:
    job = make_job(str(tmp_path_factory.mktemp("unbroken")))
    levels = pa.repeat(4095, len(job.images))  # which no JPEG is changed by
    job = dataclasses.replace(job, images=dataclasses.replace(job.images, white_level=levels))
    return job, run(job)[0]


def test_a_run_trains_both_phases_and_saves_a_model(unbroken: tuple[TrainingContext, TrainResult]) -> None:
    """Both phases run all their epochs, the loss falls, and model and labels stand in the run folder."""
    job, outcome = unbroken
    assert outcome.status == "complete"
    assert [(r.phase, r.epoch) for r in outcome.history] == [
        ("phase1", 0),
        ("phase1", 1),
        ("phase2", 0),
        ("phase2", 1),
    ]
    assert outcome.history[-1].train_loss < outcome.history[0].train_loss
    assert storage.read_json(storage.join(job.folder, LABELS_FILE)) == list(job.class_names)
    assert storage.is_file(storage.join(job.folder, MODEL_FILE))
    assert storage.read_json(storage.join(job.folder, PIXELS_FILE)) == {"white_level": 4095}
    assert "pixels.json" in storage.read_json(storage.join(job.folder, CHECKSUMS_FILE))


def test_the_saved_model_scores_what_the_best_epoch_scored(unbroken: tuple[TrainingContext, TrainResult]) -> None:
    """The saved file, on validation images, has the very accuracy that chose it."""
    from pharmclf.evaluation.predict import predict

    job, outcome = unbroken
    images = job.images.select(job.validation_rows)
    probabilities = predict([storage.join(job.folder, MODEL_FILE)], images, 64, actors=0).probabilities
    accuracy = float((probabilities[:, 0].argmax(axis=1) == job.labels[job.validation_rows]).mean())
    best = max(monitor.best_accuracy for monitor in outcome.monitors.values())
    assert accuracy == pytest.approx(best, abs=1e-6)

    def stop() -> None:
        raise StopRequested

    with pytest.raises(StopRequested):  # as a run's test ends where a stop is requested
        predict(
            [storage.join(job.folder, MODEL_FILE)], job.images.select(job.validation_rows), 64, actors=0, check=stop
        )


TRAIN, VALIDATION = 4, 2
"""Steps of an epoch of the small job."""


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        (1, Position(0, 0, 1)),
        (TRAIN + 1, Position(0, 0, TRAIN)),  # in the validation, of which nothing is kept
        (2 * (TRAIN + VALIDATION) + 2, Position(1, 0, 2)),
    ],
    ids=["training", "validation", "phase2"],
)
def test_a_stopped_run_resumes_bit_for_bit(
    make_job: Any, unbroken: tuple[TrainingContext, TrainResult], tmp_path: Path, batches: int, expected: Position
) -> None:
    """Stopped behind so many batches and begun again: same weights, optimizer and history."""
    job = make_job(str(tmp_path))
    stopped, _ = run(job, batches)
    assert stopped.status == "stopped"
    assert list_checkpoints(job.checkpoints)[-1].position == expected
    resumed, recorder = run(job)
    assert recorder.notes[0].startswith("resumed from")
    assert same_bits(final_tensors(job), final_tensors(unbroken[0]))
    assert without_times(resumed.history) == without_times(unbroken[1].history)


def test_more_epochs_after_the_end_give_what_the_longer_run_gives(
    make_job: Any, unbroken: tuple[TrainingContext, TrainResult], tmp_path: Path
) -> None:
    """Phase 2 of one epoch, complete, then given two: weights, optimizer and history of two from the start, by bits."""
    short = dataclasses.replace(unbroken[0].config.phase2, epochs=1)
    assert run(make_job(str(tmp_path), phase2=short))[0].status == "complete"
    job = make_job(str(tmp_path))
    longer, recorder = run(job)
    assert recorder.notes[0] == "resumed from phase2-epoch0001-step000000"
    assert [(end.record.phase, end.record.epoch) for end in recorder.of(EpochEnd)] == [("phase2", 1)]
    assert same_bits(final_tensors(job), final_tensors(unbroken[0]))
    assert without_times(longer.history) == without_times(unbroken[1].history)
    assert longer.best == unbroken[1].best


def test_an_epoch_of_one_step_stops_at_once(make_job: Any, tmp_path: Path) -> None:
    """All images in one batch: a stop before, within or behind a validation of one batch leaves a checkpoint there."""
    settings = {"batch_size": 64, "phase1": PhaseConfig(epochs=3, learning_rate=1e-3), "phase2": PhaseConfig(epochs=0)}
    whole, job = (make_job(str(tmp_path / name), **settings) for name in ("whole", "stopped"))
    expected = run(whole)[0]
    for batches, position in ((1, Position(0, 0, 1)), (1, Position(0, 1, 0)), (0, Position(0, 1, 0))):
        stopped, recorder = run(job, batches)
        assert stopped.status == "stopped"
        assert list_checkpoints(job.checkpoints)[-1].position == position
        assert recorder.notes[-1] == f"stopped on request; checkpoint {position.label} is written"
    outcome = run(job)[0]
    assert same_bits(final_tensors(job), final_tensors(whole))
    assert without_times(outcome.history) == without_times(expected.history)


class Damaging(Recorder):
    """Damages a checkpoint when the last epoch has been reported."""

    def __init__(self, name: str, checkpoints: str) -> None:
        super().__init__()
        self.name, self.checkpoints = name, checkpoints

    def on_event(self, event: Event, /) -> None:
        super().on_event(event)
        if isinstance(event, EpochEnd) and event.record.epoch == event.epochs - 1:
            damage(self.checkpoints, self.name)


def damage(checkpoints: str, name: str) -> None:
    place = Path(checkpoints) / name / "weights.safetensors"
    place.write_bytes(place.read_bytes()[:-1] + b"\x01")


def test_a_damaged_best_checkpoint_gives_way_to_the_best_whole_one(make_job: Any, tmp_path: Path) -> None:
    """Before a resume and again before the end: each time one line says which takes its place, and a model is saved."""
    from pharmclf.training import collectives, trainer

    names = [Position(0, epoch, 0).label for epoch in (1, 2, 3)]
    still = PhaseConfig(epochs=3, learning_rate=0.0)  # all epochs are alike, so that the earliest one is the best
    job = make_job(str(tmp_path), batch_size=64, phase1=still, phase2=PhaseConfig(epochs=0))
    run(job, 4)
    assert [checkpoint.name for checkpoint in list_checkpoints(job.checkpoints)][:1] == names[:1]
    damage(job.checkpoints, names[0])
    recorder = Damaging(names[1], job.checkpoints)
    outcome = trainer.Trainer(job, collectives.single_worker(), recorder).fit()
    said = [note for note in recorder.notes if note.startswith("warning")]
    assert [f"{name} takes its place" in line for name, line in zip(names[1:], said, strict=True)] == [True, True]
    assert [f"{name}: weights.safetensors has sha256" in line for name, line in zip(names, said, strict=False)] == [
        True,
        True,
    ]
    assert outcome.best == {"phase1": names[2]}
    assert outcome.monitors["phase1"].best_epoch == 2
    assert storage.is_file(storage.join(job.folder, MODEL_FILE))


def test_frozen_weights_hold_no_optimizer_state_and_do_not_move(make_job: Any, tmp_path: Path) -> None:
    """A phase's checkpoint holds only what it trains, and Adam two numbers for each: nothing for the frozen part."""
    job = make_job(str(tmp_path), phase2=PhaseConfig(epochs=0))
    run(job)
    tensors = final_tensors(job)
    trained = sum(array.size for array in tensors["weights"].values())
    state = sum(array.size for name, array in tensors["optimizer"].items() if name[:5].isdigit() and array.ndim > 0)
    assert all(name.startswith("head_") for name in tensors["weights"])
    assert state == 2 * trained


def test_another_data_set_is_refused(unbroken: tuple[TrainingContext, TrainResult]) -> None:
    """A checkpoint of other data is not resumed, and the field is named."""
    job = dataclasses.replace(unbroken[0], fingerprints={"data": "other"})
    with pytest.raises(ConfigError, match="data: "):
        run(job)


def test_a_loss_that_is_not_finite_ends_the_run(make_job: Any, tmp_path: Path) -> None:
    """A learning rate beyond all numbers ends with an error that names the setting, not with a useless model."""
    too_fast = PhaseConfig(epochs=2, learning_rate=3e38)
    job = make_job(str(tmp_path), phase1=too_fast, phase2=PhaseConfig(epochs=0))
    with pytest.raises(TrainingDivergedError, match=r"phase1\.learning_rate"):
        run(job)


def test_a_phase_that_has_trained_nothing_is_not_to_blame(make_job: Any, tmp_path: Path) -> None:
    """The first step of phase 2 computes with the weights of phase 1; from the second on they are its own."""
    from tensorflow import constant

    from pharmclf.training.run_progress import RunProgress
    from pharmclf.training.train_metrics import RunningEpoch

    class Losing:
        def set_learning_rates(self, _: Any) -> None:
            pass

        def train_step(self, *_: Any) -> Any:
            return constant([float("nan"), 0.0, 0.0, 10.0])

        validation_step = train_step

    job = make_job(str(tmp_path), phase2=PhaseConfig(epochs=1, learning_rate=0.5))
    phase = build_phases(job.config)[1]
    plan = BatchPlan(job.train_rows, job.validation_rows, job.config.batch_size, 0, phase.first_epoch, 1)

    def reason(first_step: int) -> str:
        run = RunProgress(job.config)
        run.begin_phase(phase.name)
        epoch = RunningEpoch([run], phase, plan, 0, first_step)
        if first_step == plan.train_steps:
            epoch.end_training()
        epoch.start(Losing(), None, 0.0)
        epoch.read()
        assert run.status == "diverged"
        return run.reason

    assert re.search(
        r"is nan in phase2, epoch 1, step 1, .* weights of phase1: .* Lower phase1\.learning_rate", reason(0)
    )
    assert "phase2, epoch 1, step 2. Lower phase2.learning_rate (0.5)" in reason(1)
    assert "phase2, epoch 1, validation step 1. Lower phase2" in reason(plan.train_steps)


def test_early_stopping_ends_a_phase(make_job: Any, tmp_path: Path) -> None:
    """With a learning rate of 0 nothing improves: the phase ends after the patience, and the next one begins."""
    job = make_job(
        str(tmp_path),
        phase1=PhaseConfig(epochs=5, learning_rate=0.0),
        phase2=PhaseConfig(epochs=1, learning_rate=0.0),
        stopping=StoppingConfig(early_patience=1),
    )
    history = run(job)[0].history
    assert [r.phase for r in history] == ["phase1", "phase1", "phase2"]


def test_mixed_float16_trains_and_skips_what_is_not_finite(make_job: Any, tmp_path: Path) -> None:
    """Under mixed_float16 the loss falls; the loss scale of 2^15 overflows first and comes down by halving."""
    import keras

    job = make_job(str(tmp_path), precision="mixed_float16")
    try:
        outcome, _ = run(job)
    finally:
        keras.config.set_dtype_policy("float32")
    assert outcome.history[-1].train_loss < outcome.history[0].train_loss
    assert final_tensors(job)["optimizer"]["loss_scale"] <= 2.0**15


def test_smoothing_clipping_class_weights_and_dense_layers_train(make_job: Any, tmp_path: Path) -> None:
    """The settings of the loss and the head work together, and none of them is in what decides between epochs.

    The validation loss is the plain cross-entropy of the saved model, and the best epoch the most balanced one.
    """
    from pharmclf.evaluation.predict import predict

    job = make_job(
        str(tmp_path),
        head=HeadConfig(dense=(16, 8), dropout=0.3),
        optimizer=OptimizerConfig(label_smoothing=0.1, clip_norm=1.0, class_weights="auto", weight_decay=0.01),
    )
    # classes of one to three validation images, so that accuracy is not balanced accuracy
    job = dataclasses.replace(job, validation_rows=job.validation_rows[3:])
    outcome, recorder = run(job)
    assert np.isfinite([record.train_loss for record in outcome.history]).all()
    assert BALANCED_NOTE in recorder.notes
    chosen = best_phase(outcome.monitors)
    epoch = outcome.monitors[chosen].best_epoch
    best = next(r for r in outcome.history if (r.phase, r.epoch) == (chosen, epoch))
    images = job.images.select(job.validation_rows)
    found = predict([storage.join(job.folder, MODEL_FILE)], images, 64, actors=0).probabilities
    labels = job.labels[job.validation_rows]
    hits = found[:, 0].argmax(axis=1) == labels
    recalls = [hits[labels == label].mean() for label in np.unique(labels)]
    assert best.val_loss == pytest.approx(-np.log(found[np.arange(len(labels)), 0, labels]).mean(), abs=1e-4)
    assert best.val_balanced_accuracy == pytest.approx(np.mean(recalls), abs=1e-6)
    assert outcome.monitors[chosen].best_accuracy == best.val_balanced_accuracy != best.val_accuracy


def test_a_timed_checkpoint_changes_nothing(
    make_job: Any, unbroken: tuple[TrainingContext, TrainResult], tmp_path: Path
) -> None:
    """Checkpoints after every step leave weights and history as they are."""
    job = make_job(str(tmp_path), checkpoint_interval_s=1e-9)
    outcome, _ = run(job)
    assert same_bits(final_tensors(job), final_tensors(unbroken[0]))
    assert without_times(outcome.history) == without_times(unbroken[1].history)


def test_the_prefetch_thread_ends_with_the_phase(unbroken: tuple[TrainingContext, TrainResult]) -> None:
    """No thread of a pipeline is left behind a run."""
    assert unbroken[1].status == "complete"
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def test_run_config_defaults_are_the_reference() -> None:
    """What is not configured is the reference run of both phases."""
    config = RunConfig()
    assert (config.phase1.epochs, config.phase1.learning_rate) == (20, 1e-4)
    assert (config.phase2.epochs, config.phase2.learning_rate) == (30, 1e-5)


def test_a_batch_beyond_the_data_takes_the_same_steps_on_the_rows_that_there_are(make_job: Any, tmp_path: Path) -> None:
    """Dropout masks and all: the weights of a batch of 2,000, nearly all of it padding, to 1e-6."""
    phases = {"phase1": PhaseConfig(epochs=2, learning_rate=1e-3), "phase2": PhaseConfig(epochs=0)}
    padded = make_job(str(tmp_path / "padded"), batch_size=2_000, image_size=32, **phases)
    exact = effective_batch_size(2_000, len(padded.train_rows), len(padded.validation_rows))
    assert exact == len(padded.train_rows)
    config = dataclasses.replace(padded.config, batch_size=exact)
    job = dataclasses.replace(padded, config=config, folder=str(tmp_path / "exact"))
    outcomes = [run(dataclasses.replace(each, saves_models=False))[0] for each in (padded, job)]
    one, other = final_tensors(padded)["weights"], final_tensors(job)["weights"]
    assert max(float(np.abs(one[name] - other[name]).max()) for name in other) <= 1e-6
    for before, after in zip(outcomes[0].history, outcomes[1].history, strict=True):
        assert before.val_accuracy == after.val_accuracy
        assert before.train_loss == pytest.approx(after.train_loss, abs=1e-5)
