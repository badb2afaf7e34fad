"""The training loop: both phases, from a configuration and a split data set to a saved model."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

from pharmclf import storage
from pharmclf.core import usual_times
from pharmclf.core.events import ActivityStarted, CheckpointSaved, EpochEnd, Event, Note, RunCallback
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.data.prefetch import Prefetcher
from pharmclf.feature_cache.shards import FeatureCacheCorruptedError
from pharmclf.models.devices import device_name, gpu_compute_capability, resolve_precision
from pharmclf.training.batch_loader import device_batches
from pharmclf.training.checkpoint_manager import CheckpointManager
from pharmclf.training.collectives import Workers
from pharmclf.training.context import TrainingContext, TrainingDivergedError
from pharmclf.training.loop_progress import PhaseClock
from pharmclf.training.lr_schedule import BALANCED_NOTE, is_best_of_run
from pharmclf.training.model_step import ModelStep, build_networks
from pharmclf.training.oom import oom_as_user_error
from pharmclf.training.phases import Phase, Position, build_phases
from pharmclf.training.resume import best_weights, resume_training, verify_agreement
from pharmclf.training.run_progress import RunProgress
from pharmclf.training.save_model import save_final_models
from pharmclf.training.time_budget import fit_epochs, time_for_phase
from pharmclf.training.train_metrics import RunningEpoch
from pharmclf.training.train_state import TrainResult, TrainStatus, finalize_best
from pharmclf.training.train_step import Batch, TrainStep

_PROGRESS_INTERVAL_S = 1.0
_UNBALANCED_NOTE = "epochs are chosen by validation accuracy, because an earlier version of pharmclf began this run"


class Trainer:
    """Trains a run; `vectorized_heads.HeadsTrainer` trains several with the same loop."""

    def __init__(
        self, job: TrainingContext, workers: Workers, callback: RunCallback, runs: Sequence[RunProgress] = ()
    ) -> None:
        """Nothing is started yet. (all ranks)

        Args:
            job: the run, or the first of several; rows, labels and features are those of all.
            workers: of the run; this is one of them.
            callback: handles events, and is polled for a stop request before each step.
            runs: several that are one program; none: the run of `job`.
        """
        self.job, self.workers, self.callback = job, workers, callback
        self.runs = runs or [RunProgress(job.config)]
        self._progress_at = 0.0
        self._clock: PhaseClock

    def fit(self) -> TrainResult:
        """Train both phases, from the newest checkpoint if there is one, and save the models. (all ranks)

        Raises:
            TrainingDivergedError: the loss became infinite or not a number.
            DeviceOutOfMemoryError: the memory of the device is too small.
            ConfigError: a checkpoint belongs to another run.
            WorkersDisagreeError: the workers do not hold the same checkpoint, position or weights.
            CorruptedCheckpointError: no checkpoint of a finished phase is intact.
            StorageUnavailableError: data or checkpoints could not be read or written for too long.
            FeatureCacheCorruptedError: cached features are damaged or missing.
        """
        job, (run,) = self.job, self.runs
        if self.workers.is_chief:
            run.manager = CheckpointManager(
                job.checkpoints, job.fingerprints, job.config.num_checkpoints_to_keep, self._note
            )
        try:
            precision = self._fit_phases(run)
            if run.status is TrainStatus.DIVERGED:
                raise TrainingDivergedError(run.reason)
            if run.status is TrainStatus.STOPPED and run.saved:
                self._note(f"stopped on request; checkpoint {run.saved.label} is written")
            if run.manager and run.status is TrainStatus.COMPLETE:
                run.manager.flush()
                if job.saves_models:
                    self._begin("saving the models", usual_times.SAVE_MODEL_S)
                    finalize_best(run.state, job.checkpoints, self._note)  # models are read from the checkpoints
                    level = job.images.white_level[0].as_py()  # the same for all rows of a manifest
                    crops = job.images.crops is not None
                    save_final_models(job.config, job.folder, job.class_names, run.state, level, crops=crops)
        finally:
            if run.manager:
                run.manager.close()
        return run.state.to_result(
            status=run.status, device=device_name(), precision=precision, workers=self.workers.world
        )

    def _fit_phases(self, run: RunProgress) -> str:
        """Resume, and train what is left of both phases -> the precision. (all ranks)"""
        job, config, workers = self.job, self.job.config, self.workers
        precision = resolve_precision(config.precision, gpu_compute_capability())
        self._begin(f"building the model {config.backbone}", usual_times.BUILD_MODEL_S)
        backbone, head = build_networks(job, workers, precision)
        resumed = resume_training(job, workers, run.state, self._note)
        position = resumed[0] if resumed else Position(0, 0, 0)
        if resumed and run.manager:
            run.manager.resume_from(position)
        if config.optimizer.class_weights != "off":
            self._note(BALANCED_NOTE if run.is_balanced else _UNBALANCED_NOTE)
        is_verified = False
        for name in [phase.name for phase in build_phases(config)]:
            phase = run.plan_phase(name)
            if phase.number < position.phase:
                continue
            cached, microbatch = phase.name in job.activations, job.microbatches.get(phase.name, 0)
            step = ModelStep(
                config, workers, backbone, head, phase.unfreeze_blocks, precision, cached=cached, microbatch=microbatch
            )
            start = Position(phase.number, 0, 0)
            if resumed and phase.number == position.phase:
                start = position
                step.load_state_dict(resumed[1])
            if not is_verified:  # from then on all take the same steps
                verify_agreement(workers, start, step)
                is_verified = True
            with oom_as_user_error(config, phase, -(-config.batch_size // workers.world), microbatch):
                if self.fit_phase(step, phase, start):
                    break
            if step.best_weights is None:  # the best epoch was before a resume
                step.load_weights(best_weights(job, workers, run.state, phase, self._note))
        return precision

    def fit_phase(self, step: TrainStep, phase: Phase, start: Position) -> bool:
        """Train a phase from a position in it, and restore the weights of its best epoch. (all ranks)

        Returns:
            Whether training ends here: a stop was requested, or all runs have diverged.
        """
        job, config, workers = self.job, self.job.config, self.workers
        plan = BatchPlan(
            job.train_rows, job.validation_rows, config.batch_size, config.seed, phase.first_epoch,
            phase.settings.epochs, workers.rank, workers.world,
        )  # fmt: skip
        self._clock = PhaseClock(plan, phase.step_costs(config.image_size))
        cached = phase.name in job.activations
        usual_s = usual_times.FIRST_CACHED_STEP_S if cached else usual_times.FIRST_STEP_S
        self._begin(f"starting phase {phase.number + 1}: first images, first step", usual_s)
        for run in self.runs:
            run.begin_phase(phase.name)
        batches = device_batches(job, phase, plan, plan.index(start.epoch, start.step), self.callback)
        first, (number, first_step), epochs = self.runs[0], (start.epoch, start.step), phase.settings.epochs
        with contextlib.closing(batches):
            while self.active and number < epochs == first.state.epochs.get(phase.name, epochs):
                if self.fit_epoch(step, RunningEpoch(self.runs, phase, plan, number, first_step), batches):
                    return True
                number, first_step = number + 1, 0
        if self.active and number < first.state.epochs.get(phase.name, 0):  # they are fewer now
            return self.fit_phase(step, first.plan_phase(phase.name), Position(phase.number, number, 0))
        step.restore_best()
        return False

    def fit_epoch(self, step: TrainStep, epoch: RunningEpoch, batches: Prefetcher) -> bool:
        """Train and validate an epoch, and write checkpoints -> as `fit_phase`. (all ranks)"""
        is_last_phase = epoch.phase.number == build_phases(self.job.config)[-1].number
        unfinished = self.active if is_last_phase else self.runs
        plan, ended = epoch.plan, False
        while not ended and epoch.step < plan.train_steps:
            ended = self._take_step(step, epoch, batches)
            if not ended:
                self._after_step(step, epoch)
        epoch.end_training()
        self._begin(f"phase {epoch.phase.number + 1} epoch {epoch.number + 1}: validating", 0.0)
        ended = ended or self._has_ended(epoch)
        while not ended and epoch.validated < plan.validation_steps:
            ended = self._take_step(step, epoch, batches)
        if epoch.is_complete:
            epoch.end_validation()
            self._clock.after_validation(epoch.validation.seconds)
            ended = self._has_ended(epoch)
            self._after_epoch(step, epoch)
        else:  # a resumed run repeats the validation
            self._save_unfinished(step, epoch)
        if ended:
            for run in unfinished:
                run.stop()
        return ended

    # ------------------------------------------------------------------ parts of an epoch

    @property
    def active(self) -> list[RunProgress]:
        """The runs that the current phase still trains."""
        return [run for run in self.runs if run.is_training]

    def _take_step(self, step: TrainStep, epoch: RunningEpoch, batches: Prefetcher) -> bool:
        """Start the next step and read the one before it -> whether training ends. (all ranks)

        A single worker ends before the step. Several end after the same step, in which their votes are summed.
        """
        batch = self._next_batch(step, epoch, batches)
        should_stop = self.workers.is_chief and self.callback.should_stop()
        if should_stop and self.workers.world == 1:
            return True
        epoch.start(step, batch, tf.constant(float(should_stop)))
        return self._has_ended(epoch)

    def _has_ended(self, epoch: RunningEpoch) -> bool:
        return epoch.stop_votes > 0 or not self.active

    def _next_batch(self, step: TrainStep, epoch: RunningEpoch, batches: Prefetcher) -> Batch:
        """The next batch; if it cannot be read, a checkpoint of the steps so far is written first. (all ranks)"""
        loop = self.workers.progress
        loop.on_batch((epoch.phase.name, epoch.number, epoch.step + epoch.validated))
        try:
            if not batches.ready:  # the device waits, but only from the end of the step that runs
                epoch.read()
                loop.on_wait_start()
            batch: Batch = next(batches)
            return batch
        except (storage.StorageUnavailableError, FeatureCacheCorruptedError):
            self._save_unfinished(step, epoch)
            raise
        finally:
            loop.on_wait_end()

    def _after_step(self, step: TrainStep, epoch: RunningEpoch) -> None:
        """Report progress, and write a checkpoint if one is due. (chief only)"""
        if not self.workers.is_chief:
            return
        now, every_s = time.monotonic(), self.job.config.checkpoint_interval_s
        self._clock.after_step(epoch.number, epoch.step - 1)  # the last one has only been started
        if now - self._progress_at >= _PROGRESS_INTERVAL_S and epoch.training.images() > 0:
            self._progress_at = now
            self.callback.on_event(epoch.progress(self._clock))
        is_due = 0 < every_s <= now - self.runs[0].saved_at
        if is_due and epoch.step < epoch.plan.train_steps:
            self._save_unfinished(step, epoch)

    def _after_epoch(self, step: TrainStep, epoch: RunningEpoch) -> None:
        """Add the epoch to the runs, keep the best weights, and write checkpoints. (all ranks)"""
        trained, position = self.active, Position(epoch.phase.number, epoch.number + 1, 0)
        improved = np.zeros(len(self.runs), bool)
        for run in trained:
            improved[run.index] = run.after_epoch(epoch.record(run.index), position)
        if improved.any():
            step.keep_best(improved)
        self._fit_to_budget(epoch)
        self._save(step, [run for run in trained if self._is_due(run)], position)
        if trained and self.workers.is_chief:
            self.callback.on_event(self._epoch_event(epoch, trained))

    def _fit_to_budget(self, epoch: RunningEpoch) -> None:
        """Decide once in a phase how many of its epochs end in time. (all ranks)"""
        phase, epochs, found = epoch.phase, self.runs[0].state.epochs, 0
        if phase.name in epochs or self.job.deadline == math.inf:
            return
        if self.workers.is_chief:
            speed = self._clock.steps_per_second(epoch.number) or epoch.plan.train_steps / epoch.training.seconds
            is_last, validation_s = phase.name == build_phases(self.job.config)[-1].name, epoch.validation.seconds
            left = time_for_phase(self.job.deadline - time.time(), validation_s, is_last=is_last)
            found = fit_epochs(phase, epoch.number + 1, 1.0 / speed, epoch.plan.train_steps, validation_s, left)
            if found < phase.settings.epochs:
                self._note(f"time budget: {phase.name} trains {found} of {phase.settings.epochs} epochs")
        epochs[phase.name] = int.from_bytes(self.workers.from_chief(found.to_bytes(8, "big")), "big")

    def _save_unfinished(self, step: TrainStep, epoch: RunningEpoch) -> None:
        """Write checkpoints after the training steps that have been started. (all ranks; the chief writes)"""
        epoch.read()
        for run in self.active:
            run.state.epoch_sums = epoch.training.state_dict(run.index)
        self._save(step, self.active, epoch.position)

    def _save(self, step: TrainStep, runs: Iterable[RunProgress], position: Position) -> None:
        """Write a checkpoint of each of some runs. (all ranks; the chief writes)"""
        for run in runs:
            run.saved, run.saved_at = position, time.monotonic()
            if run.manager:
                name = run.manager.save(position, step.state_dict(run.index), run.state.state_dict())
                self.callback.on_event(CheckpointSaved(name=name))

    def _is_due(self, _run: RunProgress) -> bool:
        """Whether a checkpoint of a run is written at the end of the current epoch."""
        return True

    def _epoch_event(self, epoch: RunningEpoch, trained: Sequence[RunProgress]) -> Event:
        """The event at the end of an epoch, for the runs that were trained in it."""
        state = trained[0].state
        is_best = is_best_of_run(state.monitors, epoch.phase.name, epoch.number)
        return EpochEnd(record=state.history[-1], epochs=epoch.phase.settings.epochs, is_best=is_best)

    def _begin(self, text: str, usual_s: float) -> None:
        """Emit an `ActivityStarted`. (chief only; nothing happens on other ranks)"""
        if self.workers.is_chief:
            self.callback.on_event(ActivityStarted(text=text, usual_s=usual_s))

    def _note(self, text: str) -> None:
        """Emit a `Note`. (chief only; nothing happens on other ranks)"""
        if self.workers.is_chief:
            self.callback.on_event(Note(text=text))
