"""Trains the heads of several runs as one program, on the same cached features, with the results of separate runs.

The trials of a sweep that train the head alone read the same features in the same order. Each step reads a batch once
and trains all heads. Each checkpoint is one from which `Trainer` resumes the run by itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import keras

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.events import EpochRecord, Event, HeadsEpochEnd, Note, RunCallback
from pharmclf.models.devices import device_name, gpu_compute_capability, resolve_precision
from pharmclf.training.checkpoint import check_fingerprints, list_checkpoints
from pharmclf.training.checkpoint_manager import CheckpointManager
from pharmclf.training.collectives import Workers
from pharmclf.training.context import TrainingContext
from pharmclf.training.grouping import group_key
from pharmclf.training.phases import Position, build_phases
from pharmclf.training.run_progress import RunProgress
from pharmclf.training.train_metrics import RunningEpoch
from pharmclf.training.train_state import TrainResult, TrainStatus
from pharmclf.training.train_step import TrainStep
from pharmclf.training.trainer import Trainer
from pharmclf.training.vectorized_step import VectorizedHeads

_WRITERS = 8  # checkpoints written at a time: each waits for the disk, or for a remote storage


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadSpec:
    """One run of a group."""

    config: RunConfig
    folder: str
    """The run's folder in storage."""
    fingerprints: dict[str, Any]
    """What its checkpoints must agree with to be resumed."""


def train_heads(
    job: TrainingContext, specs: Sequence[HeadSpec], workers: Workers, callback: RunCallback
) -> list[TrainResult]:
    """Train the heads of several runs from their beginning, in this process.

    Checkpoints are written at the end of a phase, every `checkpoint_interval_s` at the end of an epoch, and at a stop:
    of the current state, and before it of the best epoch. Models are not saved: `Trainer.fit` on the folder of a
    finished run does that from its last checkpoint, and trains nothing. Each batch of features is computed at once,
    whatever `microbatch` says: it is small compared to one of images.

    Args:
        job: of the first run, with cached pooled features for each phase. Rows, labels and features are those of all.
        specs: runs with the same `group_key`. A run with checkpoints starts again; `Trainer.fit` would resume it.
        workers: this process alone.
        callback: handles `Note`, and `HeadsEpochEnd` once an epoch; polled before each step for a stop request.

    Returns:
        The result of each run, in order. One that diverged keeps its best epoch, and does not affect the others.

    Raises:
        ValueError: more than one worker, a loss scale, runs of several groups, or features of another split.
        ConfigError: a checkpoint in a run's folder belongs to another run.
        StorageUnavailableError: features or checkpoints could not be read or written for too long.
        FeatureCacheCorruptedError: cached features are damaged or missing.
    """
    precision, num_features = _check_group(job, specs, workers)
    keras.config.set_dtype_policy(precision)
    runs = [_HeadRun(spec.config, index) for index, spec in enumerate(specs)]

    def open_checkpoints(run: _HeadRun) -> None:
        spec = specs[run.index]
        folder = storage.join(spec.folder, "checkpoints")
        run.manager = CheckpointManager(
            folder,
            spec.fingerprints,
            spec.config.num_checkpoints_to_keep,
            lambda text: callback.on_event(Note(text=f"{spec.folder}: {text}")),
        )
        for checkpoint in list_checkpoints(folder):
            check_fingerprints(checkpoint.fingerprints, spec.fingerprints, f"checkpoint {checkpoint.location}")

    with ThreadPoolExecutor(_WRITERS) as pool:
        try:
            list(pool.map(open_checkpoints, runs))
            heads = VectorizedHeads([spec.config for spec in specs], num_features, len(job.class_names))
            trainer = HeadsTrainer(job, workers, callback, runs, heads, pool)
            for phase in build_phases(job.config):
                if trainer.fit_phase(heads, phase, Position(phase.number, 0, 0)):
                    break
            list(pool.map(lambda run: run.manager and run.manager.flush(), runs))
        finally:
            list(pool.map(lambda run: run.manager and run.manager.close(), runs))
    return [
        run.state.to_result(
            status=run.status, reason=run.reason, device=device_name(), precision=precision, workers=workers.world
        )
        for run in runs
    ]


