"""Runs on a cluster of real nodes: submitted, and disturbed in every way; each ends as the undisturbed one does."""

from __future__ import annotations

import functools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from namespaces import Cluster, Job, Node, kill
from psutil import wait_procs
from support.s3server import Gateway

from pharmclf import storage
from pharmclf.training.checkpoint import Checkpoint, list_checkpoints, newest_checkpoint
from pharmclf.training.phases import Position

_FLAGS = (
    "--image-size=64", "--batch-size=20", "--unfreeze-blocks=2", "--head.dropout=0", "--demo.images-per-class=200",
    "--feature-cache=never", "--checkpoint-interval-s=5", "--phase1.learning-rate=1e-3",
    # so that the rounding of gradients stays below Adam's epsilon, and is not divided by its own size
    "--optimizer.clip-norm=1e-3",
)  # fmt: skip
# an epoch has 64 steps, and takes four to seven seconds on two busy cores
_SHORT = ("--phase1.epochs=2", "--phase2.epochs=10", "--phase2.learning-rate=1e-4")
_LONG = ("--phase1.epochs=2", "--phase2.epochs=40", "--phase2.learning-rate=1e-4")  # time for ten faults
# One worker and two sum gradients in another order. Measured between their weights: 3e-8 after two epochs of phase 1,
# where the loss is convex, and 2e-7 in phase 2 for 128 steps and more; then it grows from one epoch to the next, as
# behind a ReLU that falls on its other side: 1.3e-3 after 768 steps at a rate of 1e-4, and 3e-5 at 1e-5. So a run of
# one worker and two changes them in phase 1, at a rate at which a step too few or too many would show.
_ELASTIC = ("--phase1.epochs=40", "--phase2.epochs=4", "--phase2.learning-rate=1e-5")
_TOLERANCE = 1e-4
_KILLED_S, _CUT_S, _SHRINKING_S = 60.0, 75.0, 75.0
_START_S, _RECOVERY_S, _END_S = 300.0, 400.0, 900.0
_PROGRESS = r"^phase ?\d +epoch \d+/\d+"
_AWAY_S = 20.0  # that a link is cut

Note = Callable[..., None]
"""Adds a row to the table: the fault, the seconds, their limit, the largest difference of the final weights."""

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.tf, pytest.mark.s3, pytest.mark.timeout(2400)]


class Run:
    """A run on the cluster: submitted, watched from storage and from its output, compared with another."""

    def __init__(self, cluster: Cluster, gateway: Gateway, root: str, name: str, *flags: str) -> None:
        self.folder = f"{root}/{name}"
        self._cluster, self._gateway = cluster, gateway
        self._command = ("python", "jobs/train.py", "--data=demo", f"--storage={root}", f"--name={name}", *flags)
        self.job = self.submit()

    def submit(self) -> Job:
        """Submit it; again, with the same command, where it was before."""
        self.job = self._cluster.submit(*self._command, **self._gateway.environment())
        return self.job

    def position(self) -> Position:
        """Of the newest checkpoint, or the beginning."""
        found = list_checkpoints(f"{self.folder}/checkpoints")
        return found[-1].position if found else Position(0, 0, 0)

    def wait_beyond(self, position: Position, within: float) -> None:
        """Wait for a checkpoint behind a position."""
        what = f"checkpoint behind {position.label}"
        self.job.wait_until(lambda: self.position() > position or time.sleep(0.5), what, within=within)

    def wait_for_the_middle(self) -> None:
        """Wait until phase 2 is under way for a while."""
        self.wait_beyond(Position(1, 1, 0), _START_S)

    def seconds_to_next_step(self, fault: Callable[[], object]) -> float:
        """Let something happen -> seconds until the workers, started again, have made progress."""
        since, began = len(self.job.lines), time.monotonic()
        fault()
        resumed = self.job.wait_for("resumed from", within=_RECOVERY_S, since=since)
        return self.job.wait_for(_PROGRESS, within=_RECOVERY_S, since=resumed.number).at - began

    def finish(self) -> None:
        """Wait for the end, which must be a good one."""
        assert self.job.wait(_END_S) == "SUCCEEDED", self.job.tail()
        assert storage.read_json(f"{self.folder}/run.json")["state"] == "complete"

    def difference(self, other: Run) -> float:
        """The largest between the final weights of two runs, which have taken the same steps."""
        (mine, tensors), (its, expected) = self.final(), other.final()
        assert mine.position == its.position
        steps = [name for name in expected["optimizer"] if name.endswith("iteration")]
        assert steps
        assert all(np.array_equal(tensors["optimizer"][name], expected["optimizer"][name]) for name in steps)
        assert tensors["weights"].keys() == expected["weights"].keys()
        return max(float(np.abs(array - tensors["weights"][name]).max()) for name, array in expected["weights"].items())

    def final(self) -> tuple[Checkpoint, dict[str, dict[str, Any]]]:
        """The newest checkpoint with its tensors."""
        found = newest_checkpoint(f"{self.folder}/checkpoints")
        assert found is not None
        return found


