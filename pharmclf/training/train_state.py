"""State of a run in training and its result; a damaged best checkpoint is replaced by the best intact one; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.core.events import EpochRecord
from pharmclf.training.checkpoint import CorruptedCheckpointError, read_checkpoint
from pharmclf.training.lr_schedule import EarlyStoppingState, selection_score
from pharmclf.training.phases import Position, phase_number

_ALL_PHASES = 2  # beyond the number of the last one


class TrainStatus(StrEnum):
    """How training has ended."""

    COMPLETE = "complete"
    STOPPED = "stopped"
    """On request; a checkpoint is written."""
    DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """Result of the training of a run."""

    status: TrainStatus = TrainStatus.COMPLETE
    reason: str = ""
    """Why it diverged."""
    device: str
    precision: str
    workers: int
    """0: trained in the calling process."""
    history: list[EpochRecord]
    monitors: dict[str, EarlyStoppingState]
    """By name of the phase."""
    best: dict[str, str]
    """Name of each phase's best checkpoint."""


@dataclass
class TrainState:
    """Part of every checkpoint: what training needs to resume, except tensors and position."""

    history: list[EpochRecord] = field(default_factory=list)
    monitors: dict[str, EarlyStoppingState] = field(default_factory=dict)
    """By name of the phase."""
    best: dict[str, str] = field(default_factory=dict)
    """Name of each phase's best checkpoint."""
    epoch_sums: dict[str, float] = field(default_factory=dict)
    """Of the training steps of an epoch that is not finished: loss, correct, images, seconds."""
    epochs: dict[str, int] = field(default_factory=dict)
    """What a time budget leaves of a phase's epochs, by name of the phase, once it is known."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values for JSON; later changes of the state do not change them."""
        planned = {"epochs": dict(self.epochs)} if self.epochs else {}
        return planned | {
            "history": [record.to_dict() for record in self.history],
            "monitors": {phase: monitor.to_dict() for phase, monitor in self.monitors.items()},
            "best": dict(self.best),
            "epoch_sums": dict(self.epoch_sums),
        }

    def load_state_dict(self, values: Mapping[str, Any]) -> None:
        """Restore `state_dict`; parts that are missing in it stay as they are."""
        if "history" in values:
            self.history = [EpochRecord.from_dict(record) for record in values["history"]]
        if "monitors" in values:
            monitors = values["monitors"].items()
            self.monitors = {phase: EarlyStoppingState.from_dict(monitor) for phase, monitor in monitors}
        self.best = dict(values.get("best", self.best))
        self.epoch_sums = dict(values.get("epoch_sums", self.epoch_sums))
        self.epochs = dict(values.get("epochs", self.epochs))

    def to_result(
        self,
        *,
        device: str,
        precision: str,
        workers: int,
        status: TrainStatus = TrainStatus.COMPLETE,
        reason: str = "",
    ) -> TrainResult:
        """The result of a training that has ended in this state."""
        return TrainResult(
            status=status,
            reason=reason,
            device=device,
            precision=precision,
            workers=workers,
            history=self.history,
            monitors=self.monitors,
            best=self.best,
        )


def replace_corrupted_best(state: TrainState, folder: str, current: int, say: Say) -> None:
    """Replace damaged best checkpoints by the best intact one of the same phase. (chief only)

    Args:
        state: of the run; changed. The records of the epochs stay as they are.
        current: number of the current phase; an earlier one without an intact checkpoint cannot be the best of the run.
    """
    for phase, name in list(state.best.items()):
        reason = _find_damage(storage.join(folder, name))
        if not reason:
            continue
        record, monitor = _best_intact(state.history, phase, folder), state.monitors[phase]
        damaged = f"warning: the best checkpoint of {phase} is damaged ({reason}); "
        if record is not None:
            state.best[phase] = _checkpoint_name(record)
            say(
                f"{damaged}{_checkpoint_name(record)} takes its place, with validation accuracy "
                f"{selection_score(record):.4f} instead of {monitor.best_accuracy:.4f}"
            )
        elif phase_number(phase) < current:
            del state.best[phase], state.monitors[phase]
            say(f"{damaged}no other one of {phase} is intact, so the run's best is chosen among later phases")
            continue
        else:
            del state.best[phase]
            say(f"{damaged}no other one of {phase} is intact, so its best is chosen among the next epochs")
        state.monitors[phase] = monitor.with_best(record)


def finalize_best(state: TrainState, folder: str, say: Say) -> None:
    """As `replace_corrupted_best`, after all phases. (chief only)

    Raises:
        CorruptedCheckpointError: no checkpoint at the end of an epoch is intact.
    """
    replace_corrupted_best(state, folder, _ALL_PHASES, say)
    if not state.best:
        raise CorruptedCheckpointError(
            f"checkpoints of {folder}: none at the end of an epoch is intact. Give another --name"
        )


def _find_damage(location: str) -> str:
    """What is wrong with a checkpoint; "" if every file is intact."""
    try:
        checkpoint = read_checkpoint(location)
        for file in checkpoint.files:
            checkpoint.tensors(file.removesuffix(".safetensors"))
    except CorruptedCheckpointError as error:
        return str(error)
    return ""


def _best_intact(history: list[EpochRecord], phase: str, folder: str) -> EpochRecord | None:
    """The record of the best epoch of a phase, by the order of `EarlyStoppingState`, whose checkpoint is intact."""
    records = [record for record in history if record.phase == phase]
    records.sort(key=lambda record: (-selection_score(record), record.val_loss, record.epoch))
    existing = set(storage.list_folders(folder))
    kept = [record for record in records if _checkpoint_name(record) in existing]
    return next((record for record in kept if not _find_damage(storage.join(folder, _checkpoint_name(record)))), None)


def _checkpoint_name(record: EpochRecord) -> str:
    """Name of the checkpoint at the end of an epoch."""
    return Position(phase_number(record.phase), record.epoch + 1, 0).label
