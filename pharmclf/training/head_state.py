"""One member of a group of runs whose heads train side by side: what it has come to, and its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.events import Callback, EpochRecord, Note
from pharmclf.training.checkpoint import check_fingerprints, list_checkpoints
from pharmclf.training.checkpoint_manager import CheckpointManager
from pharmclf.training.lr_schedule import EarlyStoppingState, learning_rate, selection_score
from pharmclf.training.phases import Phase, Position
from pharmclf.training.stacked import VectorizedHeads
from pharmclf.training.train_state import TrainState


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadSpec:
    """One run of a group."""

    config: RunConfig
    folder: str
    """The run's folder in storage."""
    fingerprints: dict[str, Any]
    """What its checkpoints must agree with to be resumed."""

    @property
    def checkpoints(self) -> str:
        """Folder of the checkpoints."""
        return storage.join(self.folder, "checkpoints")


@dataclass(eq=False)
class HeadState:
    """One member, and what it has come to."""

    member: HeadSpec
    place: int
    """Its number among the heads."""
    status: str = "complete"  # unless something happens
    reason: str = ""
    progress: TrainState = field(default_factory=TrainState)
    monitor: EarlyStoppingState = field(default_factory=EarlyStoppingState)
    training: bool = False
    """Whether the phase under way still trains it."""
    best: tuple[Position, dict[str, Any]] | None = None
    """Of the phase under way: position and progress behind its best epoch; weights and optimizer are on the device."""
    saver: CheckpointManager | None = None
    written_at: float = field(default_factory=time.monotonic)
    _written: set[Position] = field(default_factory=set)

    def open(self, observer: Callback) -> None:
        """Make its saver; checkpoints that are there already are replaced as it goes.

        Raises:
            ConfigError: a checkpoint belongs to another run.
        """
        member = self.member
        self.saver = CheckpointManager(
            member.checkpoints,
            member.fingerprints,
            member.config.keep_checkpoints,
            lambda text: observer.on_event(Note(text=f"{member.folder}: {text}")),
        )
        for checkpoint in list_checkpoints(member.checkpoints):
            check_fingerprints(checkpoint.fingerprints, member.fingerprints, f"checkpoint {checkpoint.location}")

    def flush(self) -> None:
        """Wait until its checkpoints are in the storage."""
        if self.saver:
            self.saver.flush()

    def close(self) -> None:
        """End the uploads."""
        if self.saver:
            self.saver.close()

    def begin(self) -> None:
        """A phase begins; one that diverged before stays out."""
        self.training, self.monitor, self.best = self.status == "complete", EarlyStoppingState(), None

    def rates(self, phase: Phase, epoch: int, steps: int) -> list[float]:
        """The learning rate of each training step of an epoch; 0 where the phase has ended for it."""
        if not self.training:
            return [0.0] * steps
        stopping, total = self.member.config.stopping, phase.settings.epochs * steps
        first, scale = epoch * steps, self.monitor.scale
        return [learning_rate(phase.settings, stopping, first + step, total, scale) for step in range(steps)]

    def after_epoch(self, record: EpochRecord, position: Position) -> bool:
        """Add an epoch that ends at a position -> whether it is the best of the phase."""
        stopping, name, epoch = self.member.config.stopping, record.phase, record.epoch
        self.progress.history.append(record)
        self.monitor = self.monitor.after_epoch(epoch, selection_score(record), record.val_loss, stopping)
        self.progress.monitors[name] = self.monitor.to_dict()
        self.progress.epoch_sums = {}
        improved = self.monitor.best_epoch == epoch
        if improved:
            self.progress.best[name] = position.label
            self.best = position, self.progress.to_dict()
        return improved

    def due(self) -> bool:
        """Whether a checkpoint is to be written at the end of this epoch."""
        return 0 < self.member.config.checkpoint_every_s <= time.monotonic() - self.written_at

    def write(self, heads: VectorizedHeads, position: Position | None) -> None:
        """Write its best epoch, and then where it stands, which refers to that; without a position the best alone."""
        if self.best:
            at, state = self.best
            self._save(at, state, lambda: heads.state_dict(self.place, best=True))
        if position:
            self._save(position, self.progress.to_dict(), lambda: heads.state_dict(self.place))
        self.written_at = time.monotonic()

    def _save(self, position: Position, state: dict[str, Any], tensors: Callable[[], Any]) -> None:
        if self.saver and position not in self._written:
            self.saver.save(position, tensors(), state)
            self._written.add(position)
