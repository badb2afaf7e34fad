"""What the steps of an epoch add up to, and how far it has come."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from pharmclf.core.events import Callback, StepEnd
from pharmclf.data.batch_sampler import BatchPlan
from pharmclf.training.context import TrainingContext, TrainingDivergedError
from pharmclf.training.phases import Phase
from pharmclf.training.train_step import StepResult

_REPORT_INTERVAL_S = 2.0


class EpochMetrics:
    """Sums over the steps of an epoch, for all workers together."""

    def __init__(self, values: dict[str, float]) -> None:
        self.loss = values.get("loss", 0.0)
        self.correct = values.get("correct", 0.0)
        self.images = values.get("images", 0.0)
        self.by_class: np.ndarray | None = None
        """(2, classes) correct rows and rows of each class, where the steps give them."""
        self._seconds_before = values.get("seconds", 0.0)
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of the epoch so far, those before a resume included."""
        return self._seconds_before + time.monotonic() - self._began

    @property
    def mean_loss(self) -> float:
        """Per image; 0 where every image is quarantined."""
        return self.loss / max(1.0, self.images)

    @property
    def accuracy(self) -> float:
        """Share of the images that are right, 0..1; 0 where every image is quarantined."""
        return self.correct / max(1.0, self.images)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"loss": self.loss, "correct": self.correct, "images": self.images, "seconds": self.seconds}

    def add(self, running: Any, step: int, phase: Phase, epoch: int, *, training: bool = True) -> StepResult:
        """Wait for a step and add it; None adds nothing, and what has been read before is not added again."""
        if running is None:
            return StepResult(0.0, 0.0, 0.0, 0.0)
        if isinstance(running, StepResult):
            return running
        result = StepResult.of(running)
        if not np.isfinite(result.loss_sum):
            name = "step" if training else "validation step"
            where = f"the loss is {result.loss_sum} in {phase.name}, epoch {epoch + 1}, {name} {step + 1}"
            if training and (epoch, step) == (0, 0) and phase.first_epoch:  # its learning rate has moved nothing yet
                raise TrainingDivergedError(
                    f"{where}, which is computed with the weights of phase1: that phase has diverged. Lower "
                    "phase1.learning_rate or set optimizer.clip_norm to 1"
                )
            raise TrainingDivergedError(
                f"{where}. Lower {phase.name}.learning_rate ({phase.settings.learning_rate}) or set "
                "optimizer.clip_norm to 1"
            )
        self.loss += result.loss_sum
        self.correct += result.correct
        self.images += result.images
        if result.by_class is not None:
            self.by_class = result.by_class if self.by_class is None else self.by_class + result.by_class
        return result


def balanced_accuracy(by_class: np.ndarray) -> float:
    """The mean recall of the classes that have rows; 0 where none has.

    Args:
        by_class: (2, classes) correct rows and rows of each class.
    """
    correct, rows = by_class[:, by_class[1] > 0]
    return float((correct / rows).mean()) if len(rows) else 0.0


class ProgressReporter:
    """Tells the observer how an epoch goes on, every few seconds. (chief only)"""

    def __init__(
        self, job: TrainingContext, observer: Callback, phase: Phase, plan: BatchPlan, epoch: int, first_step: int
    ) -> None:
        self.job, self.observer, self.phase, self.plan = job, observer, phase, plan
        self.epoch, self.first_step = epoch, first_step
        self.began = self.shown = time.monotonic()

    def maybe_report(self, step: int, sums: EpochMetrics) -> None:
        """`train_step` steps of the epoch have been started; `sums` holds those before the last of them."""
        now = time.monotonic()
        if now - self.shown < _REPORT_INTERVAL_S or sums.images == 0:
            return
        self.shown = now
        seconds_per_step = (now - self.began) / (step - self.first_step)
        epochs = self.phase.settings.epochs
        steps_left = (epochs - self.epoch) * self.plan.train_steps - step
        self.observer.on_event(
            StepEnd(
                phase=self.phase.name,
                epoch=self.epoch,
                epochs=epochs,
                step=step,
                steps=self.plan.train_steps,
                loss=sums.mean_loss,
                accuracy=sums.accuracy,
                images_per_second=self.plan.batch_size / seconds_per_step,
                eta_s=steps_left * seconds_per_step,
            )
        )
