"""Puts together what is waiting: while a batch is in work, all that arrives becomes the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Calls a function with several items at a time, in threads.

    The first item waits for no other. `ray.serve.batch` would close a batch after a fixed time, also while the earlier
    one is in work: measured with 16 clients, 1.6 images of a batch in place of 7.6.
    """

    def __init__(self, call: Callable[[Sequence[Item]], Sequence[Result]], most: int, at_once: int = 1) -> None:
        """Take a function of at most so many items, which gives a result for each; and how many calls run at once."""
        self._call, self._most, self._at_once = call, most, at_once
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._work: set[asyncio.Task[None]] = set()

    async def __call__(self, items: Sequence[Item]) -> list[Result]:
        """The results of items, in their order; an error of the call is raised for all of its batch."""
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Result]] = [loop.create_future() for _ in items]
        self._waiting += zip(items, futures, strict=True)
        if len(self._work) < self._at_once:
            self._work.add(asyncio.create_task(self._run()))
        return await asyncio.gather(*futures)

    async def _run(self) -> None:
        while self._waiting:
            # those of requests that were given up are cancelled
            batch = [waiting for waiting in self._waiting[: self._most] if not waiting[1].done()]
            del self._waiting[: self._most]
            if not batch:
                continue
            try:
                results = await asyncio.to_thread(self._call, [item for item, _ in batch])
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), result in zip(batch, results, strict=True):
                    if not future.done():
                        future.set_result(result)
        # here and not when the task has ended: what arrives in between would wait for ever
        self._work -= {task for task in self._work if task is asyncio.current_task()}
