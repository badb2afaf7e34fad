"""An all-reduce and nothing else, through the workers as training has them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from pharmclf.training.collectives import Workers

BULK_BYTES = 16 << 20
_TIMES = 5


def allreduce_fn(workers: Workers, tensors: Sequence[Any]) -> Callable[[], None]:
    """A call that sums tensors over all workers, traced by now. (all ranks)"""

    def summed(*own: Any) -> Any:
        placed = [tf.identity(tensor) for tensor in own]  # an argument has no device, which the strategy asks for
        return workers.all_reduce_sum(placed)[-1]  # the others come with it

    reduce = tf.function(lambda *own: workers.run(summed, *own), autograph=False)

    def call() -> None:
        reduce(*tensors).numpy()

    call()
    return call


def measure(workers: Workers) -> dict[str, float]:
    """Seconds of an all-reduce of 4 bytes and of many, the best of some. (all ranks)

    Raises:
        ValueError: the sum is wrong.
    """
    total = tf.function(lambda: workers.run(lambda: workers.all_reduce_sum([tf.constant(1.0)])[0]), autograph=False)()
    if float(total) != workers.world:
        raise ValueError(f"{workers.world} workers that add one each get {float(total)}")
    small, bulk = (allreduce_fn(workers, [tf.zeros(size // 4)]) for size in (4, BULK_BYTES))
    times: dict[str, list[float]] = {"small_s": [], "bulk_s": []}
    for _ in range(_TIMES):
        for name, call in (("small_s", small), ("bulk_s", bulk)):
            small()  # all begin at once
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    small()  # a worker that ends takes the others with it
    return {name: min(seconds) for name, seconds in times.items()}
