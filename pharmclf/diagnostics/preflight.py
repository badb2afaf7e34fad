"""The checks at the start of a run: those that take no time, on this machine or on every node of the cluster."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator

from pharmclf import storage
from pharmclf.config import RunConfig
from pharmclf.core.console import Say, show_activity
from pharmclf.core.errors import ConfigError, RunError
from pharmclf.core.units import format_count
from pharmclf.diagnostics.node_check import STORAGE_TIMEOUT_S, NodeInfo, NodeRequest, check_node, inspect_node
from pharmclf.diagnostics.results import Finding, Section, findings_of_level
from pharmclf.diagnostics.storage_check import StorageFailureKind, write_heartbeat_file
from pharmclf.distributed.ray_address import requested_address
from pharmclf.distributed.scaling_policy import local_node, plan_worker_group
from pharmclf.monitoring.cores import usable_cores

_NODE_TIMEOUT_S = 45.0  # for the answer of a node, with the start of its process
_BAD_INPUT: set[StorageFailureKind] = {
    "no credentials", "wrong credentials", "no bucket", "no rights", "read-only", "another region", "another place",
}  # fmt: skip


class PreflightError(RunError):
    """A machine or the storage is in a state in which a run would fail."""


def run_preflight(config: RunConfig, say: Say) -> None:
    """Check that a run can write to its storage and its disks, and that all nodes have the same software and time.

    Joins the cluster that RAY_ADDRESS names. Reports warnings, and nothing where all is well.

    Raises:
        ConfigError: the storage cannot be used as it is given, the cluster cannot be joined, or this machine has no
            room for the workers.
        PreflightError: another check failed; `say` has received the other failures.
    """
    config = dataclasses.replace(config, storage=storage.absolute(config.storage))
    if not requested_address():
        _check_resources(config, say)
    request = NodeRequest(config=config, full=False, storage_timeout_s=storage.timeout_s())
    with show_activity("checking this machine and the storage"):
        local = inspect_node(request)
    results: list[tuple[Section, NodeInfo | None]] = [
        (Section(title="", findings=tuple(check_node(local, request, None))), local)
    ]
    if local.proxies and local.proxies.urls and config.worker_range[1]:
        name, url = next(iter(local.proxies.urls.items()))
        say(f"note: {name} is set ({url}); workers reach each other without it, storage and downloads go through it")
    if requested_address() and not findings_of_level([results[0][0]], "FAIL"):
        results += _check_nodes(dataclasses.replace(request, storage_timeout_s=STORAGE_TIMEOUT_S), say)
    sections = [section for section, _ in results]
    for section, finding in findings_of_level(sections, "warn"):
        say(f"warning: {_line(section, finding)}")
    failures = findings_of_level(sections, "FAIL")
    if not failures:
        return
    for section, finding in failures[1:]:
        say(f"check failed: {_line(section, finding)}")
    kinds = {info.storage.kind for _, info in results if info and info.storage and info.storage.kind}
    wrong = _BAD_INPUT if storage.is_remote(config.storage) else _BAD_INPUT | {"other"}
    if {finding.check for _, finding in failures} == {"storage"} and kinds <= wrong:
        (section, finding), *_ = failures
        place = f"{section.title}: " if section.title else ""
        raise ConfigError(f"{place}--storage {finding.text}. {finding.remedy[0].upper()}{finding.remedy[1:]}")
    raise PreflightError(_line(*failures[0]))


def _check_resources(config: RunConfig, say: Say) -> None:
    """Refuse workers that have no room on this machine, as far as it is known without TensorFlow."""
    low, high = config.worker_range
    if high == 0 or (config.accelerator != "cpu" and shutil.which("nvidia-smi")):
        return  # Ray counts GPUs when it starts
    plan_worker_group([local_node(0)], low, high, config.accelerator)
    _warn_of_crowding(low, usable_cores(), say)


def _warn_of_crowding(workers: int, cores: int, say: Say) -> None:
    if workers > cores:
        say(
            f"warning: workers: {workers} processes share {format_count(cores, 'core')}, and each loads TensorFlow and "
            "a network; --num-workers auto uses all cores and takes the same steps"
        )


def _line(section: Section, finding: Finding) -> str:
    place = f"{section.title}: " if section.title else ""
    return f"{place}{finding.check}: {finding.text}. Remedy: {finding.remedy}"


def _check_nodes(request: NodeRequest, say: Say) -> Iterator[tuple[Section, NodeInfo | None]]:
    """Check each node of the cluster; one that does not answer is a warning, since a run leaves it out or waits."""
    from pharmclf.diagnostics.cluster_check import ClusterNodes  # imports Ray
    from pharmclf.distributed.cluster import connect, device_kind

    connect(allow_open=request.config.allow_unauthenticated_cluster)
    with ClusterNodes() as nodes, write_heartbeat_file(request.config.storage) as path:
        if request.config.accelerator == "cpu" or device_kind() == "CPU":
            _warn_of_crowding(request.config.worker_range[0], int(sum(node.cpus for node in nodes.nodes)), say)
        yield from nodes.check(
            dataclasses.replace(request, heartbeat_file=path),
            timeout_s=STORAGE_TIMEOUT_S + _NODE_TIMEOUT_S,
            start_timeout_s=_NODE_TIMEOUT_S,
            unreachable="warn",
        )
