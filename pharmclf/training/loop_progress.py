"""Where a worker's loop is, for those who watch over it from another thread."""

from __future__ import annotations

import time
from dataclasses import dataclass

LoopPosition = tuple[str, int, int]
"""Phase, epoch and step in it, both counted from 0; a step beyond the training steps is one of the validation."""


@dataclass
class LoopProgress:
    """Written by the loop at every batch, read by others; what is read may be one batch old."""

    beats: int = 0
    place: LoopPosition | None = None
    _first: bool = True  # whether the batch is the first one of its phase
    _waited_s: float = 0.0
    _waits_since: float | None = None

    def on_batch(self, place: LoopPosition) -> None:
        """The loop has come to a batch."""
        self._first = self.place is None or self.place[0] != place[0]
        self.place = place
        self.beats += 1

    def on_wait_start(self) -> None:
        """The device has nothing to do until the batch is there."""
        self._waits_since = time.monotonic()

    def on_wait_end(self) -> None:
        """The batch is there."""
        waited_s = self.waited_s()
        self._waits_since = None  # first: who reads in between counts too little for once, and never too much
        self._waited_s = waited_s

    def waited_s(self) -> float:
        """Seconds in which the device has waited for batches; starting the pipeline of a phase is not among them."""
        since = self._waits_since
        return self._waited_s + (time.monotonic() - since if since is not None and not self._first else 0.0)
