"""Converts the items of iterators in threads, ahead of their use."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class Prefetcher(Iterator[Any]):
    """Converts items ahead of their use in a thread, so that the device does not wait for the copy.

    The thread starts with the first item. An error is raised at its item. `close` ends the thread, and so does deleting
    the iterator.
    """

    def __init__(self, items: Iterator[Any], convert: Callable[[Any], Any], depth: int) -> None:
        self._queue: queue.Queue[_Entry] = queue.Queue(maxsize=depth)
        self._closed = threading.Event()
        work = (items, convert, self._queue, self._closed)  # not this object, which could then never be deleted
        self._thread = threading.Thread(target=_convert_ahead, args=work, name="prefetch", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether the next item can be taken without waiting."""
        return not self._queue.empty()

    def start(self) -> None:
        """Start before the first item is taken."""
        if not self._thread.ident:
            self._thread.start()

    def __next__(self) -> Any:
        if self._closed.is_set():
            raise StopIteration
        self.start()
        item, error, last = self._queue.get()
        if error is not None or last:
            self.close()
            raise error or StopIteration
        return item

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        if self._thread.ident:
            self._thread.join(timeout=10)

    def __del__(self) -> None:
        self.close()


_Entry = tuple[Any, BaseException | None, bool]
"""An item, or an error, or the end."""


def _convert_ahead(
    items: Iterator[Any], convert: Callable[[Any], Any], ahead: queue.Queue[_Entry], closed: threading.Event
) -> None:
    def put(entry: _Entry) -> None:
        while not closed.is_set():
            try:
                ahead.put(entry, timeout=0.2)
                return
            except queue.Full:
                continue

    try:
        for item in items:
            if closed.is_set():
                return
            put((convert(item), None, False))
        put((None, None, True))
    except BaseException as error:
        put((None, error, True))


def prefetch(items: Iterator[Any], convert: Callable[[Any], Any], depth: int = 2) -> Prefetcher:
    """Convert items ahead of their use, `depth` of them at most."""
    return Prefetcher(items, convert, depth)


def chain_prefetched(parts: Sequence[tuple[Iterator[Any], int]], overlap: int) -> Iterator[Any]:
    """Yield the items of one iterator after the other, each started before the one before it has ended.

    Args:
        parts: each with the number of its items.
        overlap: items that are left of a part when the next one starts, in a thread.
    """
    following: Prefetcher | None = None
    for number, (items, count) in enumerate(parts):
        current, following = following or items, None
        for index, item in enumerate(current):
            if following is None and count - index <= overlap and number + 1 < len(parts):
                following = prefetch(parts[number + 1][0], lambda item: item)
                following.start()
            yield item
