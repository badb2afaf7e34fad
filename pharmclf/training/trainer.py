"""The training loop: both phases, from a configuration and a split data set to a saved model."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import keras
import tensorflow as tf

from pharmclf import storage
from pharmclf.core.events import CheckpointSaved, EpochEnd, EpochRecord, Note, RunCallback
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.ray_loader import Prefetcher
from pharmclf.feature_cache.shards import FeatureCacheCorruptedError
from pharmclf.models.backbones import build_backbone, cached_backbone
from pharmclf.models.devices import device_name, gpu_compute_capability, resolve_precision
from pharmclf.models.head import build_head
from pharmclf.training.batch_loader import device_batches
from pharmclf.training.checkpoint_manager import CheckpointManager
from pharmclf.training.collectives import Workers
from pharmclf.training.context import TrainingContext
from pharmclf.training.lr_schedule import (
    BALANCED_NOTE,
    EarlyStoppingState,
    is_best_of_run,
    learning_rate,
    selection_score,
)
from pharmclf.training.oom import oom_as_user_error
from pharmclf.training.phases import Phase, Position, build_phases
from pharmclf.training.resume import best_weights, resume_training, verify_agreement
from pharmclf.training.save_model import save_final_models
from pharmclf.training.train_metrics import EpochMetrics, ProgressReporter, balanced_accuracy
from pharmclf.training.train_state import TrainState, finalize_best
from pharmclf.training.train_step import Batch, StepResult, TrainStep

_UNBALANCED_NOTE = "epochs are chosen by validation accuracy, because an earlier version of pharmclf began this run"


@dataclass(frozen=True)
class _LoopContext:
    """What all phases of a run share."""

    job: TrainingContext
    workers: Workers
    observer: RunCallback
    saver: CheckpointManager | None
    """None but for the chief."""
    progress: TrainState

    def say(self, text: str) -> None:
        """Tell the user. (chief only; nothing happens on the others)"""
        if self.workers.is_chief:
            self.observer.on_event(Note(text=text))

    def save(self, model: TrainStep, position: Position) -> None:
        """Write a checkpoint. (chief only; nothing happens on the others)"""
        if self.saver:
            name = self.saver.save(position, model.state_dict(), self.progress.to_dict())
            self.observer.on_event(CheckpointSaved(name=name))


def train(job: TrainingContext, workers: Workers, observer: RunCallback) -> dict[str, Any]:
    """Train both phases, from the newest checkpoint if there is one. (all ranks)

    Returns:
        status ("complete" or "stopped"), history, best (checkpoint of each phase), device and precision.

    Raises:
        TrainingDivergedError: the loss became infinite or not a number.
        DeviceOutOfMemoryError: the device does not hold what it shall compute at once.
        ConfigError: a checkpoint belongs to another run.
        WorkersDisagreeError: the workers do not hold the same checkpoint, position or weights.
        CorruptedCheckpointError: no checkpoint of a phase that has ended is whole.
        StorageUnavailableError: data or checkpoints could not be read or written for too long.
        FeatureCacheCorruptedError: kept activations are damaged or gone.
    """
    config, saver, progress = job.config, None, TrainState()
    if workers.is_chief:

        def say(text: str) -> None:
            observer.on_event(Note(text=text))

        saver = CheckpointManager(job.checkpoints, job.fingerprints, config.keep_checkpoints, say)
    run = _LoopContext(job, workers, observer, saver, progress)
    try:
        result = _train_phases(run)
        if saver and result["status"] == "complete":
            saver.flush()
            if job.saves_models:
                finalize_best(progress, job.checkpoints, run.say)  # what is exported is read again
                level = job.images.white_level[0].as_py()  # one for all rows of a manifest
                best, monitors = progress.best, progress.monitors
                save_final_models(config, job.folder, job.class_names, job.checkpoints, best, monitors, level)
    finally:
        if saver:
            saver.close()
    return result | vars(progress)


def _train_phases(run: _LoopContext) -> dict[str, Any]:
    """Resume, and train what is left of both phases -> the result of `train`. (all ranks)"""
    job, config, workers, progress = run.job, run.job.config, run.workers, run.progress
    precision = resolve_precision(config.precision, gpu_compute_capability())
    backbone, head = build_networks(job, workers, precision)

    found = resume_training(job, workers, progress, run.say)
    position = found[0] if found else Position(0, 0, 0)
    if found and run.saver:
        run.saver.resume_from(position)
    if config.optimizer.class_weights != "off":
        run.say(BALANCED_NOTE if _is_balanced(progress) else _UNBALANCED_NOTE)
    status, proven = "complete", False
    for phase in build_phases(config):
        if phase.number < position.phase:
            continue
        cached, microbatch = phase.name in job.activations, job.microbatches.get(phase.name, 0)
        model = TrainStep(
            config, workers, backbone, head, phase.unfreeze_blocks, precision, cached=cached, microbatch=microbatch
        )
        start = Position(phase.number, 0, 0)
        if found is not None and phase.number == position.phase:
            start = position
            model.load_state_dict(found[1])
        if not proven:  # from then on all take the same steps
            verify_agreement(workers, start, model)
            proven = True
        with oom_as_user_error(config, phase, -(-config.batch_size // workers.world), microbatch):
            status = _train_phase(run, phase, model, start)
        if status == "stopped":
            break
    about = {"device": device_name(), "precision": precision, "workers": workers.world}
    return {"status": status, **about}


def _is_balanced(progress: TrainState) -> bool:
    """Whether epochs are chosen by balanced accuracy, where classes are weighed."""
    return all(record.val_balanced_accuracy is not None for record in progress.history)


def build_networks(job: TrainingContext, workers: Workers, precision: str) -> tuple[keras.Model, keras.Model]:
    """Backbone (image -> pooled features) and head (features -> logits). (all ranks)"""
    config = job.config
    keras.config.set_dtype_policy(precision)
    with workers.strategy.scope():
        which = config.backbone, config.image_size, config.weights
        if workers.world == 1:
            backbone = cached_backbone(*which, str(job.fingerprints.get("weights")))
        else:  # its variables belong to the strategy
            backbone = build_backbone(*which)
        head = build_head(config.head, backbone.output.shape[-1], len(job.class_names), config.seed)
    return backbone, head


def _train_phase(run: _LoopContext, phase: Phase, model: TrainStep, start: Position) -> str:
    """Train one phase from a position in it -> "complete" or "stopped". (all ranks)"""
    job, workers, observer, progress = run.job, run.workers, run.observer, run.progress
    config, stopping = job.config, job.config.stopping
    plan = BatchPlan(
        job.train_rows, job.validation_rows, config.batch_size, config.seed, phase.first_epoch, phase.settings.epochs,
        workers.rank, workers.world,
    )  # fmt: skip
    monitor = (
        EarlyStoppingState.from_dict(progress.monitors[phase.name])
        if phase.name in progress.monitors
        else EarlyStoppingState()
    )
    batches = device_batches(job, phase, plan, plan.index(start.epoch, start.step), observer)
    last_checkpoint = time.monotonic()
    weights: Any = None  # the best of this process; what was best before a resume is in its checkpoint

    for epoch in range(start.epoch, phase.settings.epochs):
        if monitor.should_stop(stopping):
            break
        first_step = start.step if epoch == start.epoch else 0
        under_way = _EpochRunner(run, model, plan, phase, epoch, first_step)
        meter = ProgressReporter(job, observer, phase, plan, epoch, first_step) if workers.is_chief else None
        stopped = False
        while not stopped and under_way.step < plan.train_steps:
            number = epoch * plan.train_steps + under_way.step
            total = phase.settings.epochs * plan.train_steps
            model.set_learning_rate(learning_rate(phase.settings, stopping, number, total, monitor.scale))
            stopped = under_way.train(batches)
            if meter:
                meter.maybe_report(under_way.step, under_way.sums)
            due = 0 < config.checkpoint_every_s <= time.monotonic() - last_checkpoint
            if due and not stopped and workers.is_chief and under_way.step < plan.train_steps:
                under_way.save_checkpoint()
                last_checkpoint = time.monotonic()
        stopped = stopped or under_way.end_training()
        while not stopped and under_way.validated < plan.validation_steps:
            stopped = under_way.validate(batches)
        if stopped and under_way.validated < plan.validation_steps:
            position = under_way.save_checkpoint()
            run.say(f"stopped on request; checkpoint {position.label} is written")
            return "stopped"
        record = under_way.record()
        if not _is_balanced(progress):
            record = replace(record, val_balanced_accuracy=None)
        progress.history.append(record)
        monitor = monitor.after_epoch(epoch, selection_score(record), record.val_loss, stopping)
        progress.monitors[phase.name] = monitor.to_dict()
        progress.epoch_sums = {}
        position = Position(start.phase, epoch + 1, 0)
        if monitor.best_epoch == epoch:
            progress.best[phase.name] = position.label
            weights = model.weights()
        run.save(model, position)
        if workers.is_chief:
            best = is_best_of_run(progress.monitors, phase.name, epoch)
            observer.on_event(EpochEnd(record=record, epochs=phase.settings.epochs, is_best=best))
        last_checkpoint = time.monotonic()
        if stopped:
            run.say(f"stopped on request; checkpoint {position.label} is written")
            return "stopped"
    batches.close()
    if weights is None:
        weights = best_weights(job, workers, progress, phase.name, phase.number, run.say)
    model.load_weights(weights)
    return "complete"


class _EpochRunner:
    """The steps of an epoch. One of training is always left running: it is read while the next one runs."""

    def __init__(
        self, run: _LoopContext, model: TrainStep, plan: BatchPlan, phase: Phase, epoch: int, first_step: int
    ) -> None:
        self.step = first_step
        """Training steps of the epoch that have been started."""
        self.validated = 0
        """Validation steps that are done."""
        self.sums = EpochMetrics(run.progress.epoch_sums if first_step else {})
        self._run, self._model, self._plan, self._phase, self._epoch = run, model, plan, phase, epoch
        self._running: Any = None
        self._trained: dict[str, float] = {}  # the sums at the end of the training steps
        self._validation = EpochMetrics({})

    def train(self, batches: Prefetcher) -> bool:
        """Start the next training step -> whether a stop was asked for: before it where this worker is alone, else in
        the step before it, so that all workers see it alike."""
        batch = self._next(batches)
        if self._stops_alone():
            return True
        running = self._model.train_step(batch, self._vote())
        done = self._wait()
        self._running = running
        self.step += 1
        return done.stop_votes > 0

    def end_training(self) -> bool:
        """Read the last training step -> whether a stop was asked for in it."""
        done = self._wait()
        self._running = None
        self._trained, self._validation = self.sums.state_dict(), EpochMetrics({})
        return done.stop_votes > 0

    def validate(self, batches: Prefetcher) -> bool:
        """Take the next validation step -> whether a stop was asked for."""
        batch = self._next(batches)
        if self._stops_alone():
            return True
        running = self._model.validation_step(batch, self._vote())
        done = self._validation.add(running, self.validated, self._phase, self._epoch, training=False)
        self.validated += 1
        return done.stop_votes > 0

    def record(self) -> EpochRecord:
        """The epoch in the history, behind its last validation step."""
        sums, validation, seconds = self.sums, self._validation, self._trained["seconds"]
        return EpochRecord(
            phase=self._phase.name,
            epoch=self._epoch,
            train_loss=sums.mean_loss,
            train_accuracy=sums.accuracy,
            val_loss=validation.mean_loss,
            val_accuracy=validation.accuracy,
            val_balanced_accuracy=None if validation.by_class is None else balanced_accuracy(validation.by_class),
            learning_rate=float(self._model.optimizer.learning_rate.numpy()),
            seconds=seconds + validation.seconds,
            images_per_second=sums.images / seconds,
        )

    def save_checkpoint(self) -> Position:
        """Write a checkpoint behind the training steps that have been started. (all ranks; the chief writes)

        Of a validation that is broken off nothing is kept: a resumed run does it from its beginning.
        """
        self._running = self._wait()  # read now; its votes still count
        self._run.progress.epoch_sums = self._trained or self.sums.state_dict()
        position = Position(self._phase.number, self._epoch, self.step)
        self._run.save(self._model, position)
        return position

    def _next(self, batches: Prefetcher) -> Batch:
        """The next batch; where there is none any more, what has been trained so far is kept first."""
        pulse = self._run.workers.progress
        pulse.on_batch((self._phase.name, self._epoch, self.step + self.validated))
        try:
            if not batches.ready:  # the device waits, but from the end of the step that runs
                self._running = self._wait()  # read now; its votes still count
                pulse.on_wait_start()
            return next(batches)
        except (storage.StorageUnavailableError, FeatureCacheCorruptedError):
            self.save_checkpoint()
            raise
        finally:
            pulse.on_wait_end()

    def _stops_alone(self) -> bool:
        """Whether the only worker ends here; several decide in a step, all in the same one."""
        return self._run.workers.world == 1 and self._run.observer.should_stop()

    def _vote(self) -> Any:
        """This worker's vote for a stop, to be summed over all in a step."""
        workers = self._run.workers
        return tf.constant(float(workers.world > 1 and workers.is_chief and self._run.observer.should_stop()))

    def _wait(self) -> StepResult:
        return self.sums.add(self._running, self.step - 1, self._phase, self._epoch)
