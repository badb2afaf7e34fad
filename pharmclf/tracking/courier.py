"""Brings what a run tells to a place that may be away: in a thread of its own, so that nothing waits or fails by it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pharmclf import storage
from pharmclf.core.errors import format_error

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 60.0  # before what was refused is tried again
_LAST_TRIES, _LAST_PAUSE_S = 3, 1.0  # at the end of a run
_PATIENCE_S = 10.0  # with a storage that does not answer; the next try follows anyway
_log = logging.getLogger(__name__)


def reason_of(error: BaseException) -> str:
    """Why something was refused, in one line; of a connection that failed, what the system said and not each layer."""
    cause = error
    while cause.__cause__ or cause.__context__:
        cause = cause.__cause__ or cause.__context__ or cause
    return format_error(cause if isinstance(cause, OSError) else error)


class Courier:
    """A thread that delivers whenever there is something new, and tries again what was refused.

    What it delivers is always the whole story so far, of which the place takes what it lacks: no queue can overflow,
    and a place that was away for an hour is up to date by one delivery.
    """

    def __init__(self, place: str, deliver: Callable[[], None]) -> None:
        """Begin to wait.

        Args:
            place: where it goes, for the log.
            deliver: brings the place up to date, or raises anything.
        """
        self._place, self._deliver = place, deliver
        self._soon, self._ended = threading.Event(), threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"tracking-{place}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is something new."""
        self._soon.set()

    def end(self) -> None:
        """The story has come to its end: deliver that, and stop."""
        self._ended.set()
        self._soon.set()

    def join(self, patience_s: float) -> None:
        """Wait until the end is delivered; for a place that does not answer not longer than this."""
        self._thread.join(patience_s)
        if self._thread.is_alive():
            _log.warning("%s: no answer for %.0f s; the end may be missing there", self._place, patience_s)

    def _run(self) -> None:
        pause_s: float | None = None
        while not self._ended.is_set():
            self._soon.wait(pause_s)
            self._soon.clear()
            if self._ended.is_set():
                break
            pause_s = None if self._try() else min(2 * (pause_s or _FIRST_PAUSE_S / 2), _LONGEST_PAUSE_S)
        for _ in range(_LAST_TRIES):
            if self._try():
                return
            time.sleep(_LAST_PAUSE_S)
        _log.warning("%s: the end could not be delivered; all of it is in the run's folder", self._place)

    def _try(self) -> bool:
        try:
            with storage.patience(_PATIENCE_S):
                self._deliver()
        except Exception as error:  # of any kind: a run does not depend on it
            if not self._warned:
                _log.warning("%s: %s; the run goes on, and it is tried again", self._place, reason_of(error))
            self._warned = True
            return False
        self._warned = False
        return True
