"""A worker's share of a batch in pieces, one after the other, summed as if they were one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def accumulate_gradients(
    compute: Callable[[Any], Sequence[Any]], tensors: Any, piece: int, shapes: Sequence[Any]
) -> list[Any]:
    """The sums over all pieces; within a tf.function.

    The pieces are rounds of a loop on the device: written out one by one they would run side by side, and hold their
    memory together.

    Args:
        compute: tensors of one piece -> float32 tensors to be summed. What is padded is 0 in all tensors.
        tensors: each (rows, ...), in any nest of tuples, lists and dictionaries.
        piece: rows of a piece.
        shapes: of what `compute` gives.
    """
    rows = tf.nest.flatten(tensors)[0].shape[0]
    count = -(-rows // piece)

    def stacked(tensor: Any) -> Any:
        """(rows, ...) -> (count, piece, ...)."""
        if count * piece > rows:
            tensor = tf.pad(tensor, [[0, count * piece - rows]] + [[0, 0]] * (len(tensor.shape) - 1))
        return tf.reshape(tensor, [count, piece, *tensor.shape[1:]])

    pieces = tf.nest.map_structure(stacked, tensors)

    def add(index: Any, sums: list[Any]) -> tuple[Any, list[Any]]:
        found = compute(tf.nest.map_structure(lambda tensor: tensor[index], pieces))
        return index + 1, [total + value for total, value in zip(sums, found, strict=True)]

    first = tf.constant(0), [tf.zeros(shape) for shape in shapes]
    return tf.while_loop(lambda index, _: index < count, add, first, parallel_iterations=1)[1]
