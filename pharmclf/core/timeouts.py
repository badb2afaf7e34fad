"""Time limits for calls that may hang, and for storage that is optional."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from typing import TypeVar

from pharmclf.core.background import start_in_thread

T = TypeVar("T")
OPTIONAL_STORAGE_S = 5.0
"""For an answer of storage where a run continues without the file, or writes it again later."""
FINAL_STORAGE_S = 10.0
"""For an answer of storage at the end of a process, where the file expires or explains a failure."""
CLOSE_WRITER_S = 5.0
"""For a background writer to write its last content."""


class CallTimeoutError(TimeoutError):
    """A call has not returned in time."""


def run_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """Run a call in a daemon thread, which is abandoned where the call hangs, as in a dead mount or a GPU driver.

    Raises:
        CallTimeoutError: it has not returned in time.
    """
    future = start_in_thread(call, "with-timeout")
    if not wait([future], seconds).done:
        raise CallTimeoutError(f"no answer within {seconds:g} s")
    return future.result()
