"""A bound on the time of what may hang: a mount whose server is gone, a driver that does not answer."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NoAnswer(TimeoutError):
    """It took longer than it may."""


def within(seconds: float, work: Callable[[], T]) -> T:
    """Do something in a thread, which is left behind where it hangs, and does not hold up the end of the process.

    Raises:
        NoAnswer: it had not ended in time.
    """
    values: list[T] = []
    errors: list[BaseException] = []
    context = contextvars.copy_context()  # with the storage's patience

    def run() -> None:
        try:
            values.append(context.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="check", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not values:
        raise NoAnswer(f"no answer within {seconds:g} s")
    return values[0]
