"""Records of epochs made by hand."""

from __future__ import annotations

from typing import Any

from pharmclf.core.events import EpochRecord


def epoch_record(phase: str = "phase1", epoch: int = 0, **values: Any) -> EpochRecord:
    """An epoch with plausible numbers where none are given."""
    numbers = {"train_loss": 1.0, "train_accuracy": 0.6, "val_loss": 1.0, "val_accuracy": 0.5}
    numbers |= {"learning_rate": 1e-3, "seconds": 1.0, "images_per_second": 10.0}
    return EpochRecord(phase=phase, epoch=epoch, **numbers | values)
