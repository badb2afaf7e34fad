"""A terminal that a person watches: lines, and below them one that moves, drawn four times a second."""

from __future__ import annotations

import atexit
import contextlib
import io
import itertools
import logging
import sys
import textwrap
from typing import TextIO

from rich.console import Console
from rich.control import Control
from rich.segment import ControlType
from rich.text import Text

from pharmclf.core.background import BackgroundTask
from pharmclf.core.stderr_filter import is_stderr_suppressed
from pharmclf.core.terminal import MIN_WAIT_S, Activity, Result, Terminal, Verbosity, format_usual
from pharmclf.core.units import format_duration

_REDRAW_S = 0.25
_CLOSE_S = 1.0  # for a terminal that does not take what is written
_ERASE = Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2))
_SPINNER, _ASCII_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
_BAR, _ASCII_BAR = "━", "="
_MIN_BAR, _MAX_BAR = 5, 30
_STYLES = (("warning:", "yellow"), ("refused:", "red"), ("note:", "dim"))  # by the first word of a line
_GOOD_END, _GOOD_STYLE = "  best", "green"


class LiveTerminal(Terminal):
    """Shows the newest activity in the last line of a terminal, which later output overwrites.

    While it is open, what others write to `sys.stdout` and `sys.stderr` appears above that line. The cursor waits at
    the line's begin, so that also what native libraries write by themselves begins there, and is never hidden, so that
    a killed process leaves the terminal as it was.
    """

    is_live = True

    def __init__(self, verbosity: Verbosity = Verbosity.NORMAL) -> None:
        """Begin to draw on standard output; `close` ends that."""
        super().__init__(verbosity)
        self._console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        ascii_only = self._console.options.ascii_only
        self._frames = itertools.cycle(_ASCII_SPINNER if ascii_only else _SPINNER)
        self._bar = _ASCII_BAR if ascii_only else _BAR
        self._is_drawn, self._frame = False, next(self._frames)
        self._streams = {name: getattr(sys, name) for name in ("stdout", "stderr") if getattr(sys, name).isatty()}
        for name, stream in self._streams.items():
            self._replace_stream(name, stream, _LineStream(self, stream, is_error=name == "stderr"))
        self._task = BackgroundTask("terminal", self._advance, every_s=_REDRAW_S)
        atexit.register(self.close)

    def close(self) -> None:
        """As `Terminal.close`: erase the moving line, and give the streams back."""
        super().close()
        self._task.close(_CLOSE_S)
        for name, stream in self._streams.items():
            if isinstance(proxy := getattr(sys, name), _LineStream):
                proxy.end_line()
                self._replace_stream(name, proxy, stream)
        if self._lock.acquire(timeout=_CLOSE_S):
            try:
                self._draw()
            finally:
                self._lock.release()
        atexit.unregister(self.close)

    def _replace_stream(self, name: str, old: TextIO, new: TextIO) -> None:
        """Replace a standard stream, also for the log."""
        setattr(sys, name, new)
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)

    def on_begin(self, _activity: Activity, /) -> None:
        """As `Terminal.on_begin`."""
        with self._lock:
            self._draw()

    def on_progress(self, _activity: Activity, /) -> None:
        """As `Terminal.on_progress`: it is drawn the next time."""

    def _write(self, text: str) -> None:
        with self._lock, self._console:  # one write
            self._erase()
            style = _GOOD_STYLE if text.endswith(_GOOD_END) else ""
            style = next((style for begin, style in _STYLES if text.startswith(begin)), style)
            shown = "\n".join(_wrap(line, self._console.width) for line in text.split("\n"))
            self._console.print(Text(shown, style), soft_wrap=True)
            self._draw()

    def _advance(self) -> None:
        with self._lock:
            self._frame = next(self._frames)
            self._draw()

    def _draw(self) -> None:
        """Draw the newest activity that has words, or erase the line. (holder of the lock)"""
        activity = next((activity for activity in reversed(self._activities) if activity.text), None)
        with self._console:
            self._erase()
            if activity:
                line = format_activity(activity, self._frame, self._bar, self._console.width - 1)
                self._console.print(line, end="\r", no_wrap=True, overflow="ellipsis", crop=True)
                self._is_drawn = True

    def _erase(self) -> None:
        if self._is_drawn:
            self._console.control(_ERASE)
            self._is_drawn = False


def _wrap(line: str, width: int) -> str:
    """A line of prose broken between words; tables and commands to copy, which have columns, stay as they are."""
    if len(line) <= width or "  " in line:
        return line
    return textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def format_activity(activity: Activity, frame: str, bar: str, width: int) -> Text:
    """The moving line.

    Args:
        bar: character of the bar, which is left out where it has no room.
    """
    line, state = Text.assemble((f"{frame} ", "cyan"), (activity.text, "bold")), activity.state
    if state is None:
        usual = f", usually {format_usual(activity.usual_s)}" if activity.usual_s >= MIN_WAIT_S else ""
        if activity.seconds >= MIN_WAIT_S or usual:
            line.append(f"  {activity.seconds:.0f} s{usual}", "dim")
        return line
    rest = Text("  ").join([Text(state.count), *map(Text, state.details)])
    if state.eta_s is not None:
        rest.append(f"  ETA {format_duration(state.eta_s)}", "cyan")
    room = min(_MAX_BAR, width - line.cell_len - rest.cell_len - 2)
    if room >= _MIN_BAR:
        filled = round(room * min(1.0, max(0.0, state.fraction)))
        line.append(" ").append(bar * filled, "green").append(bar * (room - filled), "bright_black")
    return line.append(" ").append_text(rest)


class _LineStream(io.TextIOBase, TextIO):
    """Replaces a standard stream; shows complete lines above the moving one."""

    def __init__(self, terminal: LiveTerminal, stream: TextIO, *, is_error: bool) -> None:
        self._terminal, self._stream, self._is_error, self._pending = terminal, stream, is_error, ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """As of the stream."""
        return self._stream.encoding

    def write(self, text: str, /) -> int:
        """Show the lines that are complete."""
        *lines, self._pending = (self._pending + text).split("\n")
        if lines and not (self._is_error and is_stderr_suppressed()):
            self._terminal.line(Result("\n".join(line.rpartition("\r")[2] for line in lines)))
        return len(text)

    def end_line(self) -> None:
        """Show what has no end yet."""
        if self._pending:
            self.write("\n")

    def isatty(self) -> bool:
        """As of the stream."""
        return self._stream.isatty()

    def fileno(self) -> int:
        """As of the stream."""
        return self._stream.fileno()

    def flush(self) -> None:
        """Nothing waits but an incomplete line."""
        with contextlib.suppress(ValueError):  # closed
            self._stream.flush()
