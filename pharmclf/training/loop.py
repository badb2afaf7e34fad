"""The training loop: both phases, from a configuration and a split data set to a saved model."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from pharmclf import storage
from pharmclf.activations.shards import ActivationsLost
from pharmclf.data.plan import PhasePlan
from pharmclf.data.stream import Prefetched
from pharmclf.model.backbones import build_backbone, kept_backbone
from pharmclf.model.device import device_name, gpu_capability, precision_for
from pharmclf.model.head import build_head
from pharmclf.training.batches import device_batches
from pharmclf.training.checkpoint import check_fingerprints, newest_checkpoint, read_checkpoint
from pharmclf.training.distributed import Workers
from pharmclf.training.export import save_models
from pharmclf.training.job import Observer, TrainingJob
from pharmclf.training.memory import memory_enough
from pharmclf.training.meters import Meter, Sums
from pharmclf.training.phases import Phase, Position, phases_of
from pharmclf.training.saver import CheckpointSaver
from pharmclf.training.schedule import Monitor, is_best_of_run, learning_rate
from pharmclf.training.step import Batch, PhaseModel, StepResult


@dataclass
class Progress:
    """What a run has come to; all of it is in every checkpoint."""

    history: list[dict[str, Any]] = field(default_factory=list)
    """One record an epoch."""
    monitors: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, str] = field(default_factory=dict)
    """Name of each phase's best checkpoint."""
    epoch_sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch under way: loss, correct, images, seconds."""


@dataclass(frozen=True)
class _Run:
    """What all phases of a run share."""

    job: TrainingJob
    workers: Workers
    observer: Observer
    saver: CheckpointSaver | None
    """None but for the chief."""
    progress: Progress

    def save(self, model: PhaseModel, position: Position) -> None:
        """Write a checkpoint. (chief only; nothing happens on the others)"""
        if self.saver:
            name = self.saver.save(position, model.tensors(), vars(self.progress))
            self.observer.event("checkpoint", name=name)


def train(job: TrainingJob, workers: Workers, observer: Observer) -> dict[str, Any]:
    """Train both phases, from the newest checkpoint if there is one. (all ranks)

    Returns:
        status ("complete" or "stopped"), history, best (checkpoint of each phase), device and precision.

    Raises:
        TrainingDiverged: the loss became infinite or not a number.
        OutOfMemory: the device does not hold what it shall compute at once.
        ConfigError: a checkpoint belongs to another run.
        StorageUnavailable: data or checkpoints could not be read or written for too long.
        ActivationsLost: kept activations are damaged or gone.
    """
    config, saver = job.config, None
    if workers.is_chief:

        def say(text: str) -> None:
            observer.event("note", text=text)

        saver = CheckpointSaver(job.checkpoints, job.fingerprints, config.keep_checkpoints, say)
    workers.wait_for_all()  # what the chief had in its spool is there for all now
    run = _Run(job, workers, observer, saver, Progress())
    try:
        result = _train_phases(run)
        if saver and result["status"] == "complete":
            saver.flush()
            if job.saves_models:
                best, monitors = run.progress.best, run.progress.monitors
                level = job.images.white_level[0].as_py()  # one for all rows of a manifest
                save_models(config, job.folder, job.class_names, job.checkpoints, best, monitors, level)
    finally:
        if saver:
            saver.close()
    return result


def _train_phases(run: _Run) -> dict[str, Any]:
    """Resume, and train what is left of both phases -> the result of `train`. (all ranks)"""
    job, config, workers, progress = run.job, run.job.config, run.workers, run.progress
    precision = precision_for(config.precision, gpu_capability())
    backbone, head = build_networks(job, workers, precision)

    found, position = newest_checkpoint(job.checkpoints), Position(0, 0, 0)
    if found is not None:
        check_fingerprints(found[0].fingerprints, job.fingerprints, f"checkpoint {found[0].location}")
        vars(progress).update(found[0].state)
        position = found[0].position
        if workers.is_chief:
            run.observer.event("note", text=f"resumed from {found[0].name}")

    status = "complete"
    for phase in phases_of(config):
        if phase.number < position.phase:
            continue
        cached, microbatch = phase.name in job.activations, job.microbatches.get(phase.name, 0)
        model = PhaseModel(
            config, workers, backbone, head, phase.unfreeze_blocks, precision, cached=cached, microbatch=microbatch
        )
        start = Position(phase.number, 0, 0)
        if found is not None and phase.number == position.phase:
            start = position
            model.load_tensors(found[1])
        with memory_enough(config, phase, -(-config.batch_size // workers.world), microbatch):
            status = _train_phase(run, phase, model, start)
        if status == "stopped":
            break
    about = {"device": device_name(), "precision": precision, "workers": workers.world}
    return {"status": status, **about, **vars(progress)}


def build_networks(job: TrainingJob, workers: Workers, precision: str) -> tuple[keras.Model, keras.Model]:
    """Backbone (image -> pooled features) and head (features -> logits). (all ranks)"""
    config = job.config
    keras.config.set_dtype_policy(precision)
    with workers.strategy.scope():
        which = config.backbone, config.image_size, config.weights
        if workers.world == 1:
            backbone = kept_backbone(*which, str(job.fingerprints.get("weights")))
        else:  # its variables belong to the strategy
            backbone = build_backbone(*which)
        head = build_head(config.head, backbone.output.shape[-1], len(job.class_names), config.seed)
    return backbone, head


def _train_phase(run: _Run, phase: Phase, model: PhaseModel, start: Position) -> str:
    """Train one phase from a position in it -> "complete" or "stopped". (all ranks)"""
    job, workers, observer, progress = run.job, run.workers, run.observer, run.progress
    config, stopping = job.config, job.config.stopping
    plan = PhasePlan(
        job.train_rows, job.validation_rows, config.batch_size, config.seed, phase.first_epoch, phase.settings.epochs,
        workers.rank, workers.world,
    )  # fmt: skip
    monitor = Monitor.from_dict(progress.monitors[phase.name]) if phase.name in progress.monitors else Monitor()
    batches = device_batches(job, phase, plan, plan.index(start.epoch, start.step), observer)
    last_checkpoint = time.monotonic()
    best_weights: Any = None  # of this process; what was best before a resume is in its checkpoint

    for epoch in range(start.epoch, phase.settings.epochs):
        if monitor.ends_phase(stopping):
            break
        first_step = start.step if epoch == start.epoch else 0
        under_way = _Epoch(run, model, plan, phase, epoch, first_step)
        meter = Meter(job, observer, phase, plan, epoch, first_step) if workers.is_chief else None
        while under_way.step < plan.train_steps:
            number = epoch * plan.train_steps + under_way.step
            total = phase.settings.epochs * plan.train_steps
            model.set_learning_rate(learning_rate(phase.settings, stopping, number, total, monitor.scale))
            vote = float(workers.is_chief and observer.stop_requested())
            done = under_way.start(model.train_step(under_way.next(batches), tf.constant(vote)))
            if meter:
                meter.show(under_way.step, under_way.sums)
            if done.stop_votes > 0:
                position = under_way.keep()
                if workers.is_chief:
                    observer.event("note", text=f"stopped on request; checkpoint {position.label} is written")
                return "stopped"
            due = 0 < config.checkpoint_every_s <= time.monotonic() - last_checkpoint
            if due and workers.is_chief and under_way.step < plan.train_steps:
                under_way.keep()
                last_checkpoint = time.monotonic()
        sums = under_way.read()
        train_seconds = sums.seconds

        validation = Sums({})
        for step in range(plan.validation_steps):
            running = model.validation_step(under_way.next(batches))
            validation.add(running, step, phase, epoch, training=False)
        record: dict[str, Any] = {
            "phase": phase.name,
            "epoch": epoch,
            "train_loss": sums.mean_loss,
            "train_accuracy": sums.accuracy,
            "val_loss": validation.mean_loss,
            "val_accuracy": validation.accuracy,
            "learning_rate": float(model.optimizer.learning_rate.numpy()),
            "seconds": train_seconds + validation.seconds,
            "images_per_second": sums.images / train_seconds,
        }
        progress.history.append(record)
        monitor = monitor.after_epoch(epoch, record["val_accuracy"], record["val_loss"], stopping)
        progress.monitors[phase.name] = monitor.to_dict()
        progress.epoch_sums = {}
        position = Position(start.phase, epoch + 1, 0)
        if monitor.best_epoch == epoch:
            progress.best[phase.name] = position.label
            best_weights = model.weights()
        run.save(model, position)
        if workers.is_chief:
            best = is_best_of_run(progress.monitors, phase.name, epoch)
            observer.event("epoch", **record, epochs=phase.settings.epochs, best=best)
        last_checkpoint = time.monotonic()
    batches.close()
    if best_weights is None:
        best_weights = read_checkpoint(storage.join(job.checkpoints, progress.best[phase.name])).tensors("weights")
    model.load_weights(best_weights)
    return "complete"


class _Epoch:
    """The training steps of an epoch. One is always left running: it is read while the next one runs."""

    def __init__(
        self, run: _Run, model: PhaseModel, plan: PhasePlan, phase: Phase, epoch: int, first_step: int
    ) -> None:
        self.step = first_step
        """Steps of the epoch that have been started."""
        self.sums = Sums(run.progress.epoch_sums if first_step else {})
        self._run, self._model, self._plan, self._phase, self._epoch = run, model, plan, phase, epoch
        self._running: Any = None

    def start(self, running: Any) -> StepResult:
        """A step has been started -> the result of the one before it."""
        done = self._wait()
        self._running = running
        self.step += 1
        return done

    def read(self) -> Sums:
        """The sums over all steps that have been started."""
        self._running = self._wait()  # read now; its votes still count
        return self.sums

    def keep(self) -> Position:
        """Write a checkpoint behind the steps that have been started. (all ranks; the chief writes)"""
        self._run.progress.epoch_sums = self.read().values()
        position = Position(self._phase.number, self._epoch, self.step)
        self._run.save(self._model, position)
        return position

    def next(self, batches: Prefetched) -> Batch:
        """The next batch; where there is none any more, what has been trained so far is kept first."""
        pulse = self._run.workers.pulse
        pulse.beat((self._phase.name, self._epoch, self.step))
        try:
            if not batches.ready:  # the device waits, but from the end of the step that runs
                self.read()
                pulse.waits()
            return next(batches)
        except (storage.StorageUnavailable, ActivationsLost):
            self.keep()
            raise
        finally:
            pulse.goes_on()

    def _wait(self) -> StepResult:
        return self.sums.add(self._running, self.step - 1, self._phase, self._epoch)
