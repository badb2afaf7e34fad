"""The examination on every node of a Ray cluster: an actor on each, which is asked, and ended."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pharmclf.core.errors import ConfigError, first_line, format_error
from pharmclf.diagnostics.clock_skew import min_clock_offset_s
from pharmclf.diagnostics.machine_check import RayNodeInfo
from pharmclf.diagnostics.network_check import WORKERS, Endpoint, PortListener, try_connect
from pharmclf.diagnostics.node_check import NodeInfo, NodeRequest, inspect_node
from pharmclf.diagnostics.package_check import Packages, inspect_packages
from pharmclf.distributed.cluster import connect, partition_reachable
from pharmclf.distributed.cluster_auth import require_cluster_auth
from pharmclf.distributed.scaling_policy import ClusterNode

_START_TIMEOUT_S = 60.0  # for a process of Ray's on a node; measured: up to 20 s on two busy cores
_PINGS = 3
_PING_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 60.0


@contextlib.contextmanager
def connected_cluster() -> Iterator[str]:
    """Within, this process has joined Ray, whoever may use it -> why it could not, or ""."""
    before, error = ray.is_initialized(), ""
    try:
        connect(allow_open=True)  # who may use it is a finding of its own
    except Exception as failure:
        error = format_error(failure)
    try:
        yield error
    finally:
        if not before:
            ray.shutdown()


class NodeProbe:
    """Lives on a node."""

    def __init__(self) -> None:
        self._listener: PortListener | None = None

    def packages(self) -> dict[str, Any]:
        """The programs of this node, as plain values: its code may be another."""
        return dataclasses.asdict(inspect_packages())

    def now(self) -> float:
        """This node's clock."""
        return time.time()

    def inspect(self, request: NodeRequest) -> NodeInfo:
        """All checks of this node."""
        return inspect_node(request, _ray_context()["session_dir"])

    def open_port_reason(self) -> str:
        """Why this node's doors for jobs are a danger, "" where they are none."""
        try:
            require_cluster_auth(_ray_context(), allow=False)
        except ConfigError as error:
            return str(error)
        return ""

    def listen(self, address: str) -> int:
        """Open a port for the others to knock at."""
        self._listener = self._listener or PortListener(address)
        return self._listener.port

    def try_connect(self, doors: Sequence[Endpoint]) -> list[str]:
        """Knock at the ports of others."""
        return try_connect(doors)


def _ray_context() -> dict[str, Any]:
    """What this process's Ray says of itself."""
    return ray.init(ignore_reinit_error=True).address_info


@dataclass(frozen=True)
class NodeResponse:
    """What came of asking a node: a value, or why there is none."""

    value: Any = None
    error: str = ""

    @property
    def lacks_package(self) -> bool:
        """Whether the node could not import what it was asked for."""
        return "ModuleNotFoundError" in self.error or "ImportError" in self.error


