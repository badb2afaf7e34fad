"""Who predicts: this process, or how many processes on Ray. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from pharmclf.core.errors import ConfigError
from pharmclf.distributed.scaling_policy import ClusterNode, format_capacity
from pharmclf.inference.options import AUTO, Accelerator

_MIN_IMAGES_FOR_RAY = 1000  # are predicted here before processes on a cluster have started


def should_use_ray(
    workers: str, accelerator: Accelerator, num_images: int, *, on_cluster: bool, gpus_here: int
) -> bool:
    """Whether Ray predicts, or this process; pure.

    On one machine with at most one GPU nothing is gained by Ray: images would only be copied between processes.

    Args:
        workers: auto, or a number.
        on_cluster: whether this process belongs to a cluster.

    Raises:
        ConfigError: a GPU is required and this process has none.
    """
    lacking = accelerator == "gpu" and not gpus_here
    many = num_images >= _MIN_IMAGES_FOR_RAY
    pays = (on_cluster and (many or lacking)) or (gpus_here > 1 and many)
    ray = pays if workers == AUTO else int(workers) > 0
    if lacking and not ray:
        raise ConfigError("--accelerator gpu: this machine has none that can be seen. Give --accelerator auto")
    return ray


def plan_actors(nodes: Sequence[ClusterNode], workers: str, accelerator: Accelerator) -> int:
    """The processes that predict on a cluster: one for every GPU, without any one for every node; pure.

    Args:
        workers: auto, or a number.

    Raises:
        ConfigError: no GPU although one is required, or more processes than GPUs.
    """
    gpus = 0 if accelerator == "cpu" else sum(int(node.gpus) for node in nodes)
    if accelerator == "gpu" and not gpus:
        raise ConfigError(
            f"--accelerator gpu: there are {format_capacity(nodes)}. Add nodes with GPUs, or give --accelerator auto"
        )
    if workers == AUTO:
        return gpus or max(1, sum(node.cpus >= 1 for node in nodes))
    if 0 < gpus < int(workers):
        raise ConfigError(
            f"--num-workers: received {workers}, but there are {gpus} GPUs and a process takes one. "
            f"Give --num-workers {gpus} or fewer, or --accelerator cpu"
        )
    return int(workers)
