"""Workers: the one place that knows TF_CONFIG, the strategy and ranks.

One worker drives one accelerator and is one replica, so batches go to a step as plain tensors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

from pharmclf.training.loop_progress import LoopProgress
from pharmclf.training.proxy import reach_directly


@dataclass(frozen=True, eq=False)
class Workers:
    """This process among the workers of a run."""

    strategy: tf.distribute.Strategy
    rank: int = 0
    world: int = 1
    progress: LoopProgress = field(default_factory=LoopProgress)
    """Where the loop of this process is."""

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes checkpoints and reports."""
        return self.rank == 0

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in this worker's replica; within a tf.function. (all ranks)"""
        return self.strategy.run(function, args=arguments)

    def all_reduce_sum(self, tensors: Sequence[Any]) -> Sequence[Any]:
        """Sum tensors over all workers; within a function given to `run`. (all ranks)"""
        if self.world == 1:
            return tensors
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))

    def barrier(self) -> None:
        """Return when every worker has come here. (all ranks)"""
        if self.world > 1:
            tf.function(lambda: self.run(lambda: self.all_reduce_sum([tf.constant(0.0)])))()

    def gather(self, content: bytes) -> list[bytes]:
        """What each worker gives, by rank; all give equally many bytes. (all ranks)"""
        if self.world == 1:
            return [content]
        table = np.zeros((self.world, len(content)), np.float32)
        table[self.rank] = np.frombuffer(content, np.uint8)
        return [row.tobytes() for row in self._summed(table).astype(np.uint8)]

    def from_chief(self, content: bytes) -> bytes:
        """What the chief gives, for all; what the others give does not count. (all ranks)"""
        size = int.from_bytes(self.gather(len(content).to_bytes(8, "big"))[0], "big")
        mine = np.frombuffer(content, np.uint8) if self.is_chief else np.zeros(size, np.uint8)
        return content if self.world == 1 else self._summed(mine.astype(np.float32)).astype(np.uint8).tobytes()

    def _summed(self, numbers: np.ndarray) -> np.ndarray:
        """Sums of small whole numbers over all workers: float32 holds them exactly, and every library sums it."""

        def total(values: Any) -> Any:  # the strategy sums what was computed on the device, not what came in
            return self.run(lambda own: self.all_reduce_sum([tf.identity(own)])[0], values)

        summed = tf.function(total, autograph=False)(tf.constant(numbers, tf.float32))
        return np.asarray(summed.numpy())


def single_worker() -> Workers:
    """The only worker, in this process."""
    return Workers(tf.distribute.get_strategy())


def init_distributed(threads: int | None = None) -> Workers:
    """Join the workers that Ray Train has named in TF_CONFIG; blocks until all are there. (all ranks)

    Args:
        threads: threads of TensorFlow's kernels, where workers share one machine's cores.
    """
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    task = json.loads(os.environ["TF_CONFIG"])
    # a node that joins later than the driver has a TF_CONFIG with all nodes too
    reach_directly(worker.rpartition(":")[0].strip("[]") for worker in task["cluster"]["worker"])
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    return Workers(strategy, int(task["task"]["index"]), len(task["cluster"]["worker"]))
