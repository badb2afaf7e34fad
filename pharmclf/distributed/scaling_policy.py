"""Divides the resources of a cluster among the workers of a run; pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from pharmclf.config import RunConfig
from pharmclf.config.parsing import AUTO
from pharmclf.core.errors import ConfigError
from pharmclf.core.units import format_examples
from pharmclf.monitoring.cores import ray_cpus


@dataclass(frozen=True)
class ClusterNode:
    """A machine of the cluster."""

    id: str
    address: str
    port: int
    """Of its raylet."""
    cpus: float
    gpus: float


def local_node(gpus: int) -> ClusterNode:
    """This machine, as a Ray that is started on it counts its CPUs."""
    return ClusterNode("", "127.0.0.1", 0, float(ray_cpus()), float(gpus))


@dataclass(frozen=True)
class Resources:
    """Resources that each worker reserves, and the CPUs of its loader."""

    cpus: float
    gpus: float
    loader_cpus: float


@dataclass(frozen=True)
class WorkerGroupSpec:
    """The workers of an attempt."""

    size: int
    each: Resources


def resources_per_worker(low: int, high: int, total_cpus: float, total_gpus: float) -> Resources:
    """Divide a cluster among workers so that Ray Data always has CPUs to decode.

    A worker reserves one CPU, or less if the workers would reserve more than half of all CPUs.

    Args:
        low: minimum number of workers, which must fit now.
        total_cpus: CPUs of the cluster.
        total_gpus: GPUs of the cluster; if there are any, a worker drives one.

    Raises:
        ConfigError: more workers than GPUs on a cluster that has some, or no CPU left.
    """
    if 0 < total_gpus < low:
        raise ConfigError(
            f"num_workers: received {low}, but the cluster has {total_gpus:g} GPUs and a worker drives one. "
            f"Give --num-workers {int(total_gpus)} or fewer, or add nodes"
        )
    cpus = min(1.0, total_cpus / 2 / high)
    cpus = cpus if cpus == 1.0 else int(cpus * 100) / 100
    left = total_cpus - cpus * high
    if cpus <= 0 or left < 1:
        raise ConfigError(
            f"num_workers: received {high}, but the cluster has {total_cpus:g} CPUs, and reading the images needs one. "
            "Give fewer --num-workers, or add nodes"
        )
    return Resources(cpus, 1.0 if total_gpus else 0.0, max(1.0, left / high))


def plan_worker_group(
    nodes: Sequence[ClusterNode], low: int, high: int, accelerator: str, share: float = 1.0
) -> WorkerGroupSpec:
    """Plan the workers that fit on a cluster.

    A worker drives one GPU. Without GPUs a worker uses all cores of its node, so that each node gets one; a fixed
    number of workers also fits on fewer nodes.

    Args:
        share: of the cluster, 0..1.

    Raises:
        ConfigError: the minimum does not fit.
    """
    cpus, gpus = share * sum(node.cpus for node in nodes), share * sum(node.gpus for node in nodes)
    if accelerator == "gpu" and gpus < low:
        raise ConfigError(
            f"num_workers: received {low} with --accelerator gpu, but the cluster has {gpus:g} GPUs. "
            "Add nodes, or give --accelerator auto"
        )
    gpus = 0.0 if accelerator == "cpu" else gpus
    places = int(gpus) if gpus else int(share * sum(node.cpus >= 1 for node in nodes))
    size = max(low, min(high, places))
    each = resources_per_worker(size, size, cpus, gpus)
    hosts = [node.cpus for node in nodes if node.cpus > 0]
    if not gpus and share == 1.0 and size >= len(hosts):  # Ray Data needs a whole CPU on one node
        per_host, most_cpus = -(-size // len(hosts)), max(hosts)
        if most_cpus <= 1:
            raise ConfigError(
                f"num_workers: received {size}, but no node has more than {most_cpus:g} CPU, and reading the images "
                "needs one more CPU than the worker. Add a node with 2 CPUs or more"
            )
        if each.cpus * per_host > most_cpus - 1:
            each = Resources(int((most_cpus - 1) / per_host * 100) / 100, 0.0, each.loader_cpus)
    return WorkerGroupSpec(size, each)


def choose_workers(
    config: RunConfig, nodes: Sequence[ClusterNode], *, on_cluster: bool, uses_tensorflow: bool = False
) -> tuple[RunConfig, str]:
    """Replace `num_workers: auto` by a number; the steps of a run are the same with any.

    A single worker on this machine would be one more process, which takes longer to start than a small set to train.

    Args:
        nodes: usable ones of the cluster, or this machine.
        on_cluster: whether the nodes are those of a cluster, which knows of no load but that of its workers.
        uses_tensorflow: whether this process uses TensorFlow already, so that its devices cannot be set.

    Returns:
        The run with its number, and a line that says why; "": it had one.
    """
    if config.num_workers != AUTO:
        return config, ""
    gpus = 0 if config.accelerator == "cpu" else int(sum(node.gpus for node in nodes))
    where = "the cluster" if on_cluster else "this machine"
    if config.accelerator == "gpu" and not gpus:
        workers, reason = 1, f"--accelerator gpu asks for a GPU, and {where} has none"
    elif on_cluster or gpus > 1:
        places = max(1, gpus or sum(node.cpus >= 1 for node in nodes))
        workers, reason = min(places, config.batch_size), f"one for each {'GPU' if gpus else 'node'} of {where}"
        if workers < places:
            reason = f"one for each image of a batch; {where} has room for {places}"
    elif uses_tensorflow:
        workers, reason = 1, "a separate process, since this one uses TensorFlow already"
    else:
        workers, reason = 0, f"this process trains, since {where} is alone and has {'one GPU' if gpus else 'no GPU'}"
    text = f"workers: {workers}, chosen by auto: {reason}"
    return dataclasses.replace(config, num_workers=str(workers)), text


def format_capacity(nodes: Sequence[ClusterNode]) -> str:
    """Format the resources of nodes."""
    if not nodes:
        return "no node"
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    listed = format_examples([f"{node.address} ({node.cpus:g} CPUs, {node.gpus:g} GPUs)" for node in nodes], 8)
    return f"{cpus:g} CPUs and {gpus:g} GPUs on {listed}"
