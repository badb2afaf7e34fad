"""Best checkpoints that are damaged: the best whole one takes their place, and the run's record says the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from support.epoch_records import epoch_record

from pharmclf.config import StoppingConfig
from pharmclf.training.checkpoint import CorruptedCheckpointError, write_checkpoint
from pharmclf.training.lr_schedule import EarlyStoppingState, selection_score
from pharmclf.training.phases import Position
from pharmclf.training.train_state import TrainState, finalize_best, replace_corrupted_best

STOPPING = StoppingConfig(early_patience=5, plateau_patience=2)


def trained(folder: Path, phases: dict[str, list[dict[str, float]]], *, keep: int = 9) -> TrainState:
    """A run behind these epochs of each phase, with its last checkpoints."""
    progress = TrainState()
    for phase, epochs in phases.items():
        monitor, number = EarlyStoppingState(), int(phase[-1]) - 1
        for epoch, scores in enumerate(epochs):
            record = epoch_record(phase, epoch, **scores)
            progress.history.append(record)
            monitor = monitor.after_epoch(epoch, selection_score(record), record.val_loss, STOPPING)
            progress.monitors[phase] = monitor
            position = Position(number, epoch + 1, 0)
            if monitor.best_epoch == epoch:
                progress.best[phase] = position.label
            if epoch >= len(epochs) - keep or epoch == monitor.best_epoch:
                tensors = {file: {"w": np.full(4, epoch, np.float32)} for file in ("weights", "optimizer")}
                write_checkpoint(str(folder), position, tensors, {}, {})
    return progress


def scores(accuracy: float, loss: float, **more: float) -> dict[str, float]:
    return {"val_accuracy": accuracy, "val_loss": loss, **more}


def damage(folder: Path, name: str, file: str = "weights.safetensors") -> None:
    place = folder / name / file
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.write_bytes(bytes(content))


FOUR = [scores(0.9, 1.0), scores(0.7, 0.5), scores(0.8, 0.9), scores(0.8, 0.6)]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_the_best_whole_checkpoint_takes_the_place_of_a_damaged_one(tmp_path: Path, file: str) -> None:
    """By accuracy, then by loss; one line names both, and what the schedule knows of the losses stays."""
    progress, said = trained(tmp_path, {"phase1": FOUR}), []
    before = progress.monitors["phase1"]
    assert progress.best == {"phase1": "phase1-epoch0001-step000000"}
    damage(tmp_path, "phase1-epoch0001-step000000", file)
    replace_corrupted_best(progress, str(tmp_path), 0, said.append)
    assert progress.best == {"phase1": "phase1-epoch0004-step000000"}
    changed = dataclasses.replace(before, best_accuracy=0.8, best_loss=0.6, best_epoch=3)
    assert progress.monitors["phase1"] == changed
    assert len(progress.history) == 4
    (line,) = said
    assert line.startswith("warning: the best checkpoint of phase1 is damaged (checkpoint ")
    assert file in line
    assert line.endswith(
        "phase1-epoch0004-step000000 takes its place, with validation accuracy 0.8000 instead of 0.9000"
    )


def test_a_whole_checkpoint_stays_the_best(tmp_path: Path) -> None:
    """Nothing is changed, and nothing said."""
    progress, said = trained(tmp_path, {"phase1": FOUR}), []
    damage(tmp_path, "phase1-epoch0003-step000000")
    before = (dict(progress.best), dict(progress.monitors))
    replace_corrupted_best(progress, str(tmp_path), 0, said.append)
    assert (progress.best, progress.monitors) == before
    assert said == []


def test_where_none_is_whole_the_next_epoch_is_the_best_so_far(tmp_path: Path) -> None:
    """In the phase under way: any epoch is better than none, and the plateaus so far still count."""
    progress, said = trained(tmp_path, {"phase1": FOUR[:1]}), []
    damage(tmp_path, "phase1-epoch0001-step000000")
    replace_corrupted_best(progress, str(tmp_path), 0, said.append)
    assert progress.best == {}
    assert said[0].endswith("no other one of phase1 is intact, so its best is chosen among the next epochs")
    after = progress.monitors["phase1"].after_epoch(1, 0.1, 3.0, STOPPING)
    assert (after.best_epoch, after.best_accuracy, after.best_loss) == (1, 0.1, 3.0)
    assert (after.lowest_loss, after.since_lowest) == (1.0, 1)


def test_a_phase_that_is_over_and_has_none_left_is_out_of_the_choice(tmp_path: Path) -> None:
    """Of a run in phase 2 whose phase 1 is lost, phase 2 alone is exported."""
    progress, said = trained(tmp_path, {"phase1": FOUR[:1], "phase2": FOUR[1:2]}, keep=1), []
    damage(tmp_path, "phase1-epoch0001-step000000")
    finalize_best(progress, str(tmp_path), said.append)
    assert progress.best == {"phase2": "phase2-epoch0001-step000000"}
    assert set(progress.monitors) == {"phase2"}
    damage(tmp_path, "phase2-epoch0001-step000000")
    with pytest.raises(CorruptedCheckpointError, match="none at the end of an epoch is intact"):
        finalize_best(progress, str(tmp_path), said.append)


def test_where_classes_are_weighed_the_best_is_the_most_balanced(tmp_path: Path) -> None:
    """Its place is taken by balanced accuracy too, whatever the accuracy says."""
    epochs = [
        scores(0.9, 1.0, val_balanced_accuracy=0.4),
        scores(0.7, 1.0, val_balanced_accuracy=0.6),
        scores(0.6, 1.0, val_balanced_accuracy=0.7),
    ]
    progress, said = trained(tmp_path, {"phase1": epochs}), []
    assert progress.best == {"phase1": "phase1-epoch0003-step000000"}
    damage(tmp_path, "phase1-epoch0003-step000000")
    replace_corrupted_best(progress, str(tmp_path), 0, said.append)
    assert progress.best == {"phase1": "phase1-epoch0002-step000000"}
    assert progress.monitors["phase1"].best_accuracy == 0.6
