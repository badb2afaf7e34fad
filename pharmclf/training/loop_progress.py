"""Position of a worker's training loop, which other threads read."""

from __future__ import annotations

import time
from dataclasses import dataclass

LoopPosition = tuple[str, int, int]
"""Phase, epoch and step, both from 0; validation steps are counted after the training steps."""


@dataclass
class LoopProgress:
    """Written by the loop at every batch; a reader may see the batch before."""

    beats: int = 0
    place: LoopPosition | None = None
    _first: bool = True  # whether the batch is the first of its phase
    _waited_s: float = 0.0
    _waits_since: float | None = None

    def on_batch(self, place: LoopPosition) -> None:
        """The loop needs a batch."""
        self._first = self.place is None or self.place[0] != place[0]
        self.place = place
        self.beats += 1

    def on_wait_start(self) -> None:
        """The device is idle until the batch arrives."""
        self._waits_since = time.monotonic()

    def on_wait_end(self) -> None:
        """The batch has arrived."""
        waited_s = self.waited_s()
        self._waits_since = None  # first, so that a concurrent reader never counts too much
        self._waited_s = waited_s

    def waited_s(self) -> float:
        """Seconds in which the device has waited for batches, except for the first one of each phase."""
        since = self._waits_since
        return self._waited_s + (time.monotonic() - since if since is not None and not self._first else 0.0)
