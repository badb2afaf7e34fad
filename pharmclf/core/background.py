"""Calls in daemon threads: a single one, and a task that repeats until it is closed."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from pharmclf.core.errors import describe_cause

T = TypeVar("T")
_LONGEST_RETRY_S = 60.0
_LAST_RETRY_S = 1.0  # between the attempts of the last call
_log = logging.getLogger(__name__)


def start_in_thread(call: Callable[[], T], name: str) -> Future[T]:
    """Start a call in a daemon thread, with the context variables of this one -> its value or error, once it ends."""
    future: Future[T] = Future()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(call))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def run_in_thread(call: Callable[[], T], poll: Callable[[], object], every_s: float = 0.5) -> T:
    """Run a call in a thread, so that this one can handle signals, and call `poll` repeatedly until it ends."""
    future = start_in_thread(call, "in-thread")
    while not future.done():
        wait([future], every_s)
        poll()
    return future.result()


class BackgroundTask:
    """Repeats a call in a daemon thread, every few seconds or when it is notified, until it is closed.

    An error of the call does not end the task: the first of a series is logged, and the call is repeated.
    """

    def __init__(
        self,
        name: str,
        call: Callable[[], object],
        *,
        every_s: float | None = None,
        at_start: bool = False,
        attempts_at_close: int = 0,
        retry_s: float | None = None,
        failure: str = "",
    ) -> None:
        """Start the thread.

        Args:
            every_s: seconds between calls; None: only after `notify`.
            at_start: call at once; else the first call waits for `every_s` or `notify`.
            attempts_at_close: attempts of one more call after `close`; 0: there is none.
            retry_s: seconds before a failed call is repeated, doubled after each failure in a row up to a minute;
                None: it is repeated when the next one is due.
            failure: text for the log at the first error of a series, as "lease.json cannot be renewed".
        """
        self._call, self._every_s, self._at_start = call, every_s, at_start
        self._attempts_at_close, self._retry_s = attempts_at_close, retry_s
        self._failure = failure or f"{name} has failed"
        self._wake, self._closing, self._num_failures = threading.Event(), False, 0
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether the latest call has raised."""
        return self._num_failures > 0

    def notify(self) -> None:
        """Call as soon as possible."""
        self._wake.set()

    def request_close(self) -> None:
        """Close without waiting for the end."""
        self._closing = True
        self._wake.set()

    def close(self, timeout_s: float | None = None) -> bool:
        """End after the last call.

        Args:
            timeout_s: seconds to wait for the end; None: no limit.

        Returns:
            Whether the thread has ended.
        """
        self.request_close()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._at_start:
            self._try()
        while True:
            self._wake.wait(self._pause_s())
            self._wake.clear()
            if self._closing:
                break
            self._try()
        for attempt in range(self._attempts_at_close):
            if attempt:
                time.sleep(_LAST_RETRY_S)
            if self._try():
                return

    def _pause_s(self) -> float | None:
        if self._retry_s is None or not self.failed:
            return self._every_s
        return min(self._retry_s * 2.0 ** min(self._num_failures - 1, 10), _LONGEST_RETRY_S)

    def _try(self) -> bool:
        try:
            self._call()
        except Exception as error:
            if not self.failed:
                _log.warning("%s; it is repeated, and the run continues: %s", self._failure, describe_cause(error))
            self._num_failures += 1
            return False
        self._num_failures = 0
        return True
