"""Workers that are killed, stopped or broken: real ones, on the shared Ray."""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest
from ray import cloudpickle

from pharmclf.config import PhaseConfig
from pharmclf.core.events import EpochEnd, Event, WorkerFailure, WorkersStarted
from pharmclf.distributed.controller import TrainingFailedError, train_on_workers
from pharmclf.training.checkpoint import newest_checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.tf]
RATES = {"phase1": PhaseConfig(epochs=3, learning_rate=1e-4), "phase2": PhaseConfig(epochs=2, learning_rate=1e-5)}

E = TypeVar("E", bound=Event)


class Watching:
    """Does something once, behind an epoch of a phase."""

    def __init__(self, act: Callable[[], None] = lambda: None, phase: str = "phase1") -> None:
        self.events: list[Event] = []
        self.act, self.phase, self.acted = act, phase, False

    def on_event(self, event: Event, /) -> None:
        self.events.append(event)
        if isinstance(event, EpochEnd) and event.record.phase == self.phase and not self.acted:
            self.acted = True
            self.act()

    def should_stop(self) -> bool:
        return False

    def of(self, kind: type[E]) -> list[E]:
        return [event for event in self.events if isinstance(event, kind)]


def training_workers() -> list[psutil.Process]:
    """The processes of the workers, which Ray has named."""
    ours = psutil.Process(os.getpid()).children(recursive=True)
    return [process for process in ours if process.name().startswith("ray::") and "TrainWorker" in process.name()]


def signalled(number: int, count: int = 1) -> Callable[[], None]:
    def act() -> None:
        found = training_workers()
        assert len(found) >= count
        for process in found[-count:]:
            process.send_signal(number)

    return act


def weights(folder: Path) -> dict[str, np.ndarray]:
    found = newest_checkpoint(f"{folder}/checkpoints")
    assert found is not None
    return found[1]["weights"]


def test_a_run_whose_worker_is_killed_ends_as_if_it_had_not_been(make_job: Any, tmp_path: Path) -> None:
    """SIGKILL behind the first epoch: another attempt goes on from its checkpoint, to the same weights."""
    calm, disturbed = Watching(), Watching(signalled(signal.SIGKILL))
    train_on_workers(make_job(str(tmp_path / "calm"), num_workers="1", **RATES), calm)
    outcome = train_on_workers(make_job(str(tmp_path / "killed"), num_workers="1", max_failures=1, **RATES), disturbed)
    assert outcome.status == "complete"
    assert [event.attempt for event in disturbed.of(WorkersStarted)] == [1, 2]
    (failure,) = disturbed.of(WorkerFailure)
    assert (failure.kind, failure.num_failures, failure.max_failures) == ("crash", 1, 1)
    assert failure.position is not None
    assert failure.position[0] == "phase1"
    one, other = weights(tmp_path / "calm"), weights(tmp_path / "killed")
    assert max(float(np.abs(one[name] - other[name]).max()) for name in one) <= 1e-6


@pytest.mark.slow
def test_a_crash_at_the_same_step_twice_ends_the_run_and_says_where(make_job: Any, tmp_path: Path) -> None:
    """A row without a label raises in every attempt: the second one is the last, although ten are allowed."""
    job = make_job(str(tmp_path), num_workers="1", max_failures=10, **RATES)
    job = dataclasses.replace(job, labels=job.labels[: int(job.train_rows.max())])
    watching = Watching()
    with pytest.raises(TrainingFailedError, match=r"a second time in phase1, epoch 1, step \d"):
        train_on_workers(job, watching)
    assert len(watching.of(WorkerFailure)) == 2


@pytest.mark.slow
def test_a_worker_that_does_not_answer_is_named_and_ended(make_job: Any, tmp_path: Path) -> None:
    """A stopped process takes no step and no order: its node is named, it is killed, and the run goes on."""
    watching = Watching(signalled(signal.SIGSTOP))
    job = make_job(str(tmp_path), num_workers="1", max_failures=1, step_timeout_s=30.0, **RATES)
    assert train_on_workers(job, watching).status == "complete"
    (failure,) = watching.of(WorkerFailure)
    assert failure.kind == "hang"
    assert "no answer from rank 0 on " in failure.reason


class Sticking:
    """Labels that are never read where a file says so; the file goes, so that the next attempt reads them."""

    def __init__(self, labels: np.ndarray, file: Path) -> None:
        self.labels, self.file = labels, str(file)

    def __getitem__(self, rows: Any) -> np.ndarray:
        try:
            os.remove(self.file)
        except FileNotFoundError:
            return self.labels[rows]
        while True:
            time.sleep(1)


@pytest.mark.slow
def test_a_hung_step_leaves_the_stacks_of_all_workers_and_the_run_goes_on(make_job: Any, tmp_path: Path) -> None:
    """One of two workers sticks in its input, the other waits for it: both stacks are in the run folder."""
    flag = tmp_path / "stick"
    watching = Watching(flag.touch)
    job = make_job(str(tmp_path / "run"), num_workers="2", max_failures=1, step_timeout_s=30.0, **RATES)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers do not know the modules of tests
    assert train_on_workers(dataclasses.replace(job, labels=Sticking(job.labels, flag)), watching).status == "complete"
    (failure,) = watching.of(WorkerFailure)
    assert failure.kind == "hang"
    assert "stacks of 2 workers" in failure.reason
    stacks = {path.name: path.read_text() for path in (tmp_path / "run" / "stacks").iterdir()}
    assert sorted(stacks) == ["attempt1-rank0.txt", "attempt1-rank1.txt"]
    assert all("trainer.py" in text for text in stacks.values())
    assert any("in __getitem__" in text for text in stacks.values())


@pytest.mark.slow
def test_a_run_fails_after_more_failures_than_are_allowed(make_job: Any, tmp_path: Path) -> None:
    """--max-failures 0: the first one is the last; its reason is one line."""
    watching = Watching(signalled(signal.SIGKILL))
    with pytest.raises(TrainingFailedError, match="failure 1, --max-failures 0"):
        train_on_workers(make_job(str(tmp_path), num_workers="1", max_failures=0, **RATES), watching)
