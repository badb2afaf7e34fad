"""Lines for the console, and streams that never fail."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable
from typing import Any

Say = Callable[[str], None]
"""Takes a line for the console."""


def print_line(line: str) -> None:
    """Print a line that a pipe or a log shows at once."""
    print(line, flush=True)  # noqa: T201


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
