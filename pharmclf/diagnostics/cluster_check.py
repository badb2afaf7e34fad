"""The checks on every node of a Ray cluster: an actor on each node runs them."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pharmclf.core.errors import ConfigError, first_line, format_error
from pharmclf.diagnostics.machine_check import RayNodeInfo
from pharmclf.diagnostics.network_check import Endpoint, check_clock_skew, min_clock_offset_s, open_port, try_connect
from pharmclf.diagnostics.node_check import NodeInfo, NodeRequest, check_node, inspect_node
from pharmclf.diagnostics.results import Finding, FindingLevel, Section, fail
from pharmclf.diagnostics.software_check import LACKS_PACKAGE, check_packages, inspect_packages
from pharmclf.distributed.cluster import connect, partition_reachable
from pharmclf.distributed.cluster_auth import require_cluster_auth
from pharmclf.distributed.scaling_policy import ClusterNode

T = TypeVar("T")
_START_TIMEOUT_S = 60.0  # for a process of Ray on a node; measured: up to 20 s on two busy cores
_CONNECT_TIMEOUT_S = 60.0
_NUM_CLOCK_READINGS, _CLOCK_TIMEOUT_S = 3, 10.0


@contextlib.contextmanager
def connected_cluster() -> Iterator[str]:
    """Inside the block, this process has joined Ray, even an open cluster -> why it could not, or ""."""
    was_connected, reason = ray.is_initialized(), ""
    try:
        connect(allow_open=True)  # access is a check
    except Exception as error:
        reason = format_error(error)
    try:
        yield reason
    finally:
        if not was_connected:
            ray.shutdown()


class NodeProbe:
    """Calls functions on a node."""

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function of a module."""
        return function(*arguments)


def _inspect_node(request: NodeRequest) -> NodeInfo:
    return inspect_node(request, _ray_context()["session_dir"])


def _ray_context() -> dict[str, Any]:
    """The addresses and folders of this process's Ray."""
    context: dict[str, Any] = ray.init(ignore_reinit_error=True).address_info
    return context


def _access_error() -> str:
    """Why the ports of this node for jobs are a danger; "" where they are none."""
    try:
        require_cluster_auth(_ray_context(), allow=False)
    except ConfigError as error:
        return str(error)
    return ""


def _open_port(address: str) -> int:
    """Open a port that stays open while the actor lives."""
    return int(open_port(address).getsockname()[1])


@dataclass(frozen=True)
class NodeResponse(Generic[T]):
    """The value that a node returned, or why there is none."""

    value: T | None = None
    error: str = ""


