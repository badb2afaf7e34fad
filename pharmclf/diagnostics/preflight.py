"""The short checks before a run: those that cost no time, on this machine or on every node of the cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.errors import ConfigError, RunError
from pharmclf.core.units import format_count
from pharmclf.diagnostics.clock_skew import check_clock_skew
from pharmclf.diagnostics.node_check import STORAGE_TIMEOUT_S, NodeInfo, NodeRequest, check_node, inspect_node
from pharmclf.diagnostics.package_check import LACKS_PACKAGE, check_packages, inspect_packages
from pharmclf.diagnostics.results import Finding, Section, fail, findings_of_level, warn
from pharmclf.diagnostics.storage_check import StorageFailureKind, write_heartbeat_file
from pharmclf.distributed.ray_address import requested_address
from pharmclf.distributed.scaling_policy import ClusterNode, plan_worker_group
from pharmclf.monitoring.cores import ray_cpus, usable_cores

if TYPE_CHECKING:
    from pharmclf.diagnostics.cluster_check import NodeResponse

_ANSWER_TIMEOUT_S = 45.0  # for a node, its process started
_BAD_INPUT: tuple[StorageFailureKind | None, ...] = (
    "no credentials", "wrong credentials", "no bucket", "no rights", "read-only", "another region", "another place",
)  # fmt: skip


class PreflightError(RunError):
    """A machine or the storage is in a state in which a run would fail."""


def run_preflight(config: RunConfig, say: Callable[[str], None]) -> None:
    """See whether a run can write its storage and its disks, and whether all nodes have the same programs and time.

    A cluster, where RAY_ADDRESS names one, is joined for it. Warnings are said; nothing is said where all is well.

    Args:
        config: the run.
        say: takes lines for the console.

    Raises:
        ConfigError: the storage cannot be used as it is given, the cluster may not be joined, or this machine has no
            room for the workers.
        PreflightError: something else would make the run fail; further reasons have been said.
    """
    config = dataclasses.replace(config, storage=storage.absolute(config.storage))
    if not requested_address():
        _check_resources(config, say)
    request = NodeRequest(config=config, whole=False, patience_s=storage.timeout_s())
    facts = inspect_node(request)
    sections = [Section(title="", findings=tuple(check_node(facts, request, None)))]
    kinds = {facts.storage.kind} if facts.storage else set()
    if facts.proxies and facts.proxies.urls and config.worker_range[1]:
        name, url = next(iter(facts.proxies.urls.items()))
        say(f"note: {name} is set ({url}); workers reach each other without it, storage and downloads go through it")
    if requested_address() and not findings_of_level(sections, "FAIL"):
        for section, answered in _check_nodes(dataclasses.replace(request, patience_s=STORAGE_TIMEOUT_S)):
            sections.append(section)
            kinds |= {answered.storage.kind} if answered and answered.storage else set()
    for section, finding in findings_of_level(sections, "warn"):
        say(f"warning: {_line(section, finding)}")
    failures = [(_line(section, finding), finding.check) for section, finding in findings_of_level(sections, "FAIL")]
    if not failures:
        return
    for line, _ in failures[1:]:
        say(f"check failed: {line}")
    bad_input = {check for _, check in failures} == {"storage"} and kinds - {None} <= set(_BAD_INPUT)
    raise (ConfigError if bad_input else PreflightError)(failures[0][0])


def _check_resources(config: RunConfig, say: Callable[[str], None]) -> None:
    """See whether the workers find their places on this machine, as far as it can be known without TensorFlow.

    Raises:
        ConfigError: they do not.
    """
    low, high = config.worker_range
    if high == 0 or (config.accelerator != "cpu" and shutil.which("nvidia-smi")):
        return  # with GPUs, Ray counts them when it starts
    cores = usable_cores()
    plan_worker_group([ClusterNode("", "127.0.0.1", 0, float(ray_cpus()), 0.0)], low, high, config.accelerator)
    if low > cores:
        say(
            f"warning: workers: {low} processes share {format_count(cores, 'core')}, each with a TensorFlow and a "
            "network of its own; --workers 1 uses all cores and takes the same steps"
        )


def _line(section: Section, finding: Finding) -> str:
    where = f"{section.title}: " if section.title else ""
    return f"{where}{finding.check}: {finding.text}. Remedy: {finding.remedy}"


def _check_nodes(request: NodeRequest) -> Iterator[tuple[Section, NodeInfo | None]]:
    """What is found on each node of the cluster."""
    from pharmclf.diagnostics.cluster_check import ClusterNodes, NodeResponse  # Ray is wanted here alone
    from pharmclf.distributed.cluster import connect

    connect(allow_open=request.config.allow_open_cluster)
    own, titles, same = inspect_packages(), dict[str, str](), []
    with ClusterNodes() as nodes, _with_heartbeat_file(request) as asked:
        for node in nodes.silent:
            yield (
                Section(
                    title=f"node {node.address}",
                    findings=(_unreachable_nodes(NodeResponse(error="it takes no connection")),),
                ),
                None,
            )
        for node, answer in nodes.packages(_ANSWER_TIMEOUT_S):
            titles[node.id] = f"node {node.address}"
            findings = [_unreachable_nodes(answer)] if answer.error else [check_packages(own, answer.value)]
            if not answer.error and answer.value.code == own.code:
                same.append(node)
                offset_s = nodes.clock_offset_s(node)
                findings += [check_clock_skew(offset_s, "the driver")] if offset_s is not None else []
            yield Section(title=titles[node.id], findings=tuple(findings)), None
        for node, answer in nodes.inspect(same, asked, STORAGE_TIMEOUT_S + _ANSWER_TIMEOUT_S):
            findings = (
                [_unreachable_nodes(answer)] if answer.error else check_node(answer.value, asked, nodes.ray_info(node))
            )
            yield Section(title=titles[node.id], findings=tuple(findings)), answer.value


def _unreachable_nodes(answer: NodeResponse) -> Finding:
    """A node that does not answer is no reason not to start: a run leaves it out, or waits for it."""
    if answer.lacks_package:
        return fail("node", answer.error, LACKS_PACKAGE)
    return warn("node", answer.error, "see whether it lives: `ray list nodes`, and the logs of its raylet")


@contextlib.contextmanager
def _with_heartbeat_file(request: NodeRequest) -> Iterator[NodeRequest]:
    """The request with a file in the storage that every node must see."""
    with write_heartbeat_file(request.config.storage) as beacon:
        yield dataclasses.replace(request, beacon=beacon)
