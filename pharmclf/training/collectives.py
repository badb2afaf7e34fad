"""Workers, and the collectives between them; no other module knows TF_CONFIG and the strategy.

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
    """The workers of a run, and the rank of this process among them."""

    strategy: tf.distribute.Strategy
    rank: int = 0
    world: int = 1
    progress: LoopProgress = field(default_factory=LoopProgress)
    """Position of the training loop of this process."""
    gradient_dtype: str = "float32"
    """Number format in which gradients are exchanged."""

    @property
    def is_chief(self) -> bool:
        """Whether this worker writes checkpoints and reports."""
        return self.rank == 0

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in this worker's replica, inside a tf.function. (all ranks)"""
        return self.strategy.run(function, args=arguments)

    def all_reduce_sum(self, tensors: Sequence[Any]) -> Sequence[Any]:
        """Sum tensors over all workers, inside a function given to `run`. (all ranks)"""
        if self.world == 1:
            return tensors
        context = tf.distribute.get_replica_context()
        sums: Sequence[Any] = context.all_reduce(tf.distribute.ReduceOp.SUM, list(tensors))
        return sums

    def all_reduce_gradients(self, gradients: Sequence[Any], sums: Any) -> tuple[Sequence[Any], Any]:
        """As `all_reduce_sum`, for gradients in `gradient_dtype` and for sums that are exact in float32. (all ranks)"""
        if self.world == 1 or self.gradient_dtype == "float32":  # one exchange
            *gradients, sums = self.all_reduce_sum([*gradients, sums])
            return gradients, sums
        rounded = self.all_reduce_sum([tf.cast(gradient, self.gradient_dtype) for gradient in gradients])
        return [tf.cast(gradient, tf.float32) for gradient in rounded], self.all_reduce_sum([sums])[0]

    def barrier(self) -> None:
        """Return when every worker has called this. (all ranks)"""
        if self.world > 1:
            tf.function(lambda: self.run(lambda: self.all_reduce_sum([tf.constant(0.0)])))()

    def gather(self, content: bytes) -> list[bytes]:
        """Content of each worker, by rank; all have the same number of bytes. (all ranks)"""
        if self.world == 1:
            return [content]
        table = np.zeros((self.world, len(content)), np.float32)
        table[self.rank] = np.frombuffer(content, np.uint8)
        return [row.tobytes() for row in self._summed(table).astype(np.uint8)]

    def from_chief(self, content: bytes) -> bytes:
        """Content of the chief, on every worker; that of the others is ignored. (all ranks)"""
        size = int.from_bytes(self.gather(len(content).to_bytes(8, "big"))[0], "big")
        numbers = np.frombuffer(content, np.uint8) if self.is_chief else np.zeros(size, np.uint8)
        return content if self.world == 1 else self._summed(numbers.astype(np.float32)).astype(np.uint8).tobytes()

    def _summed(self, numbers: np.ndarray) -> np.ndarray:
        """Sums of small integers over all workers, in float32, which is exact and which every library can sum."""

        def total(values: Any) -> Any:  # the strategy sums tensors that were computed on the device, not its inputs
            return self.run(lambda local: self.all_reduce_sum([tf.identity(local)])[0], values)

        summed = tf.function(total, autograph=False)(tf.constant(numbers, tf.float32))
        return np.asarray(summed.numpy())


def single_worker() -> Workers:
    """The only worker, in this process."""
    return Workers(tf.distribute.get_strategy())


def exchange_options(has_gpu: bool) -> tf.distribute.experimental.CommunicationOptions:
    """How workers exchange tensors: by NCCL from GPU to GPU, else in a ring of gRPC calls.

    With AUTO TensorFlow would leave the choice open, and then take the ring for GPUs too.
    """
    kind = tf.distribute.experimental.CommunicationImplementation
    return tf.distribute.experimental.CommunicationOptions(implementation=kind.NCCL if has_gpu else kind.RING)


def init_distributed(threads: int | None = None) -> Workers:
    """Join the workers that Ray Train names in TF_CONFIG; blocks until all have joined. (all ranks)

    Args:
        threads: of TensorFlow's kernels, if workers share the cores of a machine.
    """
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    task = json.loads(os.environ["TF_CONFIG"])
    # the driver did not know nodes that joined later; TF_CONFIG names all of them
    reach_directly(worker.rpartition(":")[0].strip("[]") for worker in task["cluster"]["worker"])
    options = exchange_options(bool(tf.config.get_visible_devices("GPU")))
    strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    return Workers(strategy, int(task["task"]["index"]), len(task["cluster"]["worker"]))
