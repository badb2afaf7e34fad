"""Where the time of a process goes, and the pace of batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator


class Stopwatch:
    """Where the time goes, as seconds between named moments."""

    def __init__(self, began: float) -> None:
        """Begin.

        Args:
            began: when, by `time.time()`, which all processes share.
        """
        self.seconds: dict[str, float] = {}
        self.began = self._last = began

    def end(self, name: str) -> None:
        """The part of this name ends now."""
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now


def throughput(sizes: Iterator[int], first: int, seconds: float, now: Callable[[], float] = time.perf_counter) -> float:
    """Images/s.

    Args:
        sizes: images of one batch after the other.
        first: batches that are left out: those of the first epoch.
        seconds: how long it is measured.
    """
    images, began = 0, 0.0
    for index, size in enumerate(sizes):
        if index + 1 == first:
            began = now()
        elif index >= first:
            images += size
            if now() - began >= seconds:
                break
    return images / (now() - began)
