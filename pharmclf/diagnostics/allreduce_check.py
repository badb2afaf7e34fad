"""A real all-reduce of two workers, started and joined as those of a training are, with its time and speed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pharmclf.core.compat.ray import worker_errors
from pharmclf.core.errors import format_error
from pharmclf.core.timeouts import CallTimeoutError, run_with_timeout
from pharmclf.diagnostics.results import Finding, fail, ok, warn
from pharmclf.distributed.scaling_policy import WorkerGroupSpec

TIMEOUT_S = 240.0
"""For all of it: starting two workers takes a minute on two busy cores, ten seconds on a cluster."""
_SLOW_BITS_PER_S = 1e9
_MOVED_BITS = 8 * (16 << 20)  # of `allreduce.BULK_BYTES`; each of two workers sends and receives so much in a ring
_REMEDY = "see the network's finding and the nodes' firewalls; the logs of the workers in Ray's dashboard say more"


@dataclass(frozen=True, kw_only=True)
class AllreduceInfo:
    """What two workers have measured."""

    error: str = ""
    """Why there is nothing else."""
    start_s: float = 0.0
    """From the start of the workers to their first sum."""
    small_s: float = 0.0
    """Of an all-reduce of 4 bytes."""
    bulk_s: float = 0.0
    """Of one of 16 MiB."""
    on_one_node: bool = False

    @property
    def bits_per_s(self) -> float:
        """In each direction."""
        return _MOVED_BITS / max(self.bulk_s - self.small_s, 1e-9)


def probe_allreduce(
    team: WorkerGroupSpec, avoided: Sequence[str], *, gpus: bool, limit_s: float = TIMEOUT_S
) -> AllreduceInfo:
    """Start the workers of a team, and let them sum; Ray must be connected.

    Where they hang, they are left to the end of this driver, which Ray ends them with.

    Args:
        team: two workers.
        avoided: ids of nodes that are not used.
        gpus: whether they drive GPUs.
        limit_s: after so many seconds they are given up.
    """
    from pharmclf.distributed.worker_group import build_trainer

    own = tempfile.mkdtemp(prefix="pharmclf-ray-train-")
    settings = {"gpus": gpus, "began": time.time()}
    trainer = build_trainer(_worker, settings, team, own, placement="SPREAD", excluded=avoided)

    def fit() -> AllreduceInfo:
        try:
            return AllreduceInfo(**trainer.fit().return_value)
        except Exception as error:
            return AllreduceInfo(error=_error_text(error))
        finally:
            shutil.rmtree(own, ignore_errors=True)

    try:
        return run_with_timeout(limit_s, fit)
    except CallTimeoutError as error:
        return AllreduceInfo(error=str(error))


def _error_text(error: Exception) -> str:
    """The first line of what a worker raised."""
    return format_error(next(iter(worker_errors(error)), error))


def _worker(settings: dict[str, Any]) -> dict[str, Any]:
    """One Ray Train worker. (all ranks)"""
    import ray.train

    from pharmclf.core.stderr_filter import suppress_native_stderr
    from pharmclf.models.devices import configure_devices
    from pharmclf.monitoring.cores import usable_cores

    with suppress_native_stderr():
        configure_devices(deterministic=False, gpus=settings["gpus"])
        from pharmclf.diagnostics import allreduce
        from pharmclf.training import collectives

        beside = ray.train.get_context().get_local_world_size()
        workers = collectives.init_distributed(max(1, usable_cores() // beside) if beside > 1 else None)
        workers.barrier()
        start_s = time.time() - settings["began"]
        measured = allreduce.measure(workers)
    return {"start_s": start_s, "on_one_node": beside > 1, **measured}


def check_allreduce(facts: AllreduceInfo) -> Finding:
    """Whether gradients can be exchanged, and fast."""
    if facts.error:
        return fail("all-reduce", f"two workers do not get on: {facts.error}", _REMEDY)
    place = "both on one node" if facts.on_one_node else "on two nodes"
    text = (
        f"two workers {place}: {facts.bits_per_s / 1e9:.1f} Gbit/s each way, {1e3 * facts.small_s:.1f} ms for 4 bytes, "
        f"{1e3 * facts.bulk_s:.1f} ms for 16 MiB; started in {facts.start_s:.0f} s"
    )
    if not facts.on_one_node and facts.bits_per_s < _SLOW_BITS_PER_S:
        remedy = "put the nodes into one zone or placement group; jobs/benchmark.py scaling says what the link costs"
        return warn("all-reduce", text, remedy)
    return ok("all-reduce", text)
