"""The terminal of this process, and streams that never fail."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from typing import Any

from pharmclf.core.terminal import Activity, Result, Terminal, Verbosity
from pharmclf.core.usual_times import LOAD_PROGRAM_S

Say = Callable[[str], None]
"""Takes a line for the console."""

_terminal = Terminal()


def configure_terminal(*, quiet: bool = False, verbose: bool = False) -> None:
    """Choose what this process shows, and how: a moving line where a person watches, else plain lines."""
    global _terminal
    close_terminal()
    verbosity = Verbosity.QUIET if quiet else Verbosity.VERBOSE if verbose else Verbosity.NORMAL
    if quiet or not is_watched():
        _terminal = Terminal(verbosity)
    else:
        from pharmclf.core.live_terminal import LiveTerminal  # rich takes a while to import

        _terminal = LiveTerminal(verbosity)


def is_watched() -> bool:
    """Whether standard output is a terminal that can move its cursor, and no log of a CI system."""
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not os.environ.get("CI")


def is_live() -> bool:
    """Whether this process shows a moving line, so that nothing has to be repeated."""
    return _terminal.is_live


def close_terminal() -> None:
    """Erase the moving line, if there is one; what follows is plain, and neither quiet nor verbose."""
    global _terminal
    _terminal.close()
    _terminal = Terminal()


def print_line(line: str) -> None:
    """Show a line at once; of these a quiet terminal shows only warnings and each `Result`."""
    _terminal.line(line)


def print_result(text: str) -> None:
    """Show a result, also where the terminal is quiet."""
    _terminal.line(Result(text))


def print_detail(text: str) -> None:
    """Show lines where the terminal is verbose."""
    _terminal.detail(text)


def show_loading() -> Activity:
    """`show_activity` for the imports of a command, which its flags have chosen."""
    return show_activity("loading", LOAD_PROGRAM_S)


def show_activity(text: str = "", usual_s: float = 0.0) -> Activity:
    """Show what is being done, until the returned context ends.

    Args:
        text: what, as "starting Ray"; "": nothing before `Activity.begin`.
        usual_s: seconds that it usually takes; 0: unknown.
    """
    return _terminal.open(text, usual_s)


class _DroppingFile(io.FileIO):
    """A file that drops what cannot be written: the reader of a pipe or a terminal is gone, or the disk is full."""

    def write(self, content: Any, /) -> int:
        """Write bytes, or drop them -> bytes that count as written."""
        try:
            return super().write(content)
        except BlockingIOError:
            raise
        except OSError:
            return memoryview(content).nbytes


def make_output_robust() -> None:
    """Make writes to stdout and stderr of this process never fail, because of the file or its encoding."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):
            continue
        with contextlib.suppress(OSError, ValueError):  # without a file, or closed
            stream.flush()
        with contextlib.suppress(OSError, ValueError):
            robust = io.TextIOWrapper(
                io.BufferedWriter(_DroppingFile(stream.fileno(), "w", closefd=False)),
                encoding=stream.encoding,
                errors="backslashreplace",
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, robust)
