"""index.html of a storage: its runs and sweeps with state, score, verdict and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Self

from pharmclf.core.units import format_count
from pharmclf.evaluation.metrics import Estimate
from pharmclf.reporting.html_report_tables import score_axis
from pharmclf.reporting.table_pages import render_page


@dataclass(frozen=True, kw_only=True)
class IndexEntry:
    """A run or a sweep in the index."""

    name: str
    """Of its folder, which is next to the index."""
    kind: str
    """run or sweep."""
    state: str
    reason: str = ""
    trials: tuple[int, int] | None = None
    """Trials of a sweep that have ended, and all; None: a run."""
    test_accuracy: Estimate | None = None
    """Of the run, or of the sweep's winner; None: it is not complete."""
    test_images: int | None = None
    val_accuracy: float | None = None
    """Best validation accuracy so far, 0..1, where there is no test accuracy."""
    verdict: str = ""
    """What the model is good for; "": unknown."""
    size_bytes: int
    """Of all its files."""
    has_report: bool
    changed_s: float
    """Time of its last write, seconds since 1970."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        accuracy = self.test_accuracy
        interval = [accuracy.value, accuracy.low, accuracy.high] if accuracy else None
        return {**vars(self), "test_accuracy": interval, "trials": list(self.trials) if self.trials else None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            TypeError: other values.
        """
        accuracy, trials = values["test_accuracy"], values["trials"]
        restored = {
            "test_accuracy": Estimate(*accuracy) if accuracy else None,
            "trials": (trials[0], trials[1]) if trials else None,
        }
        return cls(**values | restored)

    @property
    def changed(self) -> str:
        """Date and time of the last write, UTC."""
        return datetime.fromtimestamp(self.changed_s, UTC).strftime("%Y-%m-%d %H:%M")


def index_page(location: str, entries: Sequence[IndexEntry], created: str) -> str:
    """The page as HTML, UTF-8, the newest entry first; equal arguments give equal text."""
    counts = [
        format_count(number, kind)
        for kind in ("run", "sweep")
        if (number := sum(entry.kind == kind for entry in entries))
    ]
    return render_page(
        "index.html.j2",
        location=location,
        entries=sorted(entries, key=lambda entry: (-entry.changed_s, entry.name)),
        headline=" and ".join(counts) or "No runs",
        size_bytes=sum(entry.size_bytes for entry in entries),
        axis=score_axis(entry.test_accuracy for entry in entries if entry.test_accuracy),
        created=created,
        tone=_tone,
    )


def _tone(text: str) -> str:
    """The colour of a state or a verdict, as a class of the page's style."""
    tones = {
        "complete": "good", "good": "good", "usable with review": "doubtful", "interrupted": "doubtful",
        "no sign of life": "bad", "failed": "bad", "unreadable": "bad", "not usable": "bad",
    }  # fmt: skip
    return tones.get(text, "busy")
