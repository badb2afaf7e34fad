"""Calls with a time limit."""

from __future__ import annotations

import threading

import pytest

from pharmclf import storage
from pharmclf.core.timeouts import CallTimeoutError, run_with_timeout


def test_a_call_that_hangs_is_left_behind() -> None:
    """The error names the limit; a time-out of the call itself is its own error."""
    release = threading.Event()
    try:
        with pytest.raises(CallTimeoutError, match=r"no answer within 0\.05 s"):
            run_with_timeout(0.05, release.wait)
    finally:
        release.set()

    def time_out() -> None:
        raise TimeoutError("of the network")

    with pytest.raises(TimeoutError, match="of the network"):
        run_with_timeout(60, time_out)


def test_the_value_and_the_error_of_a_call_come_back() -> None:
    """And the call sees the context of its caller, such as the time that storage has."""
    with storage.timeout(7.0):
        assert run_with_timeout(60, storage.timeout_s) == 7.0
    with pytest.raises(ZeroDivisionError):
        run_with_timeout(60, lambda: 1 / 0)
