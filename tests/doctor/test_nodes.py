"""The examination through Ray, on the one node of the shared Ray, and a real all-reduce of two workers on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pharmclf.config import RunConfig
from pharmclf.doctor.node import Request, judge_node
from pharmclf.doctor.packages import judge_packages, packages_here

pytestmark = pytest.mark.ray


def test_a_node_of_a_cluster_is_examined_by_itself(shared_ray: None, tmp_path: Path) -> None:
    """Its programs, clock, disks and storage are the driver's here; nothing of the examination stays."""
    import ray

    from pharmclf.doctor.nodes import Nodes

    with Nodes() as nodes:
        assert nodes.silent == []
        ((node, answer),) = nodes.packages()
        assert judge_packages(packages_here(), answer.value).level == "OK"
        assert nodes.clock_offset_s(node) == 0
        assert nodes.open_doors([node]) == {}
        assert nodes.knock([node]) == {node.address: []}
        request = Request(config=RunConfig(storage=str(tmp_path)), whole=False)
        ((_, answer),) = nodes.examine([node], request, 60)
        facts = answer.value
        assert {disk.path for disk in facts.disks if "Ray" in disk.uses}
        assert facts.storage.failed == ""
        assert facts.silent == {}
        view = nodes.view(node)
        assert view.cpus == ray.cluster_resources()["CPU"]
        assert view.store_bytes > 0
        assert {finding.level for finding in judge_node(facts, request, view)} <= {"OK", "warn"}
    assert list(tmp_path.iterdir()) == []


def test_a_node_that_takes_too_long_does_not_hold_up_the_others(shared_ray: None, tmp_path: Path) -> None:
    """Its answer is that there is none."""
    from pharmclf.doctor.nodes import Nodes

    request = Request(config=RunConfig(storage=str(tmp_path)), whole=False)
    with Nodes() as nodes:
        ((_, answer),) = nodes.examine(nodes.nodes, request, 0.0)
    assert (answer.value, answer.error) == (None, "no answer within 0 s")


@pytest.mark.tf
@pytest.mark.slow
def test_two_workers_sum_and_their_speed_is_measured(shared_ray: None) -> None:
    """Started as those of a training are; given up where they take too long."""
    from pharmclf.distributed.cluster import usable_nodes
    from pharmclf.distributed.scaling_policy import plan_worker_group
    from pharmclf.doctor.exchange import judge_exchange, try_exchange

    facts = try_exchange(plan_worker_group(usable_nodes(), 2, 2, "cpu"), [], gpus=False)
    assert facts.error == ""
    assert facts.on_one_node
    assert 0 < facts.small_s < facts.bulk_s
    assert facts.start_s > 0
    assert judge_exchange(facts).level == "OK"
