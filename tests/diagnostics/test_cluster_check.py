"""The examination through Ray, on the one node of the shared Ray, and a real all-reduce of two workers on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from pharmclf.config import RunConfig
from pharmclf.diagnostics.node_check import NodeInfo, NodeRequest

pytestmark = pytest.mark.ray


def test_a_node_of_a_cluster_is_examined_by_itself(shared_ray: None, tmp_path: Path) -> None:
    """Its programs, clock, disks and storage are the driver's here; nothing of the examination stays."""
    import ray

    from pharmclf.diagnostics.cluster_check import ClusterNodes

    with ClusterNodes() as nodes:
        assert nodes.unreachable == []
        request = NodeRequest(config=RunConfig(storage=str(tmp_path)), full=False)
        ((section, facts),) = nodes.check(request, timeout_s=60)
        (node,) = nodes.same_code
        assert section.title == f"node {node.address}"
        assert [finding.check for finding in section.findings][:2] == ["versions", "clock"]
        assert [finding.level for finding in section.findings][:2] == ["OK", "OK"]
        assert {finding.level for finding in section.findings} <= {"OK", "warn"}
        assert facts is not None
        assert {disk.path for disk in facts.disks if "Ray" in disk.uses}
        assert facts.storage.failed == ""
        assert facts.silent == {}
        assert set(section.facts) == {"ray", *(field.name for field in dataclasses.fields(NodeInfo))}
        assert section.facts["ray"]["cpus"] == ray.cluster_resources()["CPU"]
        assert section.facts["ray"]["store_bytes"] > 0
        assert nodes.clock_offset_s(node) == 0
        assert nodes.access_errors() == {}
        assert nodes.check_connections([node]) == {node.address: []}
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_takes_too_long_does_not_hold_up_the_others(shared_ray: None, tmp_path: Path) -> None:
    from pharmclf.diagnostics.cluster_check import ClusterNodes

    request = NodeRequest(config=RunConfig(storage=str(tmp_path)), full=False)
    for level, timeouts in (("FAIL", (60.0, 0.0)), ("warn", (0.0, 60.0))):
        with ClusterNodes() as nodes:
            start_timeout_s, timeout_s = timeouts
            ((section, facts),) = nodes.check(
                request, timeout_s=timeout_s, start_timeout_s=start_timeout_s, unreachable=level
            )
        assert facts is None
        finding = section.findings[-1]
        assert (finding.check, finding.level, finding.text) == ("node", level, "no answer within 0 s")


@pytest.mark.tf
@pytest.mark.slow
def test_two_workers_sum_and_their_speed_is_measured(shared_ray: None) -> None:
    """Started as those of a training are; given up where they take too long."""
    from pharmclf.diagnostics.allreduce_check import check_allreduce, probe_allreduce
    from pharmclf.distributed.cluster import usable_nodes
    from pharmclf.distributed.scaling_policy import plan_worker_group

    facts = probe_allreduce(plan_worker_group(usable_nodes(), 2, 2, "cpu"), [], gpus=False)
    assert facts.error == ""
    assert facts.on_one_node
    assert 0 < facts.small_s < facts.bulk_s
    assert facts.start_s > 0
    assert check_allreduce(facts).level == "OK"
