"""Output of this process: plain lines, and above them what is being done now.

`Terminal` is for pipes, logs and jobs: lines without escape codes. `live_terminal.LiveTerminal` draws one line that
moves, where a person watches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

from pharmclf.core.units import format_duration

MIN_WAIT_S = 1.0
"""Shorter waits get no words."""
_PROGRESS_INTERVAL_S = 5.0  # between lines of progress
_MAX_PROGRESS_INTERVAL_S = 60.0  # after an hour


class Result(str):
    """Lines that a quiet terminal shows too, because they are the result of a command."""

    __slots__ = ()


class Verbosity(IntEnum):
    """What is shown."""

    QUIET = 0
    """Results, warnings and errors."""
    NORMAL = 1
    """Progress and notes too."""
    VERBOSE = 2
    """Also how long each wait took, and other details."""


@dataclass(frozen=True)
class Progress:
    """How far something is."""

    fraction: float
    """Done, 0..1."""
    count: str
    """The same in words: 57/100."""
    details: Sequence[str] = ()
    """Figures that go with it: loss 0.123."""
    eta_s: float | None = None
    """Seconds to the end; None: not known yet."""


class Activity:
    """One thing that is being done, shown from its begin to its end; a context that ends it."""

    def __init__(self, terminal: Terminal, clock: Callable[[], float]) -> None:
        """As `Terminal.open`."""
        self.text, self.usual_s = "", 0.0
        self.state: Progress | None = None
        self._terminal, self._clock = terminal, clock
        self.began_s = self._clock()

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return self._clock() - self.began_s

    def begin(self, text: str, usual_s: float = 0.0) -> None:
        """Show that something else is being done now.

        Args:
            text: what, as "starting Ray"; "": nothing to show.
            usual_s: seconds that it usually takes; 0: unknown.
        """
        if text == self.text:
            return
        self._terminal.on_end(self)
        self.text, self.usual_s, self.state, self.began_s = text, usual_s, None, self._clock()
        self._terminal.on_begin(self)

    def progress(self, text: str, state: Progress) -> None:
        """Show how far something is; costs next to nothing, however often it is called."""
        if self.state is None:
            self.began_s = self._clock()
        self.text, self.state = text, state
        self._terminal.on_progress(self)

    def close(self) -> None:
        """It has ended."""
        self._terminal.remove(self)

    def __enter__(self) -> Activity:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Terminal:
    """Plain lines on standard output; progress in one line every few seconds."""

    is_live = False

    def __init__(self, verbosity: Verbosity = Verbosity.NORMAL, clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is shown yet."""
        self.verbosity, self._clock = verbosity, clock
        self._lock = threading.RLock()
        self._activities: list[Activity] = []
        self._began_s = clock()
        self._progress_at = self._began_s - _PROGRESS_INTERVAL_S

    def line(self, text: str) -> None:
        """Show one or more lines; of these a quiet terminal shows only warnings and each `Result`."""
        if self.verbosity > Verbosity.QUIET or isinstance(text, Result) or text.startswith("warning"):
            self._write(text)

    def detail(self, text: str) -> None:
        """Show lines where a terminal is verbose."""
        if self.verbosity is Verbosity.VERBOSE:
            self._write(text)

    def open(self, text: str = "", usual_s: float = 0.0) -> Activity:
        """Begin an activity; as `Activity.begin`. The one that was opened last is shown."""
        activity = Activity(self, self._clock)
        with self._lock:
            self._activities.append(activity)
        activity.begin(text, usual_s)
        return activity

    def remove(self, activity: Activity) -> None:
        """End an activity, with those that were opened inside it."""
        with self._lock:
            if activity in self._activities:
                del self._activities[self._activities.index(activity) :]
        self.on_end(activity)

    def close(self) -> None:
        """End all activities; lines may follow."""
        with self._lock:
            self._activities.clear()

    def on_begin(self, activity: Activity, /) -> None:
        """Show that an activity has begun."""
        if activity.text and activity.usual_s >= MIN_WAIT_S:
            self.line(f"{activity.text} (usually {format_usual(activity.usual_s)})")

    def on_end(self, activity: Activity) -> None:
        """Show how long an activity took, where a terminal is verbose."""
        if activity.text and activity.state is None and activity.seconds >= MIN_WAIT_S:
            self.detail(f"{activity.text}: {activity.seconds:.1f} s")

    def on_progress(self, activity: Activity, /) -> None:
        """Show how far an activity is, in a line every few seconds."""
        now, state = self._clock(), activity.state
        interval_s = min(_MAX_PROGRESS_INTERVAL_S, max(_PROGRESS_INTERVAL_S, (now - self._began_s) / 60))
        if state is None or now - max(self._progress_at, activity.began_s) < interval_s:
            return
        self._progress_at = now
        eta = [] if state.eta_s is None else [f"ETA {format_duration(state.eta_s)}"]
        self.line(f"{activity.text}: {', '.join([state.count, *state.details, *eta])}")

    def _write(self, text: str) -> None:
        print(text, flush=True)  # noqa: T201


def format_usual(seconds: float) -> str:
    """The usual time of a wait: 15 s, 2 min."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
