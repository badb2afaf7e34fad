"""Trains the heads of several runs side by side, over the same kept activations, with the results of separate runs.

A sweep's trials that train the head alone read the same features in the same order. So they are one program: each step
reads a batch once and moves all heads. What a head is told apart by, its rates, its epochs, its checkpoints, is decided
here as `trainer.py` decides it for one run, and each checkpoint is one that the loop goes on from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pharmclf import storage
from pharmclf.core.events import EpochRecord, HeadsEpochEnd, RunCallback
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.feature_cache.shards import FeatureCacheCorruptedError
from pharmclf.models.devices import device_name, gpu_compute_capability, resolve_precision
from pharmclf.training.batch_loader import device_batches
from pharmclf.training.collectives import Workers
from pharmclf.training.context import TrainingContext, TrainingDivergedError
from pharmclf.training.grouping import group_key
from pharmclf.training.head_state import HeadSpec, HeadState
from pharmclf.training.phases import Phase, Position, build_phases
from pharmclf.training.stacked import VectorizedHeads
from pharmclf.training.train_metrics import EpochMetrics, balanced_accuracy
from pharmclf.training.train_step import Batch

__all__ = ["HeadSpec", "train_heads"]

_WRITERS = 8  # checkpoints written at a time: each waits for the disk, or for a remote storage


def train_heads(
    job: TrainingContext, members: Sequence[HeadSpec], workers: Workers, observer: RunCallback
) -> list[dict[str, Any]]:
    """Train the heads of all members from their beginning, in this process.

    Checkpoints are written at the end of a phase, every `checkpoint_every_s` at the end of an epoch, and at a stop:
    where the member stands, and before that its best epoch. Models are not exported: `trainer.train` on a finished
    member's folder does that from its last checkpoint, and trains nothing. Each batch of features is computed at once,
    whatever `microbatch` says: it is small beside one of images.

    Args:
        job: of the first member, with kept pooled features for each phase. Rows, labels and features go for all.
        members: of one `group_key`. One that has been begun before begins anew; `trainer.train` would go on with it.
        workers: this process alone.
        observer: handles `Note`, and `HeadsEpochEnd` once an epoch; asked before each step whether to stop.

    Returns:
        What `trainer.train` returns, for each member in order, with status "complete", "stopped" or "diverged", and
        `reason`: why it diverged. One that diverged keeps its best epoch, and harms no other.

    Raises:
        ValueError: more than one worker, a loss scale, members of several groups, or activations of another cut.
        ConfigError: a checkpoint in a member's folder belongs to another run.
        StorageUnavailableError: activations or checkpoints could not be read or written for too long.
        FeatureCacheCorruptedError: kept activations are damaged or gone.
    """
    precision, num_features = _check_group(job, members, workers)
    keras.config.set_dtype_policy(precision)
    trials = [HeadState(member, place) for place, member in enumerate(members)]
    with ThreadPoolExecutor(_WRITERS) as pool:
        try:
            list(pool.map(lambda trial: trial.open(observer), trials))
            heads = VectorizedHeads([member.config for member in members], num_features, len(job.class_names))
            group = _HeadGroup(job, trials, heads, observer, pool)
            for phases in zip(*(build_phases(member.config) for member in members), strict=True):
                if group.train_phase(phases) == "stopped":
                    break
            list(pool.map(HeadState.flush, trials))
        finally:
            list(pool.map(HeadState.close, trials))
    about = {"device": device_name(), "precision": precision, "workers": workers.world}
    return [{"status": trial.status, "reason": trial.reason, **about, **vars(trial.progress)} for trial in trials]


def _check_group(job: TrainingContext, members: Sequence[HeadSpec], workers: Workers) -> tuple[str, int]:
    """What the group computes in, and the width of its features.

    Raises:
        ValueError: see `train_heads`.
    """
    precision = resolve_precision(job.config.precision, gpu_compute_capability())
    if workers.world != 1 or precision == "mixed_float16":
        raise ValueError(f"received {workers.world} workers and {precision}, expected one and no loss scale")
    keys = {group_key(member.config) for member in members} | {group_key(job.config)}
    if len(keys) != 1 or None in keys:
        raise ValueError(f"members: received {len(keys)} groups, expected one. Group the runs by group_key")
    phases = build_phases(job.config)
    shapes = {job.activations[phase.name].layout.shape if phase.name in job.activations else None for phase in phases}
    shape = shapes.pop()
    if shapes or shape is None or len(shape) != 1:
        raise ValueError(f"activations: received {shape}, expected pooled features for each phase. Provide them first")
    return precision, shape[0]


class _HeadGroup:
    """All members of a group, one phase after the other."""

    def __init__(
        self,
        job: TrainingContext,
        trials: Sequence[HeadState],
        heads: VectorizedHeads,
        observer: RunCallback,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._job, self._trials, self._heads, self._observer, self._pool = job, trials, heads, observer, pool

    @property
    def _active(self) -> list[HeadState]:
        """The members that the phase under way still trains."""
        return [trial for trial in self._trials if trial.training]

    def train_phase(self, phases: Sequence[Phase]) -> str:
        """Train one phase of every member, each with its own settings -> "complete" or "stopped"."""
        job, config, phase = self._job, self._job.config, phases[0]
        plan = BatchPlan(
            job.train_rows, job.validation_rows, config.batch_size, config.seed, phase.first_epoch,
            phase.settings.epochs,
        )  # fmt: skip
        batches = device_batches(job, phase, plan, 0, self._observer)
        for trial in self._trials:
            trial.begin()
        try:
            for number in range(phase.settings.epochs):
                if not self._active:
                    break
                epoch = _HeadsEpochRunner(self._trials, self._heads, plan, phases, number)
                try:
                    if not epoch.run(batches, self._observer.should_stop):
                        self._stop(epoch)
                        return "stopped"
                except (
                    storage.StorageUnavailableError,
                    FeatureCacheCorruptedError,
                ):  # what has been trained so far is kept first
                    position = epoch.read()
                    self._write({**dict.fromkeys(epoch.diverged), **dict.fromkeys(self._active, position)})
                    raise
                self._after_epoch(epoch)
        finally:
            batches.close()
        self._heads.restore_best()
        return "complete"

    def _stop(self, epoch: _HeadsEpochRunner) -> None:
        """Write a checkpoint of every member that has more to do, and say so in its status."""
        phase, position = epoch.phases[0], epoch.read()
        going_on = self._active if (position.epoch, position.step) != (0, 0) else []  # nothing is new before a step
        self._write({**dict.fromkeys(epoch.diverged), **dict.fromkeys(going_on, position)})
        last = build_phases(self._job.config)[-1].number == phase.number
        for trial in self._trials:
            if trial.status == "complete" and (trial.training or not last):
                trial.status = "stopped"

    def _after_epoch(self, epoch: _HeadsEpochRunner) -> None:
        """Settle what an epoch means for each member, and write the checkpoints that are due."""
        phase, position = epoch.phases[0], Position(epoch.phases[0].number, epoch.number + 1, 0)
        records = {trial: epoch.record(trial) for trial in self._active}
        improved = np.zeros(len(self._trials), bool)
        writing: dict[HeadState, Position | None] = dict.fromkeys(epoch.diverged)
        for trial, record in records.items():
            improved[trial.place] = trial.after_epoch(record, position)
            ended = trial.monitor.should_stop(trial.member.config.stopping)
            trial.training = not ended and position.epoch < phase.settings.epochs
            if not trial.training or trial.due():
                writing[trial] = position
        if improved.any():
            self._heads.keep_best(improved)
        self._write(writing)
        self._observer.on_event(
            HeadsEpochEnd(
                phase=phase.name,
                epoch=epoch.number,
                epochs=phase.settings.epochs,
                num_active=len(records),
                val_accuracy=max((record.val_accuracy for record in records.values()), default=0.0),
            )
        )

    def _write(self, positions: Mapping[HeadState, Position | None]) -> None:
        list(self._pool.map(lambda item: item[0].write(self._heads, item[1]), positions.items()))


class _HeadsEpochRunner:
    """One epoch of all heads. One step is always left running: it is read while the next one runs."""

    def __init__(
        self, trials: Sequence[HeadState], heads: VectorizedHeads, plan: BatchPlan, phases: Sequence[Phase], number: int
    ) -> None:
        self.phases, self.number = phases, number
        self.diverged: list[HeadState] = []
        """Members whose loss is not finite any more, as of this epoch."""
        self._trials, self._heads, self._plan = trials, heads, plan
        rates = [trial.rates(phase, number, plan.train_steps) for trial, phase in zip(trials, phases, strict=True)]
        self._rates = np.asarray(rates, np.float32)  # (K, steps)
        self._sums = np.zeros((2, 3, heads.size))  # (training and validation; loss, correct and images; K)
        self._by_class: Any = 0.0  # (2 * classes, K) correct rows and rows of each class, where classes are weighed
        self._running: tuple[Any, int, int] | None = None  # sums on the device; 0 training, 1 validation; step
        self._steps = 0
        self._began = time.monotonic()
        self._train_seconds = self._seconds = 0.0

    def run(self, batches: Iterator[Batch], stop_requested: Callable[[], bool]) -> bool:
        """Train and validate -> False: a stop was requested before the end.

        Raises:
            StorageUnavailableError, FeatureCacheCorruptedError: there is no next batch; `read` tells where the epoch
                stands.
        """
        for step in range(self._plan.train_steps):
            batch = next(batches)
            if stop_requested():
                return False
            self._start(self._heads.train_step(batch, self._rates[:, step]), 0, step)
            self._steps = step + 1
        self.read()
        self._train_seconds = time.monotonic() - self._began
        for step in range(self._plan.validation_steps):
            batch = next(batches)
            if stop_requested():
                return False
            self._start(self._heads.validation_step(batch), 1, step)
        self._wait()
        self._seconds = time.monotonic() - self._began
        return True

    def read(self) -> Position:
        """Wait for the steps that have been started, note the sums in the members -> where they stand."""
        self._wait()
        seconds = self._train_seconds or time.monotonic() - self._began
        for trial in self._trials:
            if trial.training:
                loss, correct, images = (float(value) for value in self._sums[0, :, trial.place])
                sums = {"loss": loss, "correct": correct, "images": images, "seconds": seconds}
                trial.progress.epoch_sums = sums
        return Position(self.phases[0].number, self.number, self._steps)

    def record(self, trial: HeadState) -> EpochRecord:
        """The epoch in the member's history; the times are those of all heads together."""
        sums = self._sums[:, :, trial.place]
        train_images, validation_images = np.maximum(1.0, sums[:, 2])  # what is quarantined does not count
        by_class = self._by_class[:, trial.place].reshape(2, -1) if np.ndim(self._by_class) else None
        return EpochRecord(
            phase=self.phases[0].name,
            epoch=self.number,
            train_loss=float(sums[0, 0] / train_images),
            train_accuracy=float(sums[0, 1] / train_images),
            val_loss=float(sums[1, 0] / validation_images),
            val_accuracy=float(sums[1, 1] / validation_images),
            val_balanced_accuracy=None if by_class is None else balanced_accuracy(by_class),
            learning_rate=float(self._rates[trial.place, -1]),
            seconds=self._seconds,
            images_per_second=float(train_images / self._train_seconds),
        )

    def _start(self, running: Any, section: int, step: int) -> None:
        """A step has been started: read the one before it."""
        self._wait()
        self._running = running, section, step

    def _wait(self) -> None:
        if self._running is None:
            return
        running, section, step = self._running
        self._running = None
        values = running.numpy()
        self._sums[section] += values[:3]
        if len(values) > 3:
            self._by_class = self._by_class + values[3:].astype(np.float64)
        for place in np.flatnonzero(~np.isfinite(values[0])).tolist():
            trial = self._trials[place]
            if trial.training:
                trial.training, trial.status = False, "diverged"
                trial.reason = self._reason(values[:, place], section, step, self.phases[place])
                self.diverged.append(trial)

    def _reason(self, values: np.ndarray, section: int, step: int, phase: Phase) -> str:
        """What the loop would say of sums that are not finite."""
        try:
            loss, correct, images = values[:3]
            sums = tf.constant([loss, correct, 0.0, images])
            EpochMetrics({}).add(sums, step, phase, self.number, training=section == 0)
        except TrainingDivergedError as error:
            return str(error)
        return ""
