"""Progress lines of long tasks."""

from __future__ import annotations

import time
from collections.abc import Callable

from pharmclf.core.units import format_duration

_REPORT_INTERVAL_S = 3.0


def progress_reporter(say: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    """A callback for work that begins now, called with (done, total): says a line with an ETA every few seconds.

    Args:
        say: takes lines for the console.
        what: is done, at the head of the line.
    """
    began = shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        now = time.monotonic()
        if now - shown > _REPORT_INTERVAL_S and done:
            shown = now
            say(f"{what}: {done:,} of {total:,}, {format_duration((now - began) / done * (total - done))} to go")

    return progress


def scan_progress(say: Callable[[str], None]) -> Callable[[int, int], None]:
    """A progress callback for the scan of a data set."""
    return progress_reporter(say, "images examined")
