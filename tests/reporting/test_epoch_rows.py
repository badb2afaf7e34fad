"""The rows of epochs fit 80 columns and stand below their headings; what the moving line shows of a step."""

from __future__ import annotations

import dataclasses

import pytest
from support.epoch_records import epoch_record

from pharmclf.core.events import EpochRecord, StepEnd
from pharmclf.reporting.epoch_rows import BEST_MARK, epoch_header, epoch_row, step_progress

RECORD = EpochRecord(
    phase="phase2", epoch=11, train_loss=0.12345, train_accuracy=0.98765, val_loss=0.23456, val_accuracy=0.91234,
    learning_rate=1e-4, seconds=83.0, images_per_second=1234.4,
)  # fmt: skip


@pytest.mark.parametrize("balanced", [None, 0.5])
@pytest.mark.parametrize("loss", [0.0, 12.3456, 999.9, 1.2e7, 3.4e38])
def test_the_cells_of_a_row_end_where_their_headings_do(balanced: float | None, loss: float):
    """Whatever the loss; the row of the best epoch is within 80 columns too."""
    record = dataclasses.replace(RECORD, train_loss=loss, val_loss=loss, val_balanced_accuracy=balanced)
    heading, row = epoch_header(is_balanced=balanced is not None), epoch_row(record, 30, is_best=True)
    assert len(row) <= 80
    cells = row.removesuffix(BEST_MARK)
    for name in ("epoch", "accuracy", "val loss", "val acc", "time"):
        end = heading.index(name) + len(name)
        assert cells[end - 1] != " "
        assert cells[end : end + 1] in (" ", "")


def test_a_row_has_all_numbers_of_its_epoch():
    row = epoch_row(RECORD, 30, is_best=False)
    assert row.split() == ["phase", "2", "12/30", "0.1235", "0.9877", "0.2346", "0.9123", "1,234", "1:23"]
    balanced = epoch_row(epoch_record("phase1", 0, val_balanced_accuracy=0.75), 3, is_best=False)
    assert "0.7500" in balanced


def test_progress_says_where_and_how_fast():
    """Phase, epoch, step, loss, accuracy, speed and the time that is left; the bar is that of the epoch."""
    step = StepEnd(
        phase="phase2", epoch=2, epochs=30, step=12, steps=20, loss=0.4119, accuracy=0.8831, images_per_second=41.3,
        eta_s=192.0,
    )  # fmt: skip
    text, state = step_progress(step)
    assert (text, state.count, state.fraction, state.eta_s) == ("phase 2 epoch 3/30", "12/20", 0.6, 192.0)
    assert list(state.details) == ["loss 0.4119", "acc 0.883", "41 img/s"]
    _, slow = step_progress(dataclasses.replace(step, images_per_second=0.46, eta_s=None))
    assert slow.details[-1] == "0.5 img/s"
    assert slow.eta_s is None
