"""What a run has come to, and its best checkpoints: a damaged one is replaced by the best whole one; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pharmclf import storage
from pharmclf.core.console import Say
from pharmclf.training.checkpoint import DamagedCheckpoint, read_checkpoint
from pharmclf.training.phases import Position
from pharmclf.training.schedule import Monitor, score_of

_ALL_PHASES = 2  # beyond the number of the last one


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


def replace_damaged_best(progress: Progress, folder: str, number: int, say: Say) -> None:
    """Let the best whole checkpoint of a phase take the place of a damaged one, and say so. (chief only)

    Args:
        progress: of the run; changed. The records of the epochs stay as they were measured.
        folder: the run's `checkpoints/`.
        number: of the phase under way; one before it that has no whole checkpoint is left out of the run's best.
        say: takes notes for the user.
    """
    for phase, name in list(progress.best.items()):
        reason = _damage(storage.join(folder, name))
        if not reason:
            continue
        record = _best_whole(progress.history, phase, folder)
        monitor = Monitor.from_dict(progress.monitors[phase])
        lost = f"warning: the best checkpoint of {phase} is damaged ({reason}); "
        if record is not None:
            progress.best[phase] = _name_of(record)
            was, now = monitor.best_accuracy, score_of(record)
            say(f"{lost}{_name_of(record)} takes its place, with validation accuracy {now:.4f} instead of {was:.4f}")
        elif _number(phase) < number:
            del progress.best[phase], progress.monitors[phase]
            say(f"{lost}no other one of {phase} is whole, so that the run's best is sought among later phases")
            continue
        else:
            del progress.best[phase]
            say(f"{lost}no other one of {phase} is whole, so that its best is sought among the epochs to come")
        progress.monitors[phase] = monitor.with_best(record).to_dict()


def settle_best(progress: Progress, folder: str, say: Say) -> None:
    """As `replace_damaged_best`, of a run that has trained all its phases. (chief only)

    Raises:
        DamagedCheckpoint: no checkpoint at the end of an epoch is whole.
    """
    replace_damaged_best(progress, folder, _ALL_PHASES, say)
    if not progress.best:
        raise DamagedCheckpoint(f"checkpoints of {folder}: none at the end of an epoch is whole. Give another --name")


def _damage(location: str) -> str:
    """What is wrong with a checkpoint; "" where every file is as it was written."""
    try:
        checkpoint = read_checkpoint(location)
        for file in checkpoint.files:
            checkpoint.tensors(file.removesuffix(".safetensors"))
    except DamagedCheckpoint as error:
        return str(error)
    return ""


def _best_whole(history: list[dict[str, Any]], phase: str, folder: str) -> dict[str, Any] | None:
    """The record of the best epoch of a phase, by the monitor's order, whose checkpoint is whole."""
    records = [record for record in history if record["phase"] == phase]
    records.sort(key=lambda record: (-score_of(record), record["val_loss"], record["epoch"]))
    there = set(storage.list_folders(folder))
    kept = [record for record in records if _name_of(record) in there]
    return next((record for record in kept if not _damage(storage.join(folder, _name_of(record)))), None)


def _name_of(record: Mapping[str, Any]) -> str:
    """Name of the checkpoint at the end of an epoch."""
    return Position(_number(record["phase"]), record["epoch"] + 1, 0).label


def _number(phase: str) -> int:
    return int(phase.removeprefix("phase")) - 1
