"""Deliveries to places that may be away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import pytest

from pharmclf.tracking import courier
from pharmclf.tracking.courier import Courier, reason_of


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FIRST_PAUSE_S", "_LONGEST_PAUSE_S", "_LAST_PAUSE_S"):
        monkeypatch.setattr(courier, name, 0.01)


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Place:
    """Takes deliveries, and refuses some of them."""

    def __init__(self, *refused: int) -> None:
        self.calls, self.refused = 0, refused

    def deliver(self) -> None:
        self.calls += 1
        if self.calls in self.refused:
            raise ConnectionError("away\nfor now")


def warned(log: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in log.records if record.levelno >= logging.WARNING]


def test_what_was_refused_is_tried_again_and_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """By itself, until it is taken; a later outage is another one."""
    place = Place(1, 2, 3, 5)
    sender = Courier("there", place.deliver)
    sender.wake()
    until(lambda: place.calls == 4)
    assert warned(caplog) == ["there: ConnectionError: away; the run goes on, and it is tried again"]
    sender.wake()
    until(lambda: place.calls == 6)
    assert len(warned(caplog)) == 2
    sender.end()
    sender.join(60)
    assert place.calls == 7
    assert len(warned(caplog)) == 2


def test_the_end_is_delivered_even_if_nothing_was_before() -> None:
    """Also where the end comes before the thread has begun."""
    place = Place()
    sender = Courier("there", place.deliver)
    sender.end()
    sender.join(60)
    assert place.calls == 1


def test_a_place_that_stays_away_is_given_up_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    """After three tries; what is missing there is told."""
    place = Place(*range(1, 100))
    sender = Courier("there", place.deliver)
    sender.end()
    sender.join(60)
    assert place.calls == 3
    assert "the end could not be delivered" in warned(caplog)[-1]


def test_a_place_that_does_not_answer_holds_nothing_up(caplog: pytest.LogCaptureFixture) -> None:
    """Neither an event nor, for longer than is said, the end."""
    answers, asked = threading.Event(), threading.Event()

    def deliver() -> None:
        asked.set()
        answers.wait(60)

    sender = Courier("there", deliver)
    sender.wake()
    assert asked.wait(60)
    sender.wake()  # returns while the delivery hangs
    sender.end()
    sender.join(0.05)
    assert warned(caplog) == ["there: no answer for 0 s; the end may be missing there"]
    answers.set()
    sender.join(60)


def test_the_reason_is_the_one_line_that_matters() -> None:
    """Of a refused connection what the system said, below whatever was made of it; of another error its own words."""
    wrapped = RuntimeError("the library's words")
    wrapped.__context__ = ConnectionRefusedError(111, "refused")
    assert reason_of(wrapped) == "ConnectionRefusedError: [Errno 111] refused"
    other = RuntimeError("no permission\nmore")
    other.__cause__ = KeyError("x")
    assert reason_of(other) == "RuntimeError: no permission"
