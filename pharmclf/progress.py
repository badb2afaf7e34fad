"""Progress of long tasks."""

from __future__ import annotations

import time
from collections.abc import Callable

from pharmclf.core.console import show_activity
from pharmclf.core.rate import RateEstimator
from pharmclf.core.terminal import Activity, Progress
from pharmclf.core.units import format_rate


def progress_reporter(
    what: str,
    describe: Callable[[int, int], str] = "{:,}/{:,}".format,
    format_speed: Callable[[float], str] | None = None,
) -> Callable[[int, int], None]:
    """A callback that shows how far work is, called with (done, total), and with equal numbers at the end.

    Args:
        what: is being done, as "examining images".
        describe: (done, total) in words.
        format_speed: units per second as text; None: the speed is not shown.
    """
    rate = RateEstimator()
    activity: Activity | None = None

    def progress(done: int, total: int) -> None:
        nonlocal activity
        activity = activity or show_activity()
        rate.update(done, time.monotonic())
        speed = rate.per_second
        details = [f"{format_speed(speed)}/s"] if format_speed and speed else []
        activity.progress(
            what, Progress(done / max(1, total), describe(done, total), details, rate.eta_s(total - done))
        )
        if done >= total:
            activity.close()
            activity = None

    return progress


def image_progress(what: str) -> Callable[[int, int], None]:
    """`progress_reporter` for images."""
    return progress_reporter(what, format_speed=lambda speed: f"{format_rate(speed)} images")


def scan_progress() -> Callable[[int, int], None]:
    """A progress callback for the scan of a data set."""
    return image_progress("examining images")