class ClusterNodes:
    """The nodes of the cluster that this process has joined, as a context."""

    def __init__(self) -> None:
        """Look which there are."""
        self.nodes, self.silent = partition_reachable()
        """Those that answer, and those that Ray takes for living although they do not."""
        self._entries = {entry["NodeID"]: entry for entry in ray.nodes()}
        self._actors: dict[str, Any] = {}

    def __enter__(self) -> ClusterNodes:
        for node in self.nodes:
            here = NodeAffinitySchedulingStrategy(node.id, soft=False)
            options = {"num_cpus": 0, "max_concurrency": 4, "scheduling_strategy": here, "max_restarts": 0}
            self._actors[node.id] = ray.remote(NodeProbe).options(**options).remote()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for actor in self._actors.values():
            with contextlib.suppress(Exception):  # the node may be gone
                ray.kill(actor)

    def ray_info(self, node: ClusterNode) -> RayNodeInfo:
        """What Ray takes a node for."""
        resources: Mapping[str, float] = self._entries[node.id]["Resources"]
        return RayNodeInfo(
            cpus=node.cpus,
            gpus=node.gpus,
            memory_bytes=resources.get("memory", 0.0),
            store_bytes=resources.get("object_store_memory", 0.0),
        )

    def packages(self, within_s: float = _START_TIMEOUT_S) -> Iterator[tuple[ClusterNode, NodeResponse]]:
        """The programs of each node, as they come; what does not answer comes last."""
        for node, answer in self._ask("packages", {node.id: () for node in self.nodes}, within_s):
            yield node, NodeResponse(Packages(**answer.value)) if answer.value else answer

    def inspect(
        self, nodes: Sequence[ClusterNode], request: NodeRequest, within_s: float
    ) -> Iterator[tuple[ClusterNode, NodeResponse]]:
        """The facts of nodes, as they come."""
        yield from self._ask("inspect", {node.id: (request,) for node in nodes}, within_s)

    def open_ports(self, nodes: Sequence[ClusterNode]) -> dict[str, str]:
        """Why the doors of nodes for jobs are a danger, by address, where they are."""
        answers = self._ask("open_port_reason", {node.id: () for node in nodes}, _CONNECT_TIMEOUT_S)
        return {node.address: answer.value for node, answer in answers if answer.value}

    def clock_offset_s(self, node: ClusterNode) -> float | None:
        """What the clock of a node is ahead of this one's at least; None where it does not answer."""
        found: list[float] = []
        for _ in range(_PINGS):
            began = time.time()
            try:
                seen = ray.get(self._actors[node.id].now.remote(), timeout=_PING_TIMEOUT_S)
            except Exception:  # the node may be gone
                break
            found.append(min_clock_offset_s(began, time.time(), seen))
        return max(found, key=abs, default=None)  # each is the least that it can be

    def check_connections(self, nodes: Sequence[ClusterNode]) -> dict[str, list[tuple[Endpoint, str]]]:
        """Let every node knock at all others -> for each, by its address, the doors and what came of it."""
        ports = {
            node.id: answer.value
            for node, answer in self._ask("listen", {node.id: (node.address,) for node in nodes}, _CONNECT_TIMEOUT_S)
            if answer.value
        }
        doors = {node.id: self._endpoints(node, ports.get(node.id)) for node in nodes}
        wanted = {one.id: [door for other in nodes if other.id != one.id for door in doors[other.id]] for one in nodes}
        answers = self._ask("try_connect", {node: (found,) for node, found in wanted.items()}, _CONNECT_TIMEOUT_S)
        return {
            node.address: list(zip(wanted[node.id], answer.value, strict=True))
            for node, answer in answers
            if answer.value is not None
        }

    def _endpoints(self, node: ClusterNode, port: int | None) -> list[Endpoint]:
        entry = self._entries[node.id]
        doors = [Endpoint(address=node.address, port=port, what=WORKERS)] if port else []
        doors.append(Endpoint(address=node.address, port=node.port, what="of Ray's raylet"))
        return [*doors, Endpoint(address=node.address, port=entry["ObjectManagerPort"], what="of Ray's object manager")]

    def _ask(
        self, method: str, arguments: Mapping[str, tuple[Any, ...]], within_s: float
    ) -> Iterator[tuple[ClusterNode, NodeResponse]]:
        """Call a method on nodes at once; answers as they come, then those that did not."""
        known = {node.id: node for node in self.nodes}
        waiting = {getattr(self._actors[id_], method).remote(*own): known[id_] for id_, own in arguments.items()}
        until = time.monotonic() + within_s
        while waiting and (left := until - time.monotonic()) > 0:
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=left)
            for reference in ready:
                yield waiting.pop(reference), _get_response(reference)
        for node in waiting.values():
            yield node, NodeResponse(error=f"no answer within {within_s:.0f} s")


def _get_response(reference: Any) -> NodeResponse:
    try:
        return NodeResponse(ray.get(reference))
    except Exception as error:  # whatever the node's code raises is an answer too
        raised = [line.strip() for line in str(error).splitlines() if "Error:" in line]
        return NodeResponse(error=f"{type(error).__name__}: {raised[-1] if raised else first_line(error)}")
