"""Calls in daemon threads: one that is waited for, and one that is repeated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar

import pytest

from pharmclf.core import background
from pharmclf.core.background import BackgroundTask, run_in_thread, start_in_thread
from pharmclf.core.errors import describe_cause


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LAST_RETRY_S", 0.01)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Call:
    """Counts calls, and raises in some of them."""

    def __init__(self, *failing: int) -> None:
        self.count, self.failing = 0, failing

    def __call__(self) -> None:
        self.count += 1
        if self.count in self.failing:
            raise ConnectionError(f"in call {self.count}")


def test_a_call_in_a_thread_gives_its_value_its_error_and_sees_the_context() -> None:
    """Also a call that raises what ends a process."""
    variable: ContextVar[int] = ContextVar("variable", default=0)
    variable.set(7)
    assert start_in_thread(variable.get, "call").result(60) == 7
    with pytest.raises(SystemExit):
        start_in_thread(lambda: exec("raise SystemExit"), "call").result(60)


def test_the_caller_polls_until_the_call_ends() -> None:
    """At least once after a call that waits for a poll; then its value or error comes."""
    polled = threading.Event()
    assert run_in_thread(lambda: polled.wait(60), polled.set, every_s=0.01) is True
    with pytest.raises(ZeroDivisionError):
        run_in_thread(lambda: 1 / 0, lambda: None)


def test_a_task_is_repeated_until_it_is_closed() -> None:
    """Every few milliseconds here, without a call at its end."""
    call = Call()
    task = BackgroundTask("task", call, every_s=0.01)
    wait_until(lambda: call.count >= 3)
    assert task.close()
    count = call.count
    time.sleep(0.05)
    assert call.count == count


def test_the_first_call_waits_for_its_time_or_for_a_notification() -> None:
    """Unless it is asked for at the start, where it comes even if the task is closed at once."""
    call = Call()
    task = BackgroundTask("task", call, every_s=600)
    time.sleep(0.05)
    assert call.count == 0
    task.notify()
    wait_until(lambda: call.count == 1)
    assert task.close()
    assert call.count == 1
    BackgroundTask("task", call, at_start=True).close()
    assert call.count == 2


def test_the_last_call_comes_after_close_and_once() -> None:
    """So that it sees all that happened before; also where no call came earlier."""
    call = Call()
    task = BackgroundTask("task", call, attempts_at_close=3)
    assert task.close()
    assert call.count == 1
    assert not task.failed


def test_a_failed_call_is_retried_and_a_series_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Without a notification, until it succeeds; a later series is another one."""
    call, line = (
        Call(1, 2, 3, 5),
        "it fails; it is repeated, and the run continues: ConnectionError: in call {}",
    )
    task = BackgroundTask("task", call, retry_s=0.01, failure="it fails")
    task.notify()
    wait_until(lambda: call.count == 4)
    assert [record.getMessage() for record in caplog.records] == [line.format(1)]
    task.notify()
    wait_until(lambda: call.count == 6)
    assert [record.getMessage() for record in caplog.records] == [line.format(1), line.format(5)]
    assert task.close()
    assert call.count == 6


def test_pauses_between_retries_double_up_to_a_minute() -> None:
    """And begin again after a success; a task without retries keeps to its interval."""
    call = Call(*range(1, 2000))
    task = BackgroundTask("task", call, retry_s=5.0)
    assert task.close()
    pauses = []
    for _ in range(1500):
        task._try()
        pauses.append(task._pause_s())
    assert pauses[:6] == [5, 10, 20, 40, 60, 60]
    assert pauses[-1] == 60
    call.failing = ()
    task._try()
    assert task._pause_s() is None


def test_the_last_call_is_tried_as_often_as_asked(caplog: pytest.LogCaptureFixture) -> None:
    """Then the task has failed; the log has one line about it."""
    call = Call(*range(1, 100))
    task = BackgroundTask("task", call, attempts_at_close=3)
    assert task.close()
    assert call.count == 3
    assert task.failed
    (record,) = caplog.records
    assert record.getMessage() == "task has failed; it is repeated, and the run continues: ConnectionError: in call 1"


def test_a_call_that_hangs_delays_nobody() -> None:
    """Neither a notification nor, longer than it may, the close."""
    release, called = threading.Event(), threading.Event()

    def hang() -> None:
        called.set()
        release.wait(60)

    task = BackgroundTask("task", hang, at_start=True)
    assert called.wait(60)
    task.notify()
    assert not task.close(0.05)
    release.set()
    assert task.close(60)


def test_the_reason_is_the_one_line_that_matters() -> None:
    """Of a refused connection what the system said, below whatever was made of it; of another error its own words."""
    wrapped = RuntimeError("the library's words")
    wrapped.__context__ = ConnectionRefusedError(111, "refused")
    assert describe_cause(wrapped) == "ConnectionRefusedError: [Errno 111] refused"
    other = RuntimeError("no permission\nmore")
    other.__cause__ = KeyError("x")
    assert describe_cause(other) == "RuntimeError: no permission"
