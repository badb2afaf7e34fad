"""Iterators that are read ahead in threads, one after the other."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from pharmclf.data.prefetch import chain_prefetched


def test_a_part_is_begun_while_the_one_before_still_has_items():
    """Not earlier, not in the thread that reads, and only the next one; the items keep their order."""
    begun: dict[int, threading.Event] = {number: threading.Event() for number in range(3)}
    threads = set()

    def part(number: int) -> Iterator[int]:
        begun[number].set()
        threads.add(threading.get_ident())
        yield from range(10 * number, 10 * number + 10)

    items = chain_prefetched([(part(number), 10) for number in range(3)], overlap=4)
    assert list(itertools.islice(items, 6)) == list(range(6))
    assert not begun[1].is_set()
    assert next(items) == 6  # behind it are three more, and the next part is asked for before it is given
    assert begun[1].wait(10)
    assert not begun[2].is_set()
    assert list(items) == list(range(7, 30))
    assert len(threads) == 3


def test_an_error_comes_at_the_item_that_it_concerns():
    def broken() -> Iterator[int]:
        yield 10
        raise ValueError("the second item of the second part")

    items = chain_prefetched([(iter(range(3)), 3), (broken(), 2)], overlap=3)
    assert list(itertools.islice(items, 4)) == [0, 1, 2, 10]
    with pytest.raises(ValueError, match="second part"):
        next(items)


def test_parts_that_are_not_read_to_their_end_are_let_go():
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = chain_prefetched([(iter(range(2)), 2), (endless(), 1000)], overlap=2)
    next(items)
    items.close()  # type: ignore[attr-defined]
    del items
    assert closed.wait(10)
