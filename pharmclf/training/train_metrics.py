"""An epoch while it runs: its position, the step that the device computes, and the metrics of the steps before."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pharmclf.core.events import EpochRecord, StepEnd
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.training.loop_progress import PhaseClock
from pharmclf.training.phases import Phase, Position
from pharmclf.training.run_progress import RunProgress
from pharmclf.training.train_step import Batch, StepResult, TrainStep


class EpochMetrics:
    """Sums over the steps of an epoch and all workers, of each of K runs."""

    def __init__(self, saved: Sequence[Mapping[str, float]]) -> None:
        """Saved: `state_dict` of each run in the checkpoint that resumes the epoch, else {}."""
        self._sums = np.array([[sums.get(name, 0.0) for sums in saved] for name in ("loss", "correct", "images")])
        self._by_class: np.ndarray | None = None  # (2, classes, K) correct rows and rows of each class
        self._seconds_before = saved[0].get("seconds", 0.0)
        self._began, self._ended = time.monotonic(), 0.0

    def add(self, result: StepResult) -> None:
        """Add a step."""
        self._sums += result.loss_sum, result.correct, result.images
        if result.by_class is not None:
            self._by_class = result.by_class if self._by_class is None else self._by_class + result.by_class

    def stop_clock(self) -> None:
        """The last step has been added."""
        self._ended = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of the steps so far, including those before a resume."""
        return self._seconds_before + (self._ended or time.monotonic()) - self._began

    def images(self, run: int = 0) -> float:
        """Number of images that count: those that are not quarantined."""
        return float(self._sums[2, run])

    def mean_loss(self, run: int = 0) -> float:
        """Per image; 0 if all are quarantined."""
        return float(self._sums[0, run]) / max(1.0, self.images(run))

    def accuracy(self, run: int = 0) -> float:
        """Share of correct images, 0..1; 0 if all are quarantined."""
        return float(self._sums[1, run]) / max(1.0, self.images(run))

    def balanced_accuracy(self, run: int = 0) -> float | None:
        """Mean recall of the classes that have rows; None if the steps do not count classes."""
        if self._by_class is None:
            return None
        counts = self._by_class[:, :, run]
        correct, rows = counts[:, counts[1] > 0]
        return float((correct / rows).mean()) if len(rows) else 0.0

    def state_dict(self, run: int = 0) -> dict[str, float]:
        """The sums for a checkpoint."""
        loss, correct, images = self._sums[:, run].tolist()
        return {"loss": loss, "correct": correct, "images": images, "seconds": self.seconds}


class RunningEpoch:
    """An epoch while it runs. One step is always left to the device: it is read while the next one runs."""

    def __init__(
        self, runs: Sequence[RunProgress], phase: Phase, plan: BatchPlan, number: int, first_step: int = 0
    ) -> None:
        """The epoch begins, or is resumed before step `first_step`."""
        self.runs, self.phase, self.plan, self.number = runs, phase, plan, number
        self.step, self._first_step = first_step, first_step
        """Training steps that have been started."""
        self.validated = 0
        """Validation steps that have been started."""
        self.stop_votes = 0.0
        """Of the steps that have been read."""
        self.training = EpochMetrics([run.state.epoch_sums if first_step else {} for run in runs])
        self.validation = EpochMetrics([{} for _ in runs])
        self.is_validating = False
        self._rates = np.stack([run.learning_rates(number, plan.train_steps) for run in runs])  # (K, steps)
        self._running: Any = None  # sums of a step on the device
        self._began = time.monotonic()

    @property
    def is_complete(self) -> bool:
        """Whether all steps have been started."""
        return self.step == self.plan.train_steps and self.validated == self.plan.validation_steps

    @property
    def position(self) -> Position:
        """After the training steps that have been started."""
        return Position(self.phase.number, self.number, self.step)

    def start(self, step: TrainStep, batch: Batch, stop_vote: Any) -> None:
        """Start the next step, and read the one before it. (all ranks)"""
        if not self.is_validating:
            step.set_learning_rates(self._rates[:, self.step])
            running = step.train_step(batch, stop_vote)
            self.read()
            self.step += 1
        else:
            running = step.validation_step(batch, stop_vote)
            self.read()
            self.validated += 1
        self._running = running

    def read(self) -> None:
        """Wait for the step that runs, if any, and add its sums; a run whose loss is not finite diverges."""
        if self._running is None:
            return
        result, self._running = StepResult.of(self._running), None
        self.stop_votes += result.stop_votes
        (self.validation if self.is_validating else self.training).add(result)
        for run in self.runs:
            if run.is_training and not np.isfinite(result.loss_sum[run.index]):
                run.diverge(self._divergence_reason(run.phase, float(result.loss_sum[run.index])))

    def end_training(self) -> None:
        """Read the last training step, and begin the validation."""
        self.read()
        self.training.stop_clock()
        self.validation, self.is_validating = EpochMetrics([{} for _ in self.runs]), True

    def end_validation(self) -> None:
        """Read the last validation step."""
        self.read()
        self.validation.stop_clock()

    def record(self, run: int) -> EpochRecord:
        """The epoch in the history of a run, after the last validation step; times are those of all runs."""
        training, validation = self.training, self.validation
        return EpochRecord(
            phase=self.phase.name,
            epoch=self.number,
            train_loss=training.mean_loss(run),
            train_accuracy=training.accuracy(run),
            val_loss=validation.mean_loss(run),
            val_accuracy=validation.accuracy(run),
            val_balanced_accuracy=validation.balanced_accuracy(run),
            learning_rate=float(self._rates[run, -1]),
            seconds=training.seconds + validation.seconds,
            images_per_second=max(1.0, training.images(run)) / training.seconds,
        )

    def progress(self, clock: PhaseClock) -> StepEnd:
        """Progress of the first run; steps have been started since the epoch began or was resumed."""
        steps_per_second = clock.steps_per_second(self.number)
        if steps_per_second is None:
            steps_per_second = (self.step - self._first_step) / (time.monotonic() - self._began)
        return StepEnd(
            phase=self.phase.name,
            epoch=self.number,
            epochs=self.phase.settings.epochs,
            step=self.step,
            steps=self.plan.train_steps,
            loss=self.training.mean_loss(),
            accuracy=self.training.accuracy(),
            images_per_second=self.plan.batch_size * steps_per_second,
            eta_s=clock.eta_s(self.number, self.step),
        )

    def _divergence_reason(self, phase: Phase, loss: float) -> str:
        number = self.validated if self.is_validating else self.step  # of the step that runs, from 1
        kind = "validation step" if self.is_validating else "step"
        where = f"the loss is {loss} in {phase.name}, epoch {self.number + 1}, {kind} {number}"
        if (
            not self.is_validating and (self.number, number) == (0, 1) and phase.first_epoch
        ):  # it has not changed the weights yet
            return (
                f"{where}, which is computed with the weights of phase1: that phase has diverged. Lower "
                "phase1.learning_rate or set optimizer.clip_norm to 1"
            )
        rate = phase.settings.learning_rate
        return f"{where}. Lower {phase.name}.learning_rate ({rate}) or set optimizer.clip_norm to 1"