Submit = Callable[..., Run]


@pytest.fixture(scope="module")
def root(cluster_gateway: Gateway) -> str:
    """Storage of all runs, which share the drawn images and their manifest."""
    return f"s3://{cluster_gateway.new_bucket()}/runs"


@pytest.fixture
def submit(cluster: Cluster, cluster_gateway: Gateway, root: str) -> Iterator[Submit]:
    """Submits a run; whatever is left of it ends with the test."""

    def start(name: str, *flags: str) -> Run:
        return Run(cluster, cluster_gateway, root, name, *_FLAGS, *flags)

    yield start
    cluster.settle()


@dataclass(frozen=True)
class Done:
    """A run that nothing has happened to."""

    run: Run
    nodes: dict[str, int]
    """Workers on each node, by its address."""


Undisturbed = Callable[[tuple[str, ...]], Done]


def kill_a_worker(_cluster: Cluster, node: Node) -> None:
    """SIGKILL for Ray Train's worker on a node."""
    workers = node.train_workers
    assert workers
    kill(workers[:1])


def kill_raylet(cluster: Cluster, node: Node) -> None:
    """SIGKILL for the raylet; the node is started again at once, as its supervisor would."""
    raylet = node.raylet
    assert raylet
    kill(raylet)
    node.revive(cluster.environment)


def cut_link(cluster: Cluster, node: Node) -> None:
    """Cut the link, and restore it later; the raylet finds itself given up and ends, and the node starts again."""
    node.cut()
    time.sleep(_AWAY_S)
    node.restore()
    wait_procs(node.raylet, timeout=_AWAY_S)
    node.revive(cluster.environment)


def workers_at(cluster: Cluster) -> list[str]:
    """Addresses of the nodes that train."""
    return sorted(cluster.train_workers())


def check(run: Run, expected: Run, note_cost: Note, fault: str, lost: float, limit_s: float | None = None) -> None:
    """The run ends as the other, and the fault has cost no more than its limit."""
    run.finish()
    difference = run.difference(expected)
    note_cost(fault, lost, limit_s, difference)
    assert difference <= _TOLERANCE
    assert limit_s is None or lost <= limit_s


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, cluster_gateway: Gateway, root: str) -> Undisturbed:
    """Gives the undisturbed run of two workers with these flags, done once."""
    done: dict[tuple[str, ...], Done] = {}

    def get(flags: tuple[str, ...]) -> Done:
        if flags not in done:
            try:
                run = Run(
                    cluster, cluster_gateway, root, f"undisturbed-{len(done)}", "--num-workers=2", *_FLAGS, *flags
                )
                run.wait_beyond(Position(0, 0, 0), _START_S)
                nodes = {address: len(workers) for address, workers in cluster.train_workers().items()}
                run.finish()
            except BaseException:
                cluster.settle()
                raise
            done[flags] = Done(run, nodes)
        return done[flags]

    return get


def test_a_submitted_demo_trains_on_two_nodes_and_ends_with_the_summary(cluster: Cluster, undisturbed: Undisturbed):
    """One worker on each node, none on the head; the outcome is the last line."""
    done = undisturbed(_SHORT)
    assert done.nodes == {node.address: 1 for node in cluster.workers}
    lines = [line.text for line in done.run.job.lines if line.text.strip()]
    assert "test accuracy" in lines[-1]


def test_a_killed_worker_costs_less_than_a_minute(
    cluster: Cluster, submit: Submit, undisturbed: Undisturbed, note_cost: Note
):
    expected = undisturbed(_SHORT).run
    run = submit("killed-worker", "--num-workers=2", *_SHORT)
    run.wait_for_the_middle()
    lost = run.seconds_to_next_step(lambda: kill_a_worker(cluster, cluster.workers[0]))
    check(run, expected, note_cost, "SIGKILL of a worker", lost, _KILLED_S)


def test_a_killed_raylet_costs_less_than_a_minute(
    cluster: Cluster, submit: Submit, undisturbed: Undisturbed, note_cost: Note
):
    """The node is started again at once, as its supervisor would."""
    expected = undisturbed(_SHORT).run
    run = submit("killed-raylet", "--num-workers=2", *_SHORT)
    run.wait_for_the_middle()
    lost = run.seconds_to_next_step(lambda: kill_raylet(cluster, cluster.workers[0]))
    check(run, expected, note_cost, "SIGKILL of a raylet", lost, _KILLED_S)


