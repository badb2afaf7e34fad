"""A run as the trainer sees it: settings, state, early stopping and checkpoints."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field

import numpy as np

from pharmclf.config import RunConfig
from pharmclf.core.events import EpochRecord
from pharmclf.training.checkpoint_manager import CheckpointManager
from pharmclf.training.lr_schedule import EarlyStoppingState, learning_rate, selection_score
from pharmclf.training.phases import Phase, Position, build_phases
from pharmclf.training.train_state import TrainState, TrainStatus


@dataclass(eq=False)
class RunProgress:
    """A run in training, one of K that a `TrainStep` moves."""

    config: RunConfig
    index: int = 0
    """0 to K - 1."""
    manager: CheckpointManager | None = None
    """None except on the chief."""
    state: TrainState = field(default_factory=TrainState)
    status: TrainStatus = TrainStatus.COMPLETE  # unless something happens
    reason: str = ""
    """Why it diverged."""
    phase: Phase = field(init=False)
    """The current phase, with the settings of this run."""
    is_training: bool = False
    """Whether the current phase still trains it."""
    saved: Position | None = None
    """Position of its newest checkpoint."""
    saved_at: float = 0.0
    """`time.monotonic` of that checkpoint, or of the start of the phase."""

    @property
    def monitor(self) -> EarlyStoppingState:
        """Early stopping in the current phase."""
        return self.state.monitors.get(self.phase.name, EarlyStoppingState())

    @property
    def is_balanced(self) -> bool:
        """Whether its epochs can be chosen by balanced accuracy; those of an earlier version do not have it."""
        return all(record.val_balanced_accuracy is not None for record in self.state.history)

    def plan_phase(self, name: str) -> Phase:
        """A phase, with the epochs that a time budget leaves it; they become those of its settings."""
        if epochs := self.state.epochs.get(name):
            settings = dataclasses.replace(getattr(self.config, name), epochs=epochs)
            self.config = dataclasses.replace(self.config, **{name: settings})
        (phase,) = (phase for phase in build_phases(self.config) if phase.name == name)
        return phase

    def begin_phase(self, name: str) -> None:
        """Begin or resume a phase; one that diverged or has stopped early is not trained."""
        self.phase = self.plan_phase(name)
        self.is_training = self.status is TrainStatus.COMPLETE and not self.monitor.should_stop(self.config.stopping)
        self.saved_at = time.monotonic()

    def learning_rates(self, epoch: int, steps: int) -> np.ndarray:
        """(steps,) float32 learning rates of an epoch; 0 if the phase does not train the run any more."""
        if not self.is_training:
            return np.zeros(steps, np.float32)
        settings, stopping, scale = self.phase.settings, self.config.stopping, self.monitor.scale
        total = settings.epochs * steps
        rates = [learning_rate(settings, stopping, epoch * steps + step, total, scale) for step in range(steps)]
        return np.asarray(rates, np.float32)

    def after_epoch(self, record: EpochRecord, position: Position) -> bool:
        """Add an epoch that ends at a position -> whether it is the best of the phase."""
        if not self.is_balanced:
            record = dataclasses.replace(record, val_balanced_accuracy=None)
        self.state.history.append(record)
        self.state.epoch_sums = {}
        monitor = self.monitor.after_epoch(record.epoch, selection_score(record), record.val_loss, self.config.stopping)
        self.state.monitors[self.phase.name] = monitor
        is_best = monitor.best_epoch == record.epoch
        if is_best:
            self.state.best[self.phase.name] = position.label
        has_epochs = position.epoch < self.phase.settings.epochs
        self.is_training = has_epochs and not monitor.should_stop(self.config.stopping)
        return is_best

    def diverge(self, reason: str) -> None:
        """End its training because of a loss that is not finite."""
        self.is_training, self.status, self.reason = False, TrainStatus.DIVERGED, reason

    def stop(self) -> None:
        """End its training on request, unless it has diverged."""
        self.is_training = False
        if self.status is TrainStatus.COMPLETE:
            self.status = TrainStatus.STOPPED
