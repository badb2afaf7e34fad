"""Waiting for a long stream in a way that a stop can end."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
_POLL_INTERVAL_S = 0.2
_SHUTDOWN_TIMEOUT_S = 10.0  # for what the stream is at when it is left


def interruptible(stopped: Callable[[], bool], items: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield the items of a stream until a stop is requested.

    A thread waits for them: a stop is noticed while it waits, and the stream continues while an item is used.

    Args:
        stopped: whether to end.
        items: small ones, since those that arrive before they are used are kept in memory.

    Raises:
        What the stream raises, at its place.
    """
    ready: queue.SimpleQueue[Future[T] | None] = queue.SimpleQueue()
    left = threading.Event()

    def wait() -> None:
        outcome: Future[T] = Future()
        try:
            for item in items:
                outcome.set_result(item)
                ready.put(outcome)
                if left.is_set():
                    return
                outcome = Future()
            ready.put(None)
        except BaseException as error:
            outcome.set_exception(error)
            ready.put(outcome)
        finally:
            items.close()

    thread = threading.Thread(target=wait, name="stream", daemon=True)
    thread.start()
    try:
        while not stopped():
            try:
                outcome = ready.get(timeout=_POLL_INTERVAL_S)
            except queue.Empty:
                continue
            if outcome is None:
                return
            yield outcome.result()
    finally:
        left.set()
        thread.join(_SHUTDOWN_TIMEOUT_S)
