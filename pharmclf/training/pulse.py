"""Where a worker's loop is, for those who watch over it from another thread."""

from __future__ import annotations

from dataclasses import dataclass

Place = tuple[str, int, int]
"""Phase, epoch and step in it, both counted from 0; a step beyond the training steps is one of the validation."""


@dataclass
class Pulse:
    """Written by the loop at every batch, read by others; what is read may be one batch old."""

    beats: int = 0
    place: Place | None = None

    def beat(self, place: Place) -> None:
        """The loop has come to a batch."""
        self.place = place
        self.beats += 1
