"""Progress of a training as text: a table with one row an epoch, and the steps of an epoch; 80 columns."""

from __future__ import annotations

from pharmclf.core.events import EpochRecord, StepEnd
from pharmclf.core.terminal import Progress
from pharmclf.core.units import format_duration, format_rate
from pharmclf.reporting.text_format import phase_name

BEST_MARK = "  best"
"""End of the row of an epoch that is the best so far."""
_MAX_FIXED = 1000.0  # larger losses are written with an exponent


def epoch_header(*, is_balanced: bool) -> str:
    """The heading of the rows; balanced accuracy, if epochs are chosen by it, has the column of the speed."""
    return _row(
        "", "epoch", "loss", "accuracy", "val loss", "val acc", "balanced" if is_balanced else "images/s", "time"
    )


def epoch_row(record: EpochRecord, epochs: int, *, is_best: bool) -> str:
    """The row of an epoch, of at most `epochs` of its phase."""
    balanced = record.val_balanced_accuracy
    row = _row(
        phase_name(record.phase),
        f"{record.epoch + 1}/{epochs}",
        _format_loss(record.train_loss),
        f"{record.train_accuracy:.4f}",
        _format_loss(record.val_loss),
        f"{record.val_accuracy:.4f}",
        format_rate(record.images_per_second) if balanced is None else f"{balanced:.4f}",
        format_duration(record.seconds),
    )
    return f"{row}{BEST_MARK}" if is_best else row


def step_progress(event: StepEnd) -> tuple[str, Progress]:
    """What is being trained, and how far it is; epochs are counted from 1."""
    figures = [
        f"loss {_format_loss(event.loss)}",
        f"acc {event.accuracy:.3f}",
        f"{format_rate(event.images_per_second)} img/s",
    ]
    text = f"{phase_name(event.phase)} epoch {event.epoch + 1}/{event.epochs}"
    count = f"{event.step}/{event.steps}"
    return text, Progress(event.step / max(1, event.steps), count, figures, event.eta_s)


def _row(phase: str, epoch: str, *cells: str) -> str:
    *scores, time = cells
    return f"{phase:<7}  {epoch:>5}  {'  '.join(f'{score:>8}' for score in scores)}  {time:>7}"


def _format_loss(loss: float) -> str:
    return f"{loss:.4f}" if loss < _MAX_FIXED else f"{loss:.3g}"
