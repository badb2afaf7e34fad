"""The console of a run: which epoch it calls the best, and what it says of a loss beyond reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.epoch_records import epoch_record
from support.recorder import Recorder

from pharmclf.console import ConsoleLogger
from pharmclf.core.events import EpochEnd
from pharmclf.core.signals import GracefulShutdown
from pharmclf.data.manifest import Manifest
from pharmclf.data.quarantine import Quarantine
from pharmclf.storage.lease import Lease
from pharmclf.training.context import TrainingDivergedError


@pytest.fixture
def shown(tmp_path: Path, drawn_manifest: Manifest) -> Iterator[tuple[ConsoleLogger, list[str], Recorder]]:
    """The console of a run of ten classes, its lines, and a listener."""
    lease, said, listener = Lease.acquire(str(tmp_path)), list[str](), Recorder()
    quarantine = Quarantine(drawn_manifest, 1.0, said.append)
    yield ConsoleLogger(GracefulShutdown(), lease, quarantine, (listener,), said.append, num_classes=10), said, listener
    lease.release()


def _epoch(phase: str, number: int, loss: float, *, best: bool) -> EpochEnd:
    return EpochEnd(record=epoch_record(phase, number, train_loss=loss, val_loss=loss), epochs=2, is_best=best)


def test_the_best_epoch_is_called_so_and_a_loss_beyond_reason_never_is(shown: Any):
    """A guess among ten classes has a loss of ln 10 = 2.30; a hundred times that is no model, and is said once."""
    console, said, listener = shown
    console.on_event(_epoch("phase1", 0, 229.0, best=True))
    assert said[-1].endswith("best")
    console.on_event(_epoch("phase1", 1, 1.2e7, best=True))
    heading, first, second, warning = said
    assert "val loss" in heading
    assert "229.0" in first
    assert "1.2e+07" in second
    assert not second.endswith("best")
    assert all(part in warning for part in ("phase1 has diverged", "1.2e+07", "2.3", "Lower phase1.learning_rate"))
    assert listener.notes == [warning]
    console.on_event(_epoch("phase1", 1, 1.3e7, best=False))
    assert len(said) == 5


def test_the_phase_that_diverged_first_is_named(shown: Any):
    """Phase 2 cannot mend what phase 1 has left; without a sign of that the error stays as it was."""
    console, _, _ = shown
    with pytest.raises(TrainingDivergedError) as caught, console.explain_divergence():
        raise TrainingDivergedError("the loss is nan in phase2, epoch 1, step 4")
    assert str(caught.value) == "the loss is nan in phase2, epoch 1, step 4"
    console.on_event(_epoch("phase1", 0, 5e5, best=True))
    with pytest.raises(
        TrainingDivergedError, match=r"in phase2.*phase1 had diverged before, to a validation loss of 5e\+05"
    ):
        with console.explain_divergence():
            raise TrainingDivergedError("the loss is nan in phase2, epoch 1, step 4")
    with pytest.raises(TrainingDivergedError) as caught, console.explain_divergence():
        raise TrainingDivergedError("the loss is nan in phase1, epoch 2, step 1")
    assert "before" not in str(caught.value)
