"""Check of the all-reduce: two real workers, started and joined as in training, sum tensors."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pharmclf.core.compat.ray import worker_errors
from pharmclf.core.errors import format_error
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.core.timeouts import CallTimeoutError, run_with_timeout
from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.distributed.scaling_policy import WorkerGroupSpec
from pharmclf.monitoring.cores import usable_cores

if TYPE_CHECKING:  # imports TensorFlow
    from pharmclf.training.collectives import Workers

TIMEOUT_S = 240.0
"""For all of it: two workers start within a minute on two busy cores, within ten seconds on a cluster."""
_BULK_BYTES = 16 << 20
_REPEATS = 5
_SLOW_BITS_PER_S = 1e9


@dataclass(frozen=True, kw_only=True)
class AllreduceInfo:
    """The measurements of two workers."""

    error: str = ""
    """Why there are none."""
    start_s: float = 0.0
    """From the start of the workers to their first sum."""
    small_s: float = 0.0
    """Of an all-reduce of 4 bytes."""
    bulk_s: float = 0.0
    """Of an all-reduce of 16 MiB."""
    on_one_node: bool = False

    @property
    def bits_per_s(self) -> float:
        """Speed in each direction: each of two workers sends and receives all bytes in a ring."""
        return 8 * _BULK_BYTES / max(self.bulk_s - self.small_s, 1e-9)


def allreduce_fn(workers: Workers, tensors: Sequence[Any]) -> Callable[[], None]:
    """A traced call that sums tensors over all workers. (all ranks)"""
    import tensorflow as tf

    def sum_tensors(*values: Any) -> Any:
        placed = [tf.identity(value) for value in values]  # the strategy needs a device, which an argument has not
        return workers.all_reduce_sum(placed)[-1]  # the others come with it

    reduce = tf.function(lambda *values: workers.run(sum_tensors, *values), autograph=False)

    def call() -> None:
        reduce(*tensors).numpy()

    call()
    return call


def measure_allreduce(workers: Workers) -> tuple[float, float]:
    """Seconds of an all-reduce of 4 bytes and of 16 MiB, the best of some. (all ranks)

    Raises:
        ValueError: the sum is wrong.
    """
    import tensorflow as tf

    total = tf.function(lambda: workers.run(lambda: workers.all_reduce_sum([tf.constant(1.0)])[0]), autograph=False)()
    if float(total) != workers.world:
        raise ValueError(f"all-reduce: received the sum {float(total)} of {workers.world} workers that add one each")
    small, bulk = (allreduce_fn(workers, [tf.zeros(size // 4)]) for size in (4, _BULK_BYTES))
    small_s, bulk_s = list[float](), list[float]()
    for _ in range(_REPEATS):
        for seconds, call in ((small_s, small), (bulk_s, bulk)):
            small()  # all begin at the same time
            began = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - began)
    small()  # a worker that ends breaks the calls of the others
    return min(small_s), min(bulk_s)


def probe_allreduce(spec: WorkerGroupSpec, avoided: Sequence[str], *, gpus: bool) -> AllreduceInfo:
    """Start two workers, and let them sum; Ray must be connected.

    After `TIMEOUT_S` the result is an error; workers that hang stay until this driver ends, when Ray ends them.

    Args:
        avoided: ids of nodes that are not used.
    """
    from pharmclf.distributed.worker_group import build_trainer

    folder = tempfile.mkdtemp(prefix="pharmclf-ray-train-")
    settings = {"gpus": gpus, "began": time.time()}
    trainer = build_trainer(_worker, settings, spec, folder, placement="SPREAD", excluded=avoided)

    def fit() -> AllreduceInfo:
        try:
            info: AllreduceInfo = trainer.fit().return_value
            return info
        except Exception as error:
            return AllreduceInfo(error=format_error(next(iter(worker_errors(error)), error)))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    try:
        return run_with_timeout(TIMEOUT_S, fit)
    except CallTimeoutError as error:
        return AllreduceInfo(error=str(error))


def _worker(settings: dict[str, Any]) -> AllreduceInfo:
    """One Ray Train worker. (all ranks)"""
    import ray.train

    from pharmclf.models.devices import configure_devices

    with suppress_native_stderr():
        configure_devices(deterministic=False, gpus=settings["gpus"])
        from pharmclf.training import collectives

        workers_here = ray.train.get_context().get_local_world_size()
        threads = max(1, usable_cores() // workers_here) if workers_here > 1 else None
        workers = collectives.init_distributed(threads)
        workers.barrier()
        start_s = time.time() - settings["began"]
        small_s, bulk_s = measure_allreduce(workers)
    return AllreduceInfo(start_s=start_s, small_s=small_s, bulk_s=bulk_s, on_one_node=workers_here > 1)


def check_allreduce(info: AllreduceInfo) -> Finding:
    """Whether workers exchange gradients, and how fast; pure."""
    if info.error:
        remedy = "see the network's finding and the nodes' firewalls, and the logs of the workers in Ray's dashboard"
        return fail("all-reduce", f"two workers cannot sum: {info.error}", remedy)
    text = (
        f"two workers {'both on one node' if info.on_one_node else 'on two nodes'}: {info.bits_per_s / 1e9:.1f} Gbit/s "
        f"each way, {1e3 * info.small_s:.1f} ms for 4 bytes, {1e3 * info.bulk_s:.1f} ms for 16 MiB; started in "
        f"{info.start_s:.0f} s"
    )
    if not info.on_one_node and info.bits_per_s < _SLOW_BITS_PER_S:
        remedy = "put the nodes into one zone or placement group; pharmclf benchmark scaling forecasts the cost"
        return warn("all-reduce", text, remedy)
    return ok("all-reduce", text)