class ClusterNodes:
    """The nodes of the cluster that this process has joined, as a context."""

    def __init__(self) -> None:
        """List the nodes."""
        self.nodes, self.unreachable = partition_reachable()
        """Nodes that answer, and nodes that Ray considers alive although they do not."""
        self.same_code: list[ClusterNode] = []
        """Nodes that have the code of the driver, once `check` has run."""
        self._entries: dict[str, dict[str, Any]] = {entry["NodeID"]: entry for entry in ray.nodes()}
        self._actors: dict[str, Any] = {}

    def __enter__(self) -> ClusterNodes:
        for node in self.nodes:
            here = NodeAffinitySchedulingStrategy(node.id, soft=False)
            options = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": here, "max_restarts": 0}
            self._actors[node.id] = ray.remote(NodeProbe).options(**options).remote()
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(Exception):  # the node may be gone
                ray.kill(actor)

    def check(
        self,
        request: NodeRequest,
        *,
        timeout_s: float,
        start_timeout_s: float = _START_TIMEOUT_S,
        unreachable: FindingLevel = "FAIL",
    ) -> Iterator[tuple[Section, NodeInfo | None]]:
        """Run the checks of all nodes -> a section for each, as they come, with the facts where there are some.

        Args:
            timeout_s: seconds for the checks of a node.
            start_timeout_s: seconds before them for the start of its process.
            unreachable: level of the finding of a node that does not answer.
        """

        def section(node: ClusterNode, findings: Sequence[Finding], **facts: Any) -> Section:
            return Section(title=f"node {node.address}", findings=tuple(findings), facts=facts)

        def no_answer(response: NodeResponse[Any]) -> Finding:
            if "ModuleNotFoundError" in response.error or "ImportError" in response.error:
                return fail("node", response.error, LACKS_PACKAGE)
            remedy = "see `ray list nodes` and the logs of its raylet; all TCP ports between the nodes must be open"
            return Finding(check="node", level=unreachable, text=response.error, remedy=remedy)

        for node in self.unreachable:
            error = "Ray considers it alive, but it accepts no connection"
            yield section(node, [no_answer(NodeResponse(error=error))]), None
        driver, first = inspect_packages(), dict[str, list[Finding]]()
        for node, packages in self._call(inspect_packages, {node.id: () for node in self.nodes}, start_timeout_s):
            if packages.value is None:
                yield section(node, [no_answer(packages)]), None
                continue
            first[node.id] = [check_packages(driver, packages.value)]
            if packages.value.code != driver.code:
                yield section(node, first[node.id], packages=dataclasses.asdict(packages.value)), None
                continue
            self.same_code.append(node)
            if (offset_s := self.clock_offset_s(node)) is not None:
                first[node.id].append(check_clock_skew(-offset_s, "the driver"))
        arguments = {node.id: (request,) for node in self.same_code}
        for node, response in self._call(_inspect_node, arguments, timeout_s):
            info, ray_info = response.value, self.ray_info(node)
            findings = [no_answer(response)] if info is None else check_node(info, request, ray_info)
            facts = dataclasses.asdict(info) if info is not None else {}
            yield section(node, first[node.id] + findings, ray=dataclasses.asdict(ray_info), **facts), info

    def ray_info(self, node: ClusterNode) -> RayNodeInfo:
        """The resources that Ray counts on a node."""
        resources: Mapping[str, float] = self._entries[node.id]["Resources"]
        return RayNodeInfo(
            cpus=node.cpus,
            gpus=node.gpus,
            memory_bytes=resources.get("memory", 0.0),
            store_bytes=resources.get("object_store_memory", 0.0),
        )

    def access_errors(self) -> dict[str, str]:
        """By address, why the ports of nodes for jobs are a danger, where they are."""
        answers = self._call(_access_error, {node.id: () for node in self.same_code}, _CONNECT_TIMEOUT_S)
        return {node.address: response.value for node, response in answers if response.value}

    def clock_offset_s(self, node: ClusterNode) -> float | None:
        """The least offset of a node's clock from this one; None where it does not answer."""
        offsets: list[float] = []
        for _ in range(_NUM_CLOCK_READINGS):
            began = time.time()
            try:
                seen = ray.get(self._actors[node.id].call.remote(time.time), timeout=_CLOCK_TIMEOUT_S)
            except Exception:  # the node may be gone
                break
            offsets.append(min_clock_offset_s(began, time.time(), seen))
        return max(offsets, key=abs, default=None)  # each is a lower bound

    def check_connections(self, nodes: Sequence[ClusterNode]) -> dict[str, list[tuple[Endpoint, str]]]:
        """Let every node connect to all others -> by its address, the endpoints and the results."""
        opened = self._call(_open_port, {node.id: (node.address,) for node in nodes}, _CONNECT_TIMEOUT_S)
        ports = {node.id: response.value for node, response in opened}
        endpoints = {node.id: list(self._endpoints(node, ports[node.id])) for node in nodes}
        others = {
            node.id: [endpoint for other in nodes if other.id != node.id for endpoint in endpoints[other.id]]
            for node in nodes
        }
        answers = self._call(try_connect, {id_: (found,) for id_, found in others.items()}, _CONNECT_TIMEOUT_S)
        return {
            node.address: list(zip(others[node.id], response.value, strict=True))
            for node, response in answers
            if response.value is not None
        }

    def _endpoints(self, node: ClusterNode, worker_port: int | None) -> Iterator[Endpoint]:
        object_manager = self._entries[node.id]["ObjectManagerPort"]
        if worker_port:
            yield Endpoint(address=node.address, port=worker_port, what="of a worker")
        yield Endpoint(address=node.address, port=node.port, what="of Ray's raylet")
        yield Endpoint(address=node.address, port=object_manager, what="of Ray's object manager")

    def _call(
        self, function: Callable[..., T], arguments: Mapping[str, tuple[object, ...]], timeout_s: float
    ) -> Iterator[tuple[ClusterNode, NodeResponse[T]]]:
        """Call a function on nodes at the same time -> responses as they come, then of the nodes without one."""
        nodes = {node.id: node for node in self.nodes}
        waiting = {self._actors[id_].call.remote(function, *values): nodes[id_] for id_, values in arguments.items()}
        until = time.monotonic() + timeout_s
        while waiting and (left_s := until - time.monotonic()) > 0:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=left_s)
            for reference in ready:
                yield waiting.pop(reference), _response(reference)
        for node in waiting.values():
            yield node, NodeResponse(error=f"no answer within {timeout_s:.0f} s")


def _response(reference: Any) -> NodeResponse[Any]:
    try:
        return NodeResponse(ray.get(reference))
    except Exception as error:  # whatever the code of the node raises
        lines = [line.strip() for line in str(error).splitlines() if "Error:" in line]
        return NodeResponse(error=f"{type(error).__name__}: {lines[-1] if lines else first_line(error)}")
