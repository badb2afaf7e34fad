"""Finds how many rows a worker's device computes at once, where the workers will be; the smallest device decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pharmclf.config import RunConfig
from pharmclf.core.compat.ray import free_resources_by_node
from pharmclf.core.errors import ConfigError
from pharmclf.core.signals import StopRequested
from pharmclf.distributed.cluster import usable_nodes
from pharmclf.distributed.controller import connect, wait_for_workers
from pharmclf.distributed.scaling_policy import ClusterNode, WorkerGroupSpec
from pharmclf.models.devices import memory_limit_mb
from pharmclf.training.context import Callback, TrainingContext
from pharmclf.training.microbatch import MicrobatchSearchError, find_max_microbatch, format_result, min_over_nodes

_POLL_INTERVAL_S = 0.5


def resolve_microbatches(job: TrainingContext, observer: Callback, earlier: dict[str, Any] | None) -> dict[str, Any]:
    """The micro-batches of a run: those that are asked for, those that it has found before, or now by trying.

    Args:
        job: of the run.
        observer: as `find_microbatches`.
        earlier: what this returned when the run was started before; what was found goes for the same limit of memory.

    Returns:
        rows: by name of the phase, none where each worker computes its share at once; found: whether by trying;
        memory_limit_mb: under which.

    Raises:
        As `find_microbatches`.
    """
    limit = memory_limit_mb()
    if job.config.microbatch_rows is not None:
        return {"found": False, "memory_limit_mb": limit, "rows": dict(job.microbatches)}
    if earlier and earlier["found"] and earlier["memory_limit_mb"] == limit:
        rows = ", ".join(f"{phase} {rows}" for phase, rows in earlier["rows"].items())
        observer.event("note", text=f"microbatch auto: as found before, {rows}")
        return earlier
    return {"found": True, "memory_limit_mb": limit, "rows": find_microbatches(job, observer)}


def find_microbatches(job: TrainingContext, observer: Callback) -> dict[str, int]:
    """The most rows of each phase that every device computes at once, found by trying; says what it finds.

    Args:
        job: of the run.
        observer: gets notes; asked whether to give up.

    Returns:
        Rows by name of the phase.

    Raises:
        ConfigError: bad input, or not even one image fits.
        NodesUnavailableError: the cluster had no room for the workers in time.
        MicrobatchSearchError: an error that is none of memory.
        StopRequested: a stop was requested.
    """
    config = job.config
    connect(allow_open=config.allow_open_cluster)
    where, share = "in a process of its own", config.batch_size
    if config.worker_range[1] == 0:
        _note(observer, where)
        found = [find_max_microbatch(config, len(job.class_names), share, 1, observer.should_stop)]
    else:
        team = wait_for_workers(config, observer)
        nodes = _candidate_nodes(team)
        share = -(-config.batch_size // team.size)
        _note(observer, f"on {', '.join(node.address for node in nodes)}")
        found = _find_on_nodes(config, len(job.class_names), team, nodes, observer.should_stop)
    rows, cap = min_over_nodes([one["rows"] for one in found]), min(one["cap"] for one in found)
    devices = ", ".join(sorted({one["device"] for one in found}))
    for phase, most in rows.items():
        if most == 0:
            raise ConfigError(
                f"microbatch: {phase}: the memory of {devices} does not hold one image of {config.image_size} pixels "
                f"with {config.backbone}. Give a smaller --image-size, fewer --unfreeze-blocks or another --backbone"
            )
        observer.event("note", text=f"{format_result(phase, most, share, cap)} ({devices})")
    return rows


def _note(observer: Callback, where: str) -> None:
    observer.event("note", text=f"microbatch auto: trying what the device holds, {where}; on a GPU this takes minutes")


def _candidate_nodes(team: WorkerGroupSpec) -> list[ClusterNode]:
    """The nodes that a worker may be given: those with room for one now, or, where none has, all that are large enough.

    A node may have smaller devices than another, so each is tried.
    """
    nodes = usable_nodes()
    places = [n for n in nodes if n.gpus >= team.each.gpus and n.cpus >= team.each.cpus]
    free = free_resources_by_node()

    def has_room(node: ClusterNode) -> bool:
        left = free.get(node.id, {})
        return left.get("GPU", 0.0) >= team.each.gpus and left.get("CPU", 0.0) >= team.each.cpus

    return [node for node in places if has_room(node)] or places or nodes


def _find_on_nodes(
    config: RunConfig, num_classes: int, team: WorkerGroupSpec, nodes: list[ClusterNode], stopped: Callable[[], bool]
) -> list[dict[str, Any]]:
    """What is found on each node, at the same time, with what a worker will hold there."""
    share, beside = -(-config.batch_size // team.size), -(-team.size // len(nodes))
    task = ray.remote(num_cpus=team.each.cpus, num_gpus=team.each.gpus, max_retries=0)(_find_on_this_node)
    running = [
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)).remote(
            config, num_classes, share, beside
        )
        for node in nodes
    ]
    left = running
    try:
        while left:
            left = ray.wait(left, num_returns=len(left), timeout=_POLL_INTERVAL_S)[1]
            if stopped():
                raise StopRequested
    finally:
        for reference in left:
            ray.cancel(reference, force=True)
    found = ray.get(running)
    for one in found:
        if "input" in one:
            raise ConfigError(one["input"])
        if "error" in one:
            raise MicrobatchSearchError(one["error"])
    return found


def _find_on_this_node(config: RunConfig, num_classes: int, share: int, workers_here: int) -> dict[str, Any]:
    """As `find_max_microbatch`, with errors in words: Ray would hide their type."""
    try:
        return find_max_microbatch(config, num_classes, share, workers_here, lambda: False)
    except ConfigError as error:
        return {"input": str(error)}
    except MicrobatchSearchError as error:
        return {"error": f"{ray.util.get_node_ip_address()}: {error}"}
