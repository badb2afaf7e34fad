"""How a cluster is divided among the workers of a run; pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_examples


@dataclass(frozen=True)
class ClusterNode:
    """A machine of the cluster."""

    id: str
    address: str
    port: int
    """Of its raylet."""
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Resources:
    """What each worker reserves, and what it leaves to its pipeline."""

    cpus: float
    gpus: float
    loader_cpus: float


@dataclass(frozen=True)
class WorkerGroupSpec:
    """The workers of an attempt."""

    size: int
    each: Resources


def resources_per_worker(low: int, high: int, total_cpus: float, total_gpus: float) -> Resources:
    """Divide a cluster among workers so that Ray Data can always decode.

    A worker reserves one CPU where there are plenty and a fraction where there are not: half of the CPUs stay free.

    Args:
        low: fewest workers, which must find their place now.
        high: most workers.
        total_cpus: CPUs of the cluster.
        total_gpus: GPUs of the cluster; where there are some, a worker drives one.

    Raises:
        ConfigError: more workers than GPUs on a cluster that has some, or no CPU left.
    """
    if 0 < total_gpus < low:
        raise ConfigError(
            f"workers: received {low}, but the cluster has {total_gpus:g} GPUs and a worker drives one. "
            f"Give --workers {int(total_gpus)} or fewer, or add nodes"
        )
    cpus = min(1.0, total_cpus / 2 / high)
    cpus = cpus if cpus == 1.0 else int(cpus * 100) / 100
    left = total_cpus - cpus * high
    if cpus <= 0 or left < 1:
        raise ConfigError(
            f"workers: received {high}, but the cluster has {total_cpus:g} CPUs, and reading the images needs one. "
            "Give fewer --workers, or add nodes"
        )
    return Resources(cpus, 1.0 if total_gpus else 0.0, max(1.0, left / high))


def plan_worker_group(
    nodes: Sequence[ClusterNode], low: int, high: int, accelerator: str, share: float = 1.0
) -> WorkerGroupSpec:
    """The workers that a cluster has room for.

    With GPUs there is one worker for each. Without, a worker uses all cores of its node, so that there is one for each
    node; a fixed number finds its place on fewer nodes too.

    Args:
        nodes: that can be used.
        low: fewest workers.
        high: most workers.
        accelerator: as in RunConfig.
        share: of the cluster, 0..1.

    Raises:
        ConfigError: there is no room for the fewest.
    """
    cpus, gpus = share * sum(node.cpus for node in nodes), share * sum(node.gpus for node in nodes)
    if accelerator == "gpu" and gpus < low:
        raise ConfigError(
            f"workers: received {low} with --accelerator gpu, but the cluster has {gpus:g} GPUs. "
            "Add nodes, or give --accelerator auto"
        )
    gpus = 0.0 if accelerator == "cpu" else gpus
    places = int(gpus) if gpus else int(share * sum(node.cpus >= 1 for node in nodes))
    size = max(low, min(high, places))
    each = resources_per_worker(size, size, cpus, gpus)
    hosts = [node.cpus for node in nodes if node.cpus > 0]
    if not gpus and share == 1.0 and size >= len(hosts):  # Ray Data needs a whole CPU on one node
        beside, most = -(-size // len(hosts)), max(hosts)
        if most <= 1:
            raise ConfigError(
                f"workers: received {size}, but no node has more than {most:g} CPU, and reading the images needs a "
                "whole one beside a worker. Add a node with 2 CPUs or more"
            )
        if each.cpus * beside > most - 1:
            each = Resources(int((most - 1) / beside * 100) / 100, 0.0, each.loader_cpus)
    return WorkerGroupSpec(size, each)


def format_capacity(nodes: Sequence[ClusterNode]) -> str:
    """What a cluster has, in words."""
    if not nodes:
        return "no node"
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    listed = format_examples([f"{node.address} ({node.cpus:g} CPUs, {node.gpus:g} GPUs)" for node in nodes], 8)
    return f"{cpus:g} CPUs and {gpus:g} GPUs on {listed}"
