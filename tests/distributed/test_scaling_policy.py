"""How a cluster is divided among workers."""

from __future__ import annotations

from typing import Any

import pytest

from pharmclf.config import ConfigError, RunConfig
from pharmclf.distributed.scaling_policy import (
    ClusterNode,
    choose_workers,
    format_capacity,
    plan_worker_group,
    resources_per_worker,
)


def nodes(*sizes: tuple[float, float]) -> list[ClusterNode]:
    return [ClusterNode(f"id{n}", f"10.0.0.{n}", 1000 + n, cpus, gpus) for n, (cpus, gpus) in enumerate(sizes)]


@pytest.mark.parametrize("cpus", [2, 3, 4, 16, 64])
def test_a_division_leaves_a_cpu_to_the_stream(cpus: int) -> None:
    """Whatever the workers reserve, Ray Data has a CPU left."""
    for workers in range(1, cpus + 1):
        parts = resources_per_worker(1, workers, cpus, 0)
        assert 0 < parts.cpus <= 1
        assert cpus - parts.cpus * workers >= 1 - 1e-9


def test_more_workers_than_gpus_are_refused() -> None:
    """Three workers on two GPUs would wait for ever; the error says what is there."""
    with pytest.raises(ConfigError, match="2 GPUs"):
        resources_per_worker(3, 3, 16, 2)


def test_a_cluster_without_a_spare_cpu_is_refused() -> None:
    """One CPU cannot train and decode; that is said before the start."""
    with pytest.raises(ConfigError, match="reading the images needs one"):
        resources_per_worker(1, 1, 1, 0)


@pytest.mark.parametrize(
    ("cluster", "low", "high", "accelerator", "size"),
    [
        ([(2, 0)], 2, 2, "auto", 2),  # a fixed number shares one machine
        ([(2, 0)], 1, 4, "auto", 1),  # as many as there are: one for each node without GPUs
        ([(0, 0), (4, 0), (4, 0)], 1, 4, "auto", 2),  # a head without CPUs trains nothing
        ([(0, 0), (8, 4), (8, 4)], 1, 16, "auto", 8),
        ([(0, 0), (8, 4), (8, 4)], 1, 6, "auto", 6),
        ([(8, 4), (8, 0)], 1, 8, "cpu", 2),  # GPUs that are not wanted are not there
        ([(64, 1)], 1, 1, "gpu", 1),
    ],
)
def test_a_team_is_as_large_as_the_cluster_allows(
    cluster: list[tuple[float, float]], low: int, high: int, accelerator: str, size: int
) -> None:
    """One worker for each GPU, or for each node with CPUs, between the fewest and the most."""
    team = plan_worker_group(nodes(*cluster), low, high, accelerator)
    assert team.size == size
    assert team.each.gpus == (1.0 if any(gpus for _, gpus in cluster) and accelerator != "cpu" else 0.0)


@pytest.mark.parametrize(
    ("cluster", "settings", "workers", "reason"),
    [
        ([(2, 0)], {}, "0", "this process trains, since this machine is alone and has no GPU"),
        ([(16, 1)], {}, "0", "this machine is alone and has one GPU"),
        ([(16, 8)], {}, "8", "one for each GPU of this machine"),
        ([(16, 8)], {"batch_size": 4}, "4", "one for each image of a batch; this machine has room for 8"),
        ([(16, 8)], {"accelerator": "cpu"}, "0", "this process trains"),
        ([(2, 0)], {"accelerator": "gpu"}, "1", "--accelerator gpu asks for a GPU, and this machine has none"),
    ],
)
def test_auto_trains_in_this_process_unless_there_are_several_gpus(
    cluster: list[tuple[float, float]], settings: dict[str, Any], workers: str, reason: str
) -> None:
    """The line says what was chosen and why; a number that was given stays, without a word."""
    config, line = choose_workers(RunConfig(**settings), nodes(*cluster), on_cluster=False)
    assert config.num_workers == workers
    assert line.startswith(f"workers: {workers}, chosen by auto: ")
    assert reason in line
    assert choose_workers(config, nodes(*cluster), on_cluster=False) == (config, "")


@pytest.mark.parametrize(
    ("cluster", "workers", "reason"),
    [
        ([(0, 0), (8, 4), (8, 4)], "8", "one for each GPU of the cluster"),
        ([(0, 0), (4, 0), (4, 0)], "2", "one for each node of the cluster"),
        ([(2, 0)], "1", "one for each node of the cluster"),
        ([], "1", "one for each node of the cluster"),
    ],
)
def test_auto_uses_all_of_a_cluster(cluster: list[tuple[float, float]], workers: str, reason: str) -> None:
    """All GPUs, or all nodes where there is none; other jobs of the cluster know of workers alone."""
    config, line = choose_workers(RunConfig(), nodes(*cluster), on_cluster=True)
    assert config.num_workers == workers
    assert reason in line


def test_a_process_that_uses_tensorflow_already_starts_a_worker() -> None:
    """As a notebook that has trained a model: its devices can no longer be set."""
    config, line = choose_workers(RunConfig(), nodes((2, 0)), on_cluster=False, uses_tensorflow=True)
    assert (config.num_workers, "this one uses TensorFlow already" in line) == ("1", True)


def test_a_whole_cpu_is_left_on_a_node_beside_the_workers() -> None:
    """Two nodes of two CPUs, a worker on each: a task that wants a CPU finds a whole one."""
    team = plan_worker_group(nodes((2, 0), (2, 0)), 2, 2, "auto")
    assert 2 - team.each.cpus >= 1
    assert plan_worker_group(nodes((1, 0), (1, 0), (1, 0)), 2, 2, "auto").size == 2  # the third node is free
    with pytest.raises(ConfigError, match="no node has more than 1 CPU"):
        plan_worker_group(nodes((1, 0), (1, 0)), 2, 2, "auto")


def test_a_team_that_needs_gpus_waits_for_them() -> None:
    """With --accelerator gpu CPUs are no room, although there are many."""
    with pytest.raises(ConfigError, match="--accelerator gpu, but the cluster has 0 GPUs"):
        plan_worker_group(nodes((64, 0)), 2, 2, "gpu")
    with pytest.raises(ConfigError):
        plan_worker_group([], 1, 1, "auto")


def test_a_share_of_a_cluster_is_divided_like_a_smaller_one() -> None:
    """Half of eight GPUs are room for four workers."""
    assert plan_worker_group(nodes((16, 8)), 1, 8, "auto", share=0.5).size == 4


def test_the_room_is_named_with_its_nodes() -> None:
    """What is there is said in an error: sums and addresses, cut after eight nodes."""
    text = format_capacity(nodes(*[(4, 1)] * 10))
    assert text.startswith("40 CPUs and 10 GPUs on 10.0.0.0 (4 CPUs, 1 GPUs), ")
    assert text.endswith("and 2 more")
    assert format_capacity([]) == "no node"
