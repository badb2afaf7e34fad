"""What is put together while a batch is in work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from pharmclf.serving.batching import Batcher


def test_what_arrives_while_a_batch_is_in_work_is_the_next_one():
    """The first item waits for no other, the rest come together, at most as many as are allowed, in their order."""
    batches: list[list[int]] = []
    first_runs, free = threading.Event(), threading.Event()

    def double(items: Sequence[int]) -> list[int]:
        batches.append(list(items))
        first_runs.set()
        free.wait(60)
        return [2 * item for item in items]

    async def send() -> list[list[int]]:
        batcher = Batcher(double, 3)
        requests = [asyncio.create_task(batcher([0]))]
        await asyncio.to_thread(first_runs.wait, 60)
        requests += [asyncio.create_task(batcher(items)) for items in ([1, 2], [3], [4, 5])]
        await asyncio.sleep(0)
        free.set()
        return await asyncio.gather(*requests)

    assert asyncio.run(send()) == [[0], [2, 4], [6], [8, 10]]
    assert batches == [[0], [1, 2, 3], [4, 5]]


def test_an_error_is_that_of_its_batch_and_a_request_that_was_given_up_costs_nothing():
    calls: list[list[int]] = []
    first_runs, free = threading.Event(), threading.Event()

    def invert(items: Sequence[int]) -> list[float]:
        calls.append(list(items))
        first_runs.set()
        free.wait(60)
        return [1 / item for item in items]

    async def send() -> list[object]:
        batcher = Batcher(invert, 1)
        requests = [asyncio.create_task(batcher([1]))]
        await asyncio.to_thread(first_runs.wait, 60)
        requests += [asyncio.create_task(batcher([item])) for item in (7, 0, 2)]
        await asyncio.sleep(0)
        requests[1].cancel()
        await asyncio.sleep(0)
        free.set()
        return await asyncio.gather(*requests, return_exceptions=True)

    one, given_up, failed, half = asyncio.run(send())
    assert (one, half) == ([1.0], [0.5])
    assert isinstance(given_up, asyncio.CancelledError)
    assert isinstance(failed, ZeroDivisionError)
    assert calls == [[1], [0], [2]]


def test_as_many_batches_as_are_allowed_are_in_work_at_once():
    """Each waits for the other here, so that one at a time would never end."""
    both = threading.Barrier(2, timeout=60)

    async def send() -> list[list[int]]:
        batcher = Batcher(lambda items: (both.wait(), list(items))[1], 1, at_once=2)
        return await asyncio.gather(*[batcher([number]) for number in range(4)])

    assert asyncio.run(send()) == [[0], [1], [2], [3]]


def test_nothing_waits_for_ever_between_the_end_of_one_batch_and_the_next_request():
    async def send() -> int:
        batcher = Batcher(list, 4, at_once=2)

        async def client(count: int) -> int:
            return sum([len(await batcher([number])) for number in range(count)])

        async with asyncio.timeout(120):
            return sum(await asyncio.gather(*[client(200) for _ in range(7)]))

    assert asyncio.run(send()) == 1400


def test_work_starts_again_after_a_pause():
    async def send() -> list[list[int]]:
        batcher = Batcher(list, 8)
        return [await batcher([number]) for number in range(3)]

    assert asyncio.run(send()) == [[0], [1], [2]]


@pytest.mark.parametrize("count", [0, 100])
def test_a_request_of_any_size_gets_all_its_results(count: int):
    async def send() -> list[int]:
        return await Batcher(list, 8)(range(count))

    assert asyncio.run(send()) == list(range(count))