def test_a_cut_link_costs_less_than_75_seconds(
    cluster: Cluster, submit: Submit, undisturbed: Undisturbed, note_cost: Note
):
    """The link comes back while the run goes on without the node; its raylet finds itself given up, and starts anew."""
    expected = undisturbed(_SHORT).run
    run = submit("cut-link", "--num-workers=2", *_SHORT)
    run.wait_for_the_middle()
    lost = run.seconds_to_next_step(lambda: cut_link(cluster, cluster.workers[0]))
    check(run, expected, note_cost, f"a link cut, for {_AWAY_S:.0f} s", lost, _CUT_S)


def test_a_job_whose_driver_was_killed_goes_on_when_it_is_submitted_again(
    cluster: Cluster, submit: Submit, undisturbed: Undisturbed, note_cost: Note
):
    expected = undisturbed(_SHORT).run
    run = submit("killed-driver", "--num-workers=2", *_SHORT)
    run.wait_for_the_middle()
    drivers = cluster.drivers()
    assert len(drivers) == 1
    began = time.monotonic()
    kill(drivers)
    assert run.job.wait(_RECOVERY_S) == "FAILED"
    run.submit()
    resumed = run.job.wait_for("resumed from", within=_RECOVERY_S)
    lost = run.job.wait_for(_PROGRESS, within=_RECOVERY_S, since=resumed.number).at - began
    check(run, expected, note_cost, "the driver killed, submitted again", lost)


def test_a_node_about_to_be_taken_away_costs_no_step_and_is_no_failure(
    cluster: Cluster, submit: Submit, undisturbed: Undisturbed, note_cost: Note
):
    """A checkpoint is written at the notice, and both workers start again on the other node before it is gone."""
    expected = undisturbed(_SHORT).run
    first, second = cluster.workers
    run = submit("drained", "--num-workers=2", "--checkpoint-interval-s=0", *_SHORT)
    run.wait_for_the_middle()
    lost = run.seconds_to_next_step(lambda: cluster.drain(second, within_s=120))
    stopped, resumed = (
        run.job.first(words) for words in ("is about to be taken away", r"resumed from phase2-epoch\d+-step0*[1-9]")
    )
    assert stopped is not None
    assert resumed is not None  # within an epoch, where a checkpoint is written for a reason only
    assert workers_at(cluster) == [first.address]
    second.stop()
    check(run, expected, note_cost, "a node told to drain", lost)
    assert storage.read_json(f"{run.folder}/status.json")["failures"] == 0


def test_a_run_whose_nodes_do_not_come_ends_and_says_what_it_asked_for(submit: Submit):
    """It waits as long as it was told to, and no longer."""
    run = submit("nobody", "--num-workers=2", "--accelerator=gpu", "--node-timeout=5s", *_SHORT)
    assert run.job.wait(_START_S) == "FAILED"
    assert "--node-timeout 5s" in run.job.tail()
    assert "GPU" in run.job.tail()


def test_an_elastic_run_shrinks_to_one_node_and_grows_back_to_two(
    cluster: Cluster, submit: Submit, undisturbed: Undisturbed, note_cost: Note
):
    """Two workers, one, two: the same steps."""
    expected = undisturbed(_ELASTIC).run
    first, second = cluster.workers
    run = submit("elastic", "--num-workers=1-2", *_ELASTIC)
    run.wait_beyond(Position(0, 5, 0), _START_S)
    assert workers_at(cluster) == [first.address, second.address]
    shrinking = run.seconds_to_next_step(second.stop)
    assert workers_at(cluster) == [first.address]
    run.wait_beyond(run.position(), _RECOVERY_S)
    growing = run.seconds_to_next_step(lambda: second.start(cluster.environment))
    assert workers_at(cluster) == [first.address, second.address]
    note_cost("elastic, 1 -> 2: a node started, to the next step", growing)
    check(run, expected, note_cost, "elastic, 2 -> 1: a node stopped", shrinking, _SHRINKING_S)


@pytest.mark.timeout(5400)
def test_ten_faults_at_random_moments_change_nothing(
    cluster: Cluster, submit: Submit, undisturbed: Undisturbed, note_cost: Note
):
    """Each comes after a checkpoint behind the one that the run went on from, and some seconds more."""
    rng = random.Random(0)
    expected = undisturbed(_LONG).run
    run = submit("ten-faults", "--num-workers=2", *_LONG, "--max-failures=30")
    faults = [kill_a_worker] * 4 + [kill_raylet] * 3 + [cut_link] * 3
    rng.shuffle(faults)
    position, total = Position(0, 0, 0), 0.0
    for number, fault in enumerate(faults, start=1):
        run.wait_beyond(position, _RECOVERY_S)
        time.sleep(rng.uniform(0, 6))
        node = rng.choice([node for node in cluster.workers if node.train_workers])
        where = run.position().label
        lost = run.seconds_to_next_step(functools.partial(fault, cluster, node))
        note_cost(f"  {number}: {fault.__name__} after {where}", lost)
        total, position = total + lost, run.position()
    check(run, expected, note_cost, "ten faults at random moments in one run", total)
