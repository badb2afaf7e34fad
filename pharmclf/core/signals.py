"""Stop requests: the signals that ask a process to end, and the exception that ends its work."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType

from pharmclf.core.console import close_terminal, print_result


class StopRequested(Exception):  # noqa: N818 - a request, no error
    """A stop was requested; what is finished stays."""


class GracefulShutdown:
    """Records SIGINT and SIGTERM, so that a run can write its checkpoint and end; a second signal ends it at once.

    A thread that is not the main one gets no signals, and none is recorded there.
    """

    def __init__(self, notice: str = "stopping: a checkpoint is written first (once more to end at once)") -> None:
        """Take the words for the first signal."""
        self._notice = notice
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> GracefulShutdown:
        if threading.current_thread() is not threading.main_thread():
            return self
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.received is not None:
            close_terminal()
            os._exit(128 + number)
        self.received = number
        print_result(f"\n{self._notice}")

    def pass_on(self, exit_code: int) -> None:
        """Take over the signal that another of this kind has received inside this one, from its exit code."""
        self.received = exit_code - 128

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, 143 after SIGTERM."""
        return 128 + (self.received or 0)


def exit_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit with code 143, so that a program deletes incomplete files."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
