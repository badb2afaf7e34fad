"""Gradient accumulation: a worker's share of a batch in micro-batches, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def accumulate_gradients(
    compute: Callable[[Any], Sequence[Any]], tensors: Any, microbatch: int, shapes: Sequence[Any]
) -> list[Any]:
    """Sums over all micro-batches, inside a tf.function.

    They are iterations of a loop on the device: unrolled they would run concurrently, and hold their memory together.

    Args:
        compute: tensors of a micro-batch -> float32 tensors to be summed. Padding is 0 in all tensors.
        tensors: each (rows, ...), in any nest of tuples, lists and dictionaries.
        shapes: of the results of `compute`.
    """
    rows = tf.nest.flatten(tensors)[0].shape[0]
    count = -(-rows // microbatch)

    def stacked(tensor: Any) -> Any:
        """(rows, ...) -> (count, microbatch, ...)."""
        if count * microbatch > rows:
            tensor = tf.pad(tensor, [[0, count * microbatch - rows]] + [[0, 0]] * (len(tensor.shape) - 1))
        return tf.reshape(tensor, [count, microbatch, *tensor.shape[1:]])

    microbatches = tf.nest.map_structure(stacked, tensors)

    def add(index: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
        values = compute(tf.nest.map_structure(lambda tensor: tensor[index], microbatches))
        return index + 1, [total + value for total, value in zip(sums, values, strict=True)]

    first = tf.constant(0), [tf.zeros(shape) for shape in shapes]
    sums: list[Any] = tf.while_loop(lambda index, _: index < count, add, first, parallel_iterations=1)[1]
    return sums
