"""The whole examination, on this machine or on every node of a cluster; each section is shown when it is known."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pharmclf import storage
from pharmclf.config import DEMO, RunConfig
from pharmclf.core.errors import ConfigError, single_line
from pharmclf.core.timeouts import CallTimeoutError, run_with_timeout
from pharmclf.diagnostics.allreduce_check import check_allreduce, probe_allreduce
from pharmclf.diagnostics.clock_skew import check_clock_skew
from pharmclf.diagnostics.image_check import sample_locations
from pharmclf.diagnostics.network_check import check_network
from pharmclf.diagnostics.node_check import (
    FULL_CHECK_TIMEOUT_S,
    STORAGE_TIMEOUT_S,
    NodeRequest,
    check_node,
    inspect_node,
)
from pharmclf.diagnostics.package_check import LACKS_PACKAGE, check_packages, inspect_packages
from pharmclf.diagnostics.results import Finding, Section, fail, ok, warn
from pharmclf.diagnostics.storage_check import (
    BULK_BYTES,
    StorageInfo,
    check_storage_access,
    probe_storage,
    write_heartbeat_file,
)
from pharmclf.distributed.ray_address import FIND_LOCAL, check_address, requested_address
from pharmclf.distributed.scaling_policy import ClusterNode, WorkerGroupSpec, format_capacity, plan_worker_group
from pharmclf.monitoring.cores import ray_cpus

if TYPE_CHECKING:
    from pharmclf.diagnostics.cluster_check import ClusterNodes

Show = Callable[[Section], None]
_LISTING_S = 60.0
_WORKERS = "workers"


def run_diagnostics(config: RunConfig, show: Show) -> list[Section]:
    """Examine all that a run needs.

    Args:
        config: the run.
        show: takes each section as soon as it is known.

    Returns:
        All sections.
    """
    data = config.data if config.data == DEMO else storage.absolute(config.data).rstrip("/")
    config = dataclasses.replace(config, data=data, storage=storage.absolute(config.storage))
    sections: list[Section] = []
    parts = _check_cluster if requested_address() else _check_this_machine
    for section in parts(config):
        sections.append(section)
        show(section)
    return sections


def _check_this_machine(config: RunConfig) -> Iterator[Section]:
    images, trouble = _sample_images(config)
    request = NodeRequest(config=config, whole=True, images=images)
    facts = inspect_node(request)
    findings = [*check_node(facts, request, None), *trouble]
    yield Section(title=f"this machine ({socket.gethostname()})", findings=tuple(findings), facts=_to_dict(facts))
    gpus = len(facts.tensorflow.gpus) if facts.tensorflow else 0
    node = ClusterNode("", "127.0.0.1", 0, float(ray_cpus()), float(gpus))  # as a run starts Ray
    room = check_resources(config, [node], waits=False)
    if config.worker_range[1] < 2:
        text = "not tried: one worker exchanges nothing; --workers 2 tries it"
        yield Section(title=_WORKERS, findings=(room, ok("all-reduce", text)))
        return
    if room.level != "OK":
        yield Section(title=_WORKERS, findings=(room,))
        return
    from pharmclf.diagnostics.cluster_check import connected_cluster  # Ray is wanted here alone

    with connected_cluster() as error:
        exchange = _connection_failure(error) if error else _check_allreduce(config, [node], [])
        yield Section(title=_WORKERS, findings=(room, exchange))


def _check_cluster(config: RunConfig) -> Iterator[Section]:
    address = requested_address()
    images, trouble = _sample_images(config)
    facts, findings = _check_local_storage(config)
    title = f"the driver ({socket.gethostname()})"
    own = inspect_packages()
    yield Section(
        title=title, findings=(*findings, *trouble), facts={"storage": _to_dict(facts), "packages": _to_dict(own)}
    )
    if error := _unreachable_reason(address):
        yield Section(title=f"cluster {address}", findings=(_connection_failure(error),))
        return
    from pharmclf.diagnostics.cluster_check import ClusterNodes, connected_cluster  # Ray is wanted here alone

    with connected_cluster() as error:
        if error:
            yield Section(title=f"cluster {address}", findings=(_connection_failure(error),))
            return
        written = facts is not None and not facts.failed
        with (
            ClusterNodes() as nodes,
            write_heartbeat_file(config.storage) if written else contextlib.nullcontext("") as beacon,
        ):
            request = NodeRequest(config=config, whole=True, images=images, beacon=beacon)
            same: list[ClusterNode] = []
            yield from _check_each_node(nodes, request, same)
            yield Section(title="cluster", findings=tuple(_compare_nodes(config, nodes, same)))


def _check_each_node(nodes: ClusterNodes, request: NodeRequest, same: list[ClusterNode]) -> Iterator[Section]:
    """The sections of all nodes; those that have the driver's code are put into `same`."""
    own, first = inspect_packages(), dict[str, list[Finding]]()
    remedy = "see the logs of its raylet and `ray list nodes`; all TCP ports between the nodes must be open"
    for node in nodes.silent:
        text = "Ray takes it for living, and it takes no connection"
        yield Section(title=f"node {node.address}", findings=(fail("node", text, remedy),))
    for node, answer in nodes.packages():
        if answer.error:
            finding = fail("node", f"no examination: {answer.error}", LACKS_PACKAGE if answer.lacks_package else remedy)
            yield Section(title=f"node {node.address}", findings=(finding,))
            continue
        finding = check_packages(own, answer.value)
        if answer.value.code != own.code:
            yield Section(title=f"node {node.address}", findings=(finding,), facts={"packages": _to_dict(answer.value)})
            continue
        same.append(node)
        offset_s = nodes.clock_offset_s(node)
        first[node.id] = [finding, *([check_clock_skew(offset_s, "the driver")] if offset_s is not None else [])]
    for node, answer in nodes.inspect(same, request, FULL_CHECK_TIMEOUT_S):
        view = nodes.ray_info(node)
        found = (
            [fail("node", f"no examination: {answer.error}", remedy)]
            if answer.error
            else check_node(answer.value, request, view)
        )
        facts = {"ray": _to_dict(view), **(_to_dict(answer.value) if answer.value else {})}
        yield Section(title=f"node {node.address}", findings=(*first[node.id], *found), facts=facts)


