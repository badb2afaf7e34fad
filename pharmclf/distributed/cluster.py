"""Joins a Ray cluster or starts one; finds usable nodes, and waits for missing ones."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import ray
from ray.autoscaler.sdk import request_resources

import pharmclf
from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.config.parsing import AUTO
from pharmclf.core.compat.ray import (
    draining_nodes,
    free_resources_by_node,
    local_cluster_address,
    mute_token_notice,
    preserve_signal_handlers,
    start_ray,
    submitted_runtime_env,
)
from pharmclf.core.console import show_activity
from pharmclf.core.errors import ConfigError, RunError
from pharmclf.core.events import RunCallback, Waiting
from pharmclf.core.signals import StopRequested
from pharmclf.core.usual_times import START_RAY_S
from pharmclf.data.decoded_image import MAX_PIXELS_VARIABLE
from pharmclf.distributed.cluster_auth import require_cluster_auth
from pharmclf.distributed.ray_address import (
    FIND_LOCAL,
    VARIABLE,
    check_address,
    cluster_not_found_error,
    requested_address,
)
from pharmclf.distributed.scaling_policy import (
    ClusterNode,
    WorkerGroupSpec,
    choose_workers,
    format_capacity,
    local_node,
    plan_worker_group,
)
from pharmclf.models.devices import MEMORY_VARIABLE, count_local_gpus, is_tensorflow_in_use
from pharmclf.monitoring.cores import ray_cpus
from pharmclf.training.proxy import reach_directly

WORKER_ENVIRONMENT = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the default of later versions of Ray; avoids a warning
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # detects the end of the workers sooner
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",  # the resources were free before; others may hold them now
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # it would keep the workers until the node is lost
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}
"""Variables of Ray, Ray Train and TensorFlow in the driver and its workers; `connect` sets those that are not set."""
_POLL_INTERVAL_S = 1.0
_NOTE_INTERVAL_S = 30.0
_ANSWER_TIMEOUT_S = 2.0  # for a raylet to accept a connection


_is_own_ray = False
"""Whether this process has started the Ray that it uses, so that no node joins it."""


class NodesUnavailableError(RunError):
    """The nodes that a run needs did not join in time."""


def connect(*, allow_open: bool = False) -> None:
    """Join the cluster of RAY_ADDRESS, as in a submitted job, or start Ray on this machine.

    Raises:
        ConfigError: the cluster has no authentication, or none answers at RAY_ADDRESS.
    """
    global _is_own_ray
    for name, value in WORKER_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if ray.is_initialized():
        return
    # Ray refuses variables of the submission, and would print both values, secrets included
    submitted = submitted_runtime_env()
    names = (*WORKER_ENVIRONMENT, MEMORY_VARIABLE, MAX_PIXELS_VARIABLE, "KERAS_BACKEND")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    variables |= storage.environment()
    variables = {name: value for name, value in variables.items() if name not in submitted.get("env_vars", {})}
    address = requested_address()
    _is_own_ray = not address
    local = {"include_dashboard": False, "num_cpus": ray_cpus(), "address": "local"} if _is_own_ray else {}
    if not _is_own_ray:
        _check_answer(address)
    reach_directly([node_address()])
    mute_token_notice()
    with preserve_signal_handlers():
        text = "starting Ray" if _is_own_ray else "joining the Ray cluster"
        try:
            with show_activity(text, START_RAY_S if _is_own_ray else 0.0):
                context = start_ray(
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    configure_logging=False,
                    runtime_env={"env_vars": variables} | ({} if _is_own_ray else _package_for(submitted)),
                    **local,
                )
        except ConnectionError as error:
            if _is_own_ray:
                raise
            raise ConfigError(
                f"{VARIABLE}: received {address!r}, which answers but refuses to be joined: {error}. Give its token "
                f"(RAY_AUTH_MODE=token, ~/.ray/auth_token), or `unset {VARIABLE}` to start Ray on this machine alone"
            ) from error
    atexit.register(show_activity, "stopping Ray" if _is_own_ray else "leaving the Ray cluster")  # before Ray's own
    if not _is_own_ray:
        reach_directly(node["NodeManagerAddress"] for node in ray.nodes())
        try:
            require_cluster_auth(context.address_info, allow_open)
        except BaseException:
            ray.shutdown()
            raise


def _package_for(submitted: Mapping[str, object]) -> dict[str, list[str]]:
    """The part of a runtime environment that uploads this package, so that nodes need its dependencies alone.

    Args:
        submitted: runtime environment of the job; code that it has goes before.
    """
    if submitted.keys() & {"working_dir", "py_modules"}:
        return {}
    return {"py_modules": [str(Path(pharmclf.__file__).parent)]}


def _check_answer(address: str) -> None:
    """Check that a cluster answers at RAY_ADDRESS.

    Raises:
        ConfigError: none answers.
    """
    found = ""
    if address == FIND_LOCAL:
        try:
            found = local_cluster_address()
        except ConnectionError as error:
            raise cluster_not_found_error() from error
    check_address(address, resolved=found)


def resolve_workers(config: RunConfig) -> tuple[RunConfig, str]:
    """As `choose_workers`, with the nodes of the cluster, which is joined where there is one, or with this machine.

    Raises:
        ConfigError: as `connect`.
    """
    if config.num_workers != AUTO:
        return config, ""
    if on_cluster := bool(requested_address()) or (ray.is_initialized() and not _is_own_ray):
        connect(allow_open=config.allow_unauthenticated_cluster)
        nodes = usable_nodes()
    else:
        nodes = [local_node(count_local_gpus())]
    return choose_workers(config, nodes, on_cluster=on_cluster, uses_tensorflow=is_tensorflow_in_use())


def usable_nodes() -> list[ClusterNode]:
    """The nodes that are alive, answer, and are not draining."""
    return partition_reachable()[0]


def partition_reachable() -> tuple[list[ClusterNode], list[ClusterNode]]:
    """The nodes that are alive for Ray and not draining: those that answer, and the others.

    Ray needs some ten seconds to notice that a node is lost; a connection to its raylet fails at once.
    """
    draining = draining_nodes()
    nodes = [
        ClusterNode(
            id=entry["NodeID"],
            address=entry["NodeManagerAddress"],
            port=entry["NodeManagerPort"],
            cpus=entry["Resources"].get("CPU", 0.0),
            gpus=entry["Resources"].get("GPU", 0.0),
        )
        for entry in ray.nodes()
        if entry["Alive"] and entry["NodeID"] not in draining
    ]
    if len(nodes) < 2:
        return nodes, []
    with ThreadPoolExecutor(min(32, len(nodes))) as pool:
        answers = list(pool.map(_is_reachable, nodes))
    usable = [node for node, answered in zip(nodes, answers, strict=True) if answered]
    return usable, [node for node, answered in zip(nodes, answers, strict=True) if not answered]


def _is_reachable(node: ClusterNode) -> bool:
    try:
        with socket.create_connection((node.address, node.port), timeout=_ANSWER_TIMEOUT_S):
            return True
    except OSError:
        return False


def count_free_slots(size: int, group: WorkerGroupSpec, nodes: Collection[str]) -> int:
    """Count the free slots for further workers, up to `size`.

    Args:
        nodes: ids of the nodes of the current workers.
    """
    free = free_resources_by_node()
    slots = 0
    for node in usable_nodes():
        left = free.get(node.id, {})
        if group.each.gpus:
            slots += int(min(left.get("GPU", 0.0) / group.each.gpus, left.get("CPU", 0.0) / group.each.cpus))
        elif node.id not in nodes and left.get("CPU", 0.0) >= 1:
            slots += 1
    return min(size, slots)


@contextlib.contextmanager
def autoscaling_request(config: RunConfig) -> Iterator[None]:
    """Ask the autoscaler of the cluster, if it has one, for the nodes of all workers inside the block."""
    high = config.worker_range[1]
    if _is_own_ray or high == 0:
        yield
        return
    needs_gpus = config.accelerator == "gpu" or (config.accelerator == "auto" and device_kind() == "GPU")
    request_resources(bundles=[{"CPU": 1.0} | ({"GPU": 1.0} if needs_gpus else {})] * high)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the cluster may be gone
            request_resources(bundles=[])


def node_address() -> str:
    """IP address of this node."""
    return str(ray.util.get_node_ip_address())


def device_kind() -> str:
    """GPU where the cluster has one, else CPU."""
    return "GPU" if ray.cluster_resources().get("GPU", 0.0) > 0 else "CPU"


def wait_for_workers(
    config: RunConfig, callback: RunCallback, share: float = 1.0, max_workers: int | None = None
) -> WorkerGroupSpec:
    """Wait until the cluster has room for the minimum number of workers -> the workers that it has room for.

    Args:
        callback: gets what is missing as `Waiting`; may stop the wait.
        share: of the cluster that the run may use, 0..1.
        max_workers: at least the minimum of the run; None: the maximum of the run.

    Raises:
        ConfigError: there is no room, and no node can join this Ray.
        NodesUnavailableError: there was none until the timeout.
        StopRequested: a stop was requested.
    """
    low, high = config.worker_range
    timeout_s = 0.0 if _is_own_ray else config.node_timeout_s
    started = noted = time.monotonic()
    while not callback.should_stop():
        nodes = usable_nodes()
        try:
            return plan_worker_group(
                nodes, low, high if max_workers is None else max_workers, config.accelerator, share
            )
        except ConfigError as error:
            now = time.monotonic()
            if timeout_s <= 0:
                raise
            if now - started >= timeout_s:
                raise NodesUnavailableError(
                    f"no room for the workers within --node-timeout {config.node_timeout}: requested {low}, "
                    f"available {format_capacity(nodes)}. {error}"
                ) from error
            if noted == started or now - noted > _NOTE_INTERVAL_S:
                noted = now
                left = f"{timeout_s - (now - started):.0f} s more"
                text = f"waiting for nodes, {left}: {low} workers requested, available {format_capacity(nodes)}"
                callback.on_event(Waiting(text=text))
        time.sleep(_POLL_INTERVAL_S)
    raise StopRequested