def _check_group(job: TrainingContext, specs: Sequence[HeadSpec], workers: Workers) -> tuple[str, int]:
    """The precision of the group, and the width of its features.

    Raises:
        ValueError: see `train_heads`.
    """
    precision = resolve_precision(job.config.precision, gpu_compute_capability())
    if workers.world != 1 or precision == "mixed_float16":
        raise ValueError(f"received {workers.world} workers and {precision}, expected one and no loss scale")
    keys = {group_key(spec.config) for spec in specs} | {group_key(job.config)}
    if len(keys) != 1 or None in keys:
        raise ValueError(f"specs: received {len(keys)} groups, expected one. Group the runs by group_key")
    phases = build_phases(job.config)
    shapes = {job.activations[phase.name].layout.shape if phase.name in job.activations else None for phase in phases}
    shape = shapes.pop()
    if shapes or shape is None or len(shape) != 1:
        raise ValueError(f"features: received {shape}, expected pooled features for each phase. Compute them first")
    return precision, shape[0]


@dataclass(eq=False)
class _HeadRun(RunProgress):
    """A run whose best epoch is kept on the device until a later checkpoint refers to it."""

    unsaved_best: tuple[Position, dict[str, Any]] | None = None
    """Position and state after the best epoch of the phase, if no checkpoint holds them yet."""

    def after_epoch(self, record: EpochRecord, position: Position) -> bool:
        """As `RunProgress.after_epoch`."""
        is_best = super().after_epoch(record, position)
        if is_best:
            self.unsaved_best = position, self.state.state_dict()
        return is_best


class HeadsTrainer(Trainer):
    """`Trainer` of several runs that are one program; it writes fewer checkpoints, several at a time."""

    def __init__(
        self,
        job: TrainingContext,
        workers: Workers,
        callback: RunCallback,
        runs: Sequence[_HeadRun],
        heads: VectorizedHeads,
        pool: ThreadPoolExecutor,
    ) -> None:
        super().__init__(job, workers, callback, runs)
        self._head_runs, self._heads, self._pool = runs, heads, pool

    def _after_step(self, step: TrainStep, epoch: RunningEpoch) -> None:
        """No progress is reported, and no checkpoint written, within an epoch."""

    def _is_due(self, run: RunProgress) -> bool:
        every_s = run.config.checkpoint_interval_s
        return not run.is_training or 0 < every_s <= time.monotonic() - run.saved_at

    def _save(self, step: TrainStep, runs: Iterable[RunProgress], position: Position) -> None:
        """Write checkpoints of some runs, and of the best epoch of those and of runs that have diverged."""
        is_begun = (position.epoch, position.step) != (0, 0)  # before the first step of a phase nothing is new
        saved = list(runs) if is_begun else []

        def save(run: _HeadRun) -> None:
            is_saved = run in saved
            if run.manager is None or not (is_saved or run.status is TrainStatus.DIVERGED):
                return
            if run.unsaved_best and not (is_saved and run.unsaved_best[0] == position):
                best, state = run.unsaved_best
                run.manager.save(best, self._heads.best_state_dict(run.index), state)
            run.unsaved_best = None
            if is_saved:
                run.manager.save(position, step.state_dict(run.index), run.state.state_dict())
                run.saved, run.saved_at = position, time.monotonic()

        list(self._pool.map(save, self._head_runs))

    def _epoch_event(self, epoch: RunningEpoch, trained: Sequence[RunProgress]) -> Event:
        return HeadsEpochEnd(
            phase=epoch.phase.name,
            epoch=epoch.number,
            epochs=epoch.phase.settings.epochs,
            num_active=len(trained),
            val_accuracy=max(run.state.history[-1].val_accuracy for run in trained),
        )