def _compare_nodes(config: RunConfig, nodes: ClusterNodes, same: Sequence[ClusterNode]) -> list[Finding]:
    """What concerns the nodes together."""
    room = check_resources(config, nodes.nodes, waits=config.wait_for_nodes_s > 0)
    found = [_check_open_ports(nodes.open_ports(same), config.allow_open_cluster), room]
    network = check_network(nodes.check_connections(same)) if len(same) > 1 else None
    found += [network] if network else []
    training = [node for node in same if node.cpus >= 1]
    if config.worker_range[1] < 2 and len(training) < 2:
        text = "not tried: one worker exchanges nothing; --workers 2 tries it"
        return [*found, ok("all-reduce", text)]
    if network is not None and network.level == "FAIL":
        remedy = "open the ports first"
        return [*found, warn("all-reduce", "not tried: the nodes do not reach each other", remedy)]
    others = [node.id for node in (*nodes.nodes, *nodes.silent) if node not in same]
    return [*found, _check_allreduce(config, same, others)]


def _check_allreduce(config: RunConfig, nodes: Sequence[ClusterNode], avoided: Sequence[str]) -> Finding:
    """Two workers on these nodes."""
    try:
        team: WorkerGroupSpec = plan_worker_group(nodes, 2, 2, config.accelerator)
    except ConfigError as error:
        return warn("all-reduce", f"not tried: {error}", "give two workers room")
    return check_allreduce(probe_allreduce(team, avoided, gpus=team.each.gpus > 0))


def check_resources(config: RunConfig, nodes: Sequence[ClusterNode], *, waits: bool) -> Finding:
    """Whether the workers of a run find their places; pure.

    Args:
        config: the run.
        nodes: that can be used.
        waits: nodes that are missing may come.
    """
    low, high = config.worker_range
    if high == 0:
        return ok("workers", "none: the run trains in its own process")
    try:
        team = plan_worker_group(nodes, low, high, config.accelerator)
    except ConfigError as error:
        if waits:
            remedy = f"add nodes; a run waits for them --wait-for-nodes {config.wait_for_nodes}, and then ends"
            return warn("workers", str(error), remedy)
        return fail("workers", str(error), "give fewer --workers, or a larger machine")
    each = f"{team.each.cpus:g} CPUs and {team.each.gpus:g} GPUs"
    return ok(
        "workers", f"{team.size} of {config.workers} asked for, with {each} each; there are {format_capacity(nodes)}"
    )


def _check_open_ports(doors: dict[str, str], allowed: bool) -> Finding:
    if not doors:
        return ok("access", "no node takes jobs from strangers")
    text = f"on {', '.join(doors)}: {next(iter(doors.values()))}"
    if allowed:
        return warn("access", f"{text} (allowed by --allow-open-cluster)", "start Ray with RAY_AUTH_MODE=token")
    return fail("access", text, "start Ray with RAY_AUTH_MODE=token and one token on all nodes")


def _sample_images(config: RunConfig) -> tuple[tuple[str, ...], list[Finding]]:
    """Some images, and what is wrong with finding them."""
    try:
        with storage.timeout(STORAGE_TIMEOUT_S):
            return tuple(run_with_timeout(_LISTING_S, lambda: sample_locations(config))), []
    except CallTimeoutError as error:
        remedy = "a mount whose server is gone must be mounted anew; a list in Parquet spares the listing"
        return (), [fail("data", f"{config.data}: listing it: {error}", remedy)]
    except (ConfigError, OSError) as error:
        return (), [fail("data", single_line(error), "correct --data, or its rights")]


def _check_local_storage(config: RunConfig) -> tuple[StorageInfo | None, list[Finding]]:
    """The storage as the driver reaches it."""
    try:
        with storage.timeout(STORAGE_TIMEOUT_S):
            facts = run_with_timeout(
                2 * STORAGE_TIMEOUT_S, lambda: probe_storage(config.storage, bulk_bytes=BULK_BYTES)
            )
        return facts, check_storage_access(facts)
    except CallTimeoutError as error:
        remedy = "a mount whose server is gone must be mounted anew"
        return None, [fail("storage", f"{config.storage}: {error}", remedy)]


def _unreachable_reason(address: str) -> str:
    """Why no cluster answers at an address; "" where one does, or Ray looks for it."""
    try:
        if address != FIND_LOCAL:
            check_address(address)
    except ConfigError as error:
        return str(error)
    return ""


def _connection_failure(error: str) -> Finding:
    remedy = "see `ray status` on the head, RAY_ADDRESS here, and with RAY_AUTH_MODE=token the token's file"
    return fail("ray", f"no connection: {error}", remedy)


def _to_dict(facts: Any) -> dict[str, Any]:
    return dataclasses.asdict(facts) if facts is not None else {}
