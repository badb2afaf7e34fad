"""Time limits: of a call that may hang, and of storage that a run can do without."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import wait
from typing import TypeVar

from pharmclf.core.background import start_in_thread

T = TypeVar("T")
OPTIONAL_STORAGE_S = 5.0
"""For storage to answer where a run continues without the file, or writes it again later."""
FINAL_STORAGE_S = 10.0
"""For storage to answer at the end of a process, for what expires or explains a failure."""
CLOSE_WRITER_S = 5.0
"""For a background writer to write its last content."""


class CallTimeoutError(TimeoutError):
    """A call has not returned in time."""


def run_with_timeout(seconds: float, call: Callable[[], T]) -> T:
    """Run a call in a daemon thread, which is left behind where the call hangs: in a dead mount, in a GPU driver.

    Raises:
        CallTimeoutError: it has not returned in time.
    """
    future = start_in_thread(call, "with-timeout")
    if not wait([future], seconds).done:
        raise CallTimeoutError(f"no answer within {seconds:g} s")
    return future.result()
