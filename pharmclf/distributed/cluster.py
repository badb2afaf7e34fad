"""The nodes of the cluster: which can be used, which are about to go, and waiting for those that are missing."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor

import ray
from ray.autoscaler.sdk import request_resources

from pharmclf.config import RunConfig
from pharmclf.core.compat.ray import draining_nodes, free_resources_by_node
from pharmclf.core.errors import ConfigError, RunError
from pharmclf.core.signals import StopRequested
from pharmclf.distributed.scaling_policy import ClusterNode, WorkerGroupSpec, format_capacity, plan_worker_group

_POLL_INTERVAL_S = 1.0
_NOTE_INTERVAL_S = 30.0
_ANSWER_TIMEOUT_S = 2.0  # for a raylet to take a connection


class NodesUnavailableError(RunError):
    """The nodes that a run needs did not come in time."""


def usable_nodes() -> list[ClusterNode]:
    """The nodes that live, answer, and are not about to be taken away."""
    return partition_reachable()[0]


def partition_reachable() -> tuple[list[ClusterNode], list[ClusterNode]]:
    """The nodes that Ray takes for living and that are not about to be taken away: those that answer, and the others.

    Ray needs some ten seconds to notice that a node is gone; whether its raylet takes a connection is known at once.
    """
    leaving = draining_nodes()
    found = [
        ClusterNode(
            id=entry["NodeID"],
            address=entry["NodeManagerAddress"],
            port=entry["NodeManagerPort"],
            cpus=entry["Resources"].get("CPU", 0.0),
            gpus=entry["Resources"].get("GPU", 0.0),
        )
        for entry in ray.nodes()
        if entry["Alive"] and entry["NodeID"] not in leaving
    ]
    if len(found) < 2:
        return found, []
    with ThreadPoolExecutor(min(32, len(found))) as pool:
        answers = list(pool.map(_is_reachable, found))
    usable = [node for node, answered in zip(found, answers, strict=True) if answered]
    return usable, [node for node, answered in zip(found, answers, strict=True) if not answered]


def _is_reachable(node: ClusterNode) -> bool:
    try:
        with socket.create_connection((node.address, node.port), timeout=_ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False


def count_free_slots(size: int, team: WorkerGroupSpec, nodes: Collection[str]) -> int:
    """Places for further workers, up to `size`, that nobody holds on nodes that this run does not use.

    Args:
        size: most places that are asked for.
        team: that trains now.
        nodes: ids of those that it uses.
    """
    free = free_resources_by_node()
    places = 0
    for node in usable_nodes():
        left = free.get(node.id, {})
        if team.each.gpus:
            places += int(min(left.get("GPU", 0.0) / team.each.gpus, left.get("CPU", 0.0) / team.each.cpus))
        elif node.id not in nodes and left.get("CPU", 0.0) >= 1:
            places += 1
    return min(size, places)


@contextlib.contextmanager
def request_autoscaling(config: RunConfig) -> Iterator[None]:
    """Within, the cluster's autoscaler, where there is one, is asked for nodes for all workers."""
    high = config.worker_range[1]
    bundle = {"CPU": 1.0} | ({"GPU": 1.0} if config.accelerator == "gpu" or _has_gpus(config) else {})
    request_resources(bundles=[bundle] * high)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone
            request_resources(bundles=[])


def node_address() -> str:
    """Address of this node."""
    return str(ray.util.get_node_ip_address())


def device_kind() -> str:
    """GPU where the cluster has one, else CPU."""
    return "GPU" if ray.cluster_resources().get("GPU", 0.0) > 0 else "CPU"


def _has_gpus(config: RunConfig) -> bool:
    return config.accelerator == "auto" and ray.cluster_resources().get("GPU", 0.0) > 0


def wait_for_capacity(
    config: RunConfig,
    share: float,
    *,
    at_most: int,
    patience_s: float,
    say: Callable[[str], None],
    stop_requested: Callable[[], bool],
) -> WorkerGroupSpec:
    """Wait until the cluster has room for the fewest workers -> those it has room for.

    Args:
        config: of the run.
        share: of the cluster that it may use, 0..1.
        at_most: workers, no fewer than the fewest of the run.
        patience_s: seconds to wait.
        say: takes lines for the console.
        stop_requested: whether to give up.

    Raises:
        ConfigError: there is no room, and waiting was not wanted.
        NodesUnavailableError: there was none all the time.
        StopRequested: a stop was requested.
    """
    low = config.worker_range[0]
    began = said = time.monotonic()
    while not stop_requested():
        nodes = usable_nodes()
        try:
            return plan_worker_group(nodes, low, at_most, config.accelerator, share)
        except ConfigError as error:
            waited = time.monotonic() - began
            if patience_s <= 0:
                raise
            if waited >= patience_s:
                raise NodesUnavailableError(
                    f"no room for the workers within --wait-for-nodes {config.wait_for_nodes}: asked for {low}, "
                    f"there are {format_capacity(nodes)}. {error}"
                ) from error
            if said == began or time.monotonic() - said > _NOTE_INTERVAL_S:
                said = time.monotonic()
                left = f"{patience_s - waited:.0f} s more"
                say(f"waiting for nodes, {left}: {low} workers asked for, there are {format_capacity(nodes)}")
        time.sleep(_POLL_INTERVAL_S)
    raise StopRequested
