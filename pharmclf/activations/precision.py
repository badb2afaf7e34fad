"""The one precision of a run: its activations are computed in it, and all its workers train in it."""

from __future__ import annotations

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pharmclf.config import RunConfig
from pharmclf.core.stderr_filter import native_chatter_muted
from pharmclf.model.device import driver_capability, gpu_capability, least_capability, precision_for


def precision_of(config: RunConfig) -> str:
    """The precision of a run, or what `auto` comes to where it trains: one for all its workers.

    Workers that chose by themselves, on unlike GPUs, would sum the gradients of unlike steps.

    Args:
        config: the run; without workers this process is asked, else every node with GPUs that is there.
    """
    if config.precision != "auto" or config.accelerator == "cpu":
        return precision_for(config.precision, None)
    if config.worker_range[1] == 0:
        with native_chatter_muted():
            return precision_for(config.precision, gpu_capability())
    ask = ray.remote(num_cpus=0)(driver_capability)  # no GPU either: they may be in use
    asked = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    return precision_for(config.precision, least_capability(ray.get(asked)))
