"""All checks of the doctor, on this machine or on every node of a cluster; each section is shown when it is ready."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from pharmclf import storage
from pharmclf.config import DEMO, RunConfig
from pharmclf.core.console import show_activity
from pharmclf.core.errors import ConfigError, single_line
from pharmclf.core.timeouts import CallTimeoutError, run_with_timeout
from pharmclf.core.usual_times import ALLREDUCE_S, EXAMINE_NODES_S
from pharmclf.diagnostics.allreduce_check import check_allreduce, probe_allreduce
from pharmclf.diagnostics.image_check import sample_locations
from pharmclf.diagnostics.network_check import check_network
from pharmclf.diagnostics.node_check import (
    FULL_CHECK_TIMEOUT_S,
    STORAGE_TIMEOUT_S,
    NodeRequest,
    check_node,
    inspect_node,
)
from pharmclf.diagnostics.results import Finding, Section, fail, ok, warn
from pharmclf.diagnostics.software_check import inspect_packages
from pharmclf.diagnostics.storage_check import (
    BULK_BYTES,
    StorageInfo,
    check_storage_access,
    probe_storage,
    write_heartbeat_file,
)
from pharmclf.distributed.ray_address import requested_address
from pharmclf.distributed.scaling_policy import (
    ClusterNode,
    choose_workers,
    format_capacity,
    local_node,
    plan_worker_group,
)

if TYPE_CHECKING:
    from pharmclf.diagnostics.cluster_check import ClusterNodes

Show = Callable[[Section], None]
_LISTING_TIMEOUT_S = 60.0
_WORKERS = "workers"
_ONE_WORKER = ok("all-reduce", "not tried: one worker exchanges nothing; --num-workers 2 tries it")
_REMOUNT = "mount again where the server of a mount is gone"


def run_diagnostics(config: RunConfig, show: Show) -> list[Section]:
    """Check all that a run needs -> all sections, each of which is shown as soon as it is ready."""
    data = config.data if config.data == DEMO else storage.absolute(config.data).rstrip("/")
    config = dataclasses.replace(config, data=data, storage=storage.absolute(config.storage))
    sections: list[Section] = []
    for section in (_check_cluster if requested_address() else _check_this_machine)(config):
        sections.append(section)
        show(section)
    return sections


def _check_this_machine(config: RunConfig) -> Iterator[Section]:
    images, data_findings = _sample_images(config)
    request = NodeRequest(config=config, full=True, images=images)
    info = inspect_node(request)
    findings = (*check_node(info, request, None), *data_findings)
    yield Section(title=f"this machine ({socket.gethostname()})", findings=findings, facts=dataclasses.asdict(info))
    gpus = len(info.tensorflow.gpus) if info.tensorflow else 0
    node = local_node(gpus)
    config, choice = choose_workers(config, [node], on_cluster=False)
    resources = check_resources(config, [node], waits=False, choice=choice)
    findings = (resources,)
    if config.worker_range[1] < 2:
        findings = (resources, _ONE_WORKER)
    elif resources.level == "OK":
        from pharmclf.diagnostics.cluster_check import connected_cluster  # imports Ray

        with connected_cluster() as error:
            findings = (resources, _connection_failure(error) if error else _check_allreduce(config, [node], []))
    yield Section(title=_WORKERS, findings=findings)


def _check_cluster(config: RunConfig) -> Iterator[Section]:
    images, data_findings = _sample_images(config)
    storage_info, storage_findings = _check_local_storage(config)
    yield Section(
        title=f"the driver ({socket.gethostname()})",
        findings=(*storage_findings, *data_findings),
        facts={
            "storage": dataclasses.asdict(storage_info) if storage_info else {},
            "packages": dataclasses.asdict(inspect_packages()),
        },
    )
    from pharmclf.diagnostics.cluster_check import ClusterNodes, connected_cluster  # imports Ray

    with connected_cluster() as error:
        if error:
            yield Section(title=f"cluster {requested_address()}", findings=(_connection_failure(error),))
            return
        is_writable = storage_info is not None and not storage_info.failed
        heartbeat = write_heartbeat_file(config.storage) if is_writable else contextlib.nullcontext("")
        with ClusterNodes() as nodes, heartbeat as path, show_activity("examining the nodes", EXAMINE_NODES_S):
            request = NodeRequest(config=config, full=True, images=images, heartbeat_file=path)
            for section, _ in nodes.check(request, timeout_s=FULL_CHECK_TIMEOUT_S):
                yield section
            yield Section(title="cluster", findings=tuple(_check_all_nodes(config, nodes)))


def _check_all_nodes(config: RunConfig, nodes: ClusterNodes) -> Iterator[Finding]:
    same = nodes.same_code
    yield _check_access(nodes.access_errors(), config.allow_unauthenticated_cluster)
    config, choice = choose_workers(config, nodes.nodes, on_cluster=True)
    yield check_resources(config, nodes.nodes, waits=config.node_timeout_s > 0, choice=choice)
    if len(same) > 1:
        network = check_network(nodes.check_connections(same))
        yield network
        if network.level == "FAIL" and _may_have_two_workers(config, same):
            yield warn("all-reduce", "not tried: the nodes do not reach each other", "open the ports first")
            return
    if not _may_have_two_workers(config, same):
        yield _ONE_WORKER
        return
    avoided = [node.id for node in (*nodes.nodes, *nodes.unreachable) if node not in same]
    yield _check_allreduce(config, same, avoided)


def _may_have_two_workers(config: RunConfig, nodes: Sequence[ClusterNode]) -> bool:
    return config.worker_range[1] >= 2 or sum(node.cpus >= 1 for node in nodes) >= 2


def _check_allreduce(config: RunConfig, nodes: Sequence[ClusterNode], avoided: Sequence[str]) -> Finding:
    try:
        spec = plan_worker_group(nodes, 2, 2, config.accelerator)
    except ConfigError as error:
        return warn("all-reduce", f"not tried: {error}", "give two workers room")
    with show_activity("all-reduce of two workers", ALLREDUCE_S):
        return check_allreduce(probe_allreduce(spec, avoided, gpus=spec.each.gpus > 0))


def check_resources(config: RunConfig, nodes: Sequence[ClusterNode], *, waits: bool, choice: str = "") -> Finding:
    """Whether the workers of a run have room; pure.

    Args:
        waits: whether a run waits for missing nodes.
        choice: why it has this number of workers; "": it was given.
    """
    low, high = config.worker_range
    if high == 0:
        return ok(_WORKERS, f"none: {choice.partition(': ')[2] or 'the run trains in its own process'}")
    try:
        spec = plan_worker_group(nodes, low, high, config.accelerator)
    except ConfigError as error:
        if waits:
            remedy = f"add nodes; a run waits --node-timeout {config.node_timeout} for them, and then ends"
            return warn(_WORKERS, str(error), remedy)
        return fail(_WORKERS, str(error), "give fewer --num-workers, or use a larger machine")
    each = f"{spec.each.cpus:g} CPUs and {spec.each.gpus:g} GPUs each"
    return ok(
        _WORKERS, f"room for {spec.size} of {config.num_workers}, with {each}; available: {format_capacity(nodes)}"
    )


def _check_access(errors: dict[str, str], allowed: bool) -> Finding:
    if not errors:
        return ok("access", "no node accepts jobs without authentication")
    text = f"on {', '.join(errors)}: {next(iter(errors.values()))}"
    if allowed:
        return warn(
            "access", f"{text} (allowed by --allow-unauthenticated-cluster)", "start Ray with RAY_AUTH_MODE=token"
        )
    return fail("access", text, "start Ray with RAY_AUTH_MODE=token and one token on all nodes")


def _sample_images(config: RunConfig) -> tuple[tuple[str, ...], list[Finding]]:
    """Locations of some images, and why there are none."""
    try:
        with storage.timeout(STORAGE_TIMEOUT_S), show_activity("listing the images"):
            return tuple(run_with_timeout(_LISTING_TIMEOUT_S, lambda: sample_locations(config))), []
    except CallTimeoutError as error:
        remedy = f"{_REMOUNT}; give --data a list in Parquet, which needs no listing"
        return (), [fail("data", f"{config.data}: listing: {error}", remedy)]
    except (ConfigError, OSError) as error:
        return (), [fail("data", single_line(error), "correct --data, or its rights")]


def _check_local_storage(config: RunConfig) -> tuple[StorageInfo | None, list[Finding]]:
    try:
        with storage.timeout(STORAGE_TIMEOUT_S):
            info = run_with_timeout(2 * STORAGE_TIMEOUT_S, lambda: probe_storage(config.storage, bulk_bytes=BULK_BYTES))
        return info, check_storage_access(info)
    except CallTimeoutError as error:
        return None, [fail("storage", f"{config.storage}: {error}", _REMOUNT)]


def _connection_failure(error: str) -> Finding:
    remedy = "see `ray status` on the head, RAY_ADDRESS here, and the token's file where RAY_AUTH_MODE=token"
    return fail("ray", f"no connection: {error}", remedy)
