"""Resolves the precision of a run, for its feature cache and all its workers."""

from __future__ import annotations

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pharmclf.config import RunConfig
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.models.devices import (
    driver_compute_capability,
    gpu_compute_capability,
    min_compute_capability,
    resolve_precision,
)


def run_precision(config: RunConfig) -> str:
    """The precision of a run; `auto` is resolved on the machines where it trains, once for all workers.

    Workers with unlike GPUs that chose separately would sum the gradients of unlike steps.

    Args:
        config: the run; without workers this process decides, else all live nodes with GPUs.
    """
    if config.precision != "auto" or config.accelerator == "cpu":
        return resolve_precision(config.precision, None)
    if config.worker_range[1] == 0:
        with suppress_native_stderr():
            return resolve_precision(config.precision, gpu_compute_capability())
    ask = ray.remote(num_cpus=0)(driver_compute_capability)  # and no GPU: all may be in use
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    return resolve_precision(config.precision, min_compute_capability(ray.get(asked)))
