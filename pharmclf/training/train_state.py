"""What a run has come to, and its best checkpoints: a damaged one is replaced by the best whole one; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.core.events import EpochRecord
from pharmclf.training.checkpoint import CorruptedCheckpointError, read_checkpoint
from pharmclf.training.lr_schedule import EarlyStoppingState, selection_score
from pharmclf.training.phases import Position

_ALL_PHASES = 2  # beyond the number of the last one


@dataclass
class TrainState:
    """What a run has come to; all of it is in every checkpoint."""

    history: list[EpochRecord] = field(default_factory=list)
    monitors: dict[str, dict[str, Any]] = field(default_factory=dict)
    best: dict[str, str] = field(default_factory=dict)
    """Name of each phase's best checkpoint."""
    epoch_sums: dict[str, float] = field(default_factory=dict)
    """Of the epoch under way: loss, correct, images, seconds."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; later changes of the state do not change them."""
        return {
            "history": [record.to_dict() for record in self.history],
            "monitors": dict(self.monitors),
            "best": dict(self.best),
            "epoch_sums": dict(self.epoch_sums),
        }

    def load(self, values: Mapping[str, Any]) -> None:
        """Replace the parts that a checkpoint holds, given as by `to_dict`."""
        vars(self).update(values)
        if "history" in values:
            self.history = [EpochRecord.from_dict(record) for record in values["history"]]


def replace_corrupted_best(progress: TrainState, folder: str, number: int, say: Say) -> None:
    """Let the best whole checkpoint of a phase take the place of a damaged one, and say so. (chief only)

    Args:
        progress: of the run; changed. The records of the epochs stay as they were measured.
        folder: the run's `checkpoints/`.
        number: of the phase under way; one before it that has no whole checkpoint is left out of the run's best.
        say: takes notes for the user.
    """
    for phase, name in list(progress.best.items()):
        reason = _find_damage(storage.join(folder, name))
        if not reason:
            continue
        record = _best_intact(progress.history, phase, folder)
        monitor = EarlyStoppingState.from_dict(progress.monitors[phase])
        lost = f"warning: the best checkpoint of {phase} is damaged ({reason}); "
        if record is not None:
            progress.best[phase] = _checkpoint_name(record)
            was, now = monitor.best_accuracy, selection_score(record)
            say(
                f"{lost}{_checkpoint_name(record)} takes its place, with validation accuracy {now:.4f} instead of "
                f"{was:.4f}"
            )
        elif _number(phase) < number:
            del progress.best[phase], progress.monitors[phase]
            say(f"{lost}no other one of {phase} is whole, so that the run's best is sought among later phases")
            continue
        else:
            del progress.best[phase]
            say(f"{lost}no other one of {phase} is whole, so that its best is sought among the epochs to come")
        progress.monitors[phase] = monitor.with_best(record).to_dict()


def finalize_best(progress: TrainState, folder: str, say: Say) -> None:
    """As `replace_corrupted_best`, of a run that has trained all its phases. (chief only)

    Raises:
        CorruptedCheckpointError: no checkpoint at the end of an epoch is whole.
    """
    replace_corrupted_best(progress, folder, _ALL_PHASES, say)
    if not progress.best:
        raise CorruptedCheckpointError(
            f"checkpoints of {folder}: none at the end of an epoch is whole. Give another --name"
        )


def _find_damage(location: str) -> str:
    """What is wrong with a checkpoint; "" where every file is as it was written."""
    try:
        checkpoint = read_checkpoint(location)
        for file in checkpoint.files:
            checkpoint.tensors(file.removesuffix(".safetensors"))
    except CorruptedCheckpointError as error:
        return str(error)
    return ""


def _best_intact(history: list[EpochRecord], phase: str, folder: str) -> EpochRecord | None:
    """The record of the best epoch of a phase, by the monitor's order, whose checkpoint is whole."""
    records = [record for record in history if record.phase == phase]
    records.sort(key=lambda record: (-selection_score(record), record.val_loss, record.epoch))
    there = set(storage.list_folders(folder))
    kept = [record for record in records if _checkpoint_name(record) in there]
    return next((record for record in kept if not _find_damage(storage.join(folder, _checkpoint_name(record)))), None)


def _checkpoint_name(record: EpochRecord) -> str:
    """Name of the checkpoint at the end of an epoch."""
    return Position(_number(record.phase), record.epoch + 1, 0).label


def _number(phase: str) -> int:
    return int(phase.removeprefix("phase")) - 1
