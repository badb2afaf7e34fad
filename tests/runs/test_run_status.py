"""Where a run stands: made of its events, written behind it, read from storage alone."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.epoch_records import epoch_record
from support.run_folders import complete_run, incomplete_run, small_config, write_record

from pharmclf import storage
from pharmclf.config import ConfigError, PhaseConfig, RunConfig, to_dict
from pharmclf.core.events import (
    CheckpointSaved,
    EpochEnd,
    Event,
    FeatureCacheReady,
    FinalEvaluationStarted,
    ImagesQuarantined,
    Note,
    RunEnd,
    StepEnd,
    Waiting,
    WorkerFailure,
    WorkersStarted,
)
from pharmclf.runs import status_writer
from pharmclf.runs.record import RecordState, read_record
from pharmclf.runs.status import Place, RunState, StatusBuilder, parse_status, utc_timestamp
from pharmclf.runs.status_format import status_details, status_table
from pharmclf.runs.status_reader import LOST, RunStatus, list_status, read_status
from pharmclf.runs.status_writer import StatusWriter
from pharmclf.storage import lease
from pharmclf.storage.lease import Lease

SIZES = {"train": 100, "validation": 20, "test": 25}


def config(phase1: int = 2, phase2: int = 0, **settings: Any) -> RunConfig:
    """Ten steps an epoch."""
    phases = {"phase1": PhaseConfig(epochs=phase1), "phase2": PhaseConfig(epochs=phase2)}
    return RunConfig(name="run", batch_size=10, **phases | settings)


def step(phase: str = "phase1", epoch: int = 0, number: int = 5, rate: float = 10.0, loss: float = 1.5) -> StepEnd:
    return StepEnd(
        phase=phase, epoch=epoch, epochs=2, step=number, steps=10, loss=loss, accuracy=0.5, images_per_second=rate,
        eta_s=1.0,
    )  # fmt: skip


def epoch(phase: str = "phase1", number: int = 0, seconds: float = 11.0, rate: float = 10.0) -> EpochEnd:
    record = epoch_record(phase, number, val_accuracy=0.7, seconds=seconds, images_per_second=rate)
    return EpochEnd(record=record, epochs=2, is_best=True)


def failure(reason: str = "it crashed", kind: str = "crash", number: int = 1) -> WorkerFailure:
    return WorkerFailure(kind=kind, reason=reason, position=("phase1", 0, 4), num_failures=number, max_failures=3)


def started(*nodes: str, attempt: int = 1) -> WorkersStarted:
    return WorkersStarted(workers=len(nodes), nodes=nodes, attempt=attempt)


# ---------------------------------------------------------------------- made of events


def test_steps_and_epochs_tell_where_a_run_stands() -> None:
    """Phase, epoch and step from 1, the share of all epochs, and the scores, from the first step on."""
    run = StatusBuilder(config(phase2=2), SIZES)
    assert (run.status.state, run.status.phase, run.status.progress) == ("starting", "", 0.0)
    assert run.handle_event(step())
    now = run.status
    assert (now.state, now.phase, now.epoch, now.epochs, now.step, now.steps) == ("running", "phase1", 1, 2, 5, 10)
    assert now.progress == pytest.approx(0.5 / 4)
    assert (now.loss, now.accuracy, now.val_accuracy) == (1.5, 0.5, None)
    assert not run.handle_event(epoch())
    assert (now.epoch, now.step, now.progress, now.val_accuracy) == (1, 10, 0.25, 0.7)
    assert run.handle_event(step("phase2", 1))
    assert (now.phase, now.epoch, now.progress) == ("phase2", 2, pytest.approx(3.5 / 4))
    assert run.handle_event(FinalEvaluationStarted())
    assert (now.state, now.phase, now.progress, now.eta_s) == ("running", "test", 1.0, None)
    assert run.handle_event(RunEnd(state="complete"))
    assert now.state == "complete"


def test_the_eta_counts_what_has_been_measured() -> None:
    """100 images at 10 a second and a validation of 1 s are 11 s an epoch; the test is as fast as the validation."""
    run = StatusBuilder(config(), SIZES)
    run.handle_event(step())
    assert run.status.eta_s == pytest.approx(2 * (10 + 2) - 5)
    assert not run.status.eta_whole
    run.handle_event(epoch())
    assert run.status.eta_s == pytest.approx(11 + 45 / 20)
    assert run.status.eta_whole
    run.handle_event(step(epoch=1, number=10))
    assert run.status.eta_s == pytest.approx(1 + 45 / 20)


def test_the_eta_counts_phases_that_have_not_begun_and_says_that_it_guesses() -> None:
    """They are counted at the present speed; once the last phase has been measured nothing is guessed any more."""
    run = StatusBuilder(config(phase2=3), SIZES)
    run.handle_event(epoch())
    assert run.status.eta_s == pytest.approx(4 * 11 + 2 * 45 / 20)
    assert not run.status.eta_whole
    run.handle_event(epoch("phase2", 0, seconds=24.0, rate=5.0))
    assert run.status.eta_s == pytest.approx(2 * 24 + 2 * 4 * 45 / 20)
    assert run.status.eta_whole


def test_on_kept_activations_the_speed_of_the_test_stays_unknown() -> None:
    """The validation does not read images then, and the test does."""
    run = StatusBuilder(config(), SIZES)
    run.handle_event(FeatureCacheReady(phases=("phase1",)))
    run.handle_event(epoch())
    assert run.status.eta_s == pytest.approx(11)
    assert not run.status.eta_whole


@pytest.mark.parametrize(
    ("event", "state"),
    [
        (failure(), "starting"),
        (Waiting(text="2 nodes are missing"), "waiting for nodes"),
        (started("10.0.0.1", attempt=2), "starting"),
        (FinalEvaluationStarted(), "running"),
    ],
)
def test_while_no_steps_are_taken_the_eta_is_unknown(event: Event, state: str) -> None:
    """After a failure, while nodes are awaited, until the first step of new workers, and in the test."""
    run = StatusBuilder(config(), SIZES)
    run.handle_event(step())
    run.handle_event(event)
    assert (run.status.eta_s, run.status.images_per_second) == (None, None)
    assert run.status.state == state


def test_a_speed_of_nothing_leaves_the_eta_unknown() -> None:
    run = StatusBuilder(config(), SIZES)
    run.handle_event(step(rate=0.0))
    assert run.status.eta_s is None


def test_the_newest_failures_are_kept_with_their_reasons() -> None:
    """Seven are counted, five told, each in one line, with the place counted from 1."""
    run = StatusBuilder(config(), SIZES)
    for number in range(1, 8):
        run.handle_event(failure(f"\nnode {number} was lost\nTraceback ...", "node", number))
    now = run.status
    assert (now.failures, now.failures_here, now.failures_allowed, len(now.last_failures)) == (7, 7, 3, 5)
    assert [told.reason for told in now.last_failures] == [f"node {number} was lost" for number in range(3, 8)]
    assert now.last_failures[0].place == Place(phase="phase1", epoch=1, step=5)


def test_a_driver_that_died_is_a_failure_that_its_follower_tells() -> None:
    """It carries on the failures and the checkpoint of the one before, and adds that one's end, if it was unclean."""
    first = StatusBuilder(config(), SIZES)
    first.handle_event(CheckpointSaved(name="phase1-epoch0001-step000000"))
    first.handle_event(failure())
    first.handle_event(step())
    second = StatusBuilder(config(), SIZES, parse_status(first.status.to_dict())).status
    assert (second.failures, second.failures_here) == (2, 0)
    assert [told.kind for told in second.last_failures] == ["crash", "driver"]
    assert f"process {os.getpid()} on {socket.gethostname()} " in second.last_failures[1].reason
    assert second.checkpoint == "phase1-epoch0001-step000000"
    first.handle_event(RunEnd(state="interrupted"))
    assert StatusBuilder(config(), SIZES, parse_status(first.status.to_dict())).status.failures == 1


@pytest.mark.parametrize("before", [None, {}, [], "text", {"state": "running"}, {"state": 1, "checkpoint": {}}])
def test_a_status_that_cannot_be_understood_is_no_obstacle(before: Any) -> None:
    assert parse_status(before) is None


def test_what_is_not_a_number_becomes_nothing() -> None:
    run = StatusBuilder(config(), SIZES)
    run.handle_event(step(loss=math.nan))
    assert json.loads(json.dumps(run.status.to_dict(), allow_nan=False))["loss"] is None


@given(
    st.lists(
        st.one_of(
            st.builds(step, st.sampled_from(["phase1", "phase2"]), st.integers(0, 1), st.integers(0, 10),
                      st.floats(0, 1e6)),
            st.builds(epoch, st.sampled_from(["phase1", "phase2"]), st.integers(0, 1), st.floats(0, 1e4),
                      st.floats(1e-3, 1e6)),
            st.builds(failure, st.text()),
            st.builds(Waiting, text=st.text()),
            st.builds(Note, text=st.text()),
            st.sampled_from([FinalEvaluationStarted(), ImagesQuarantined(reasons={})]),
        )
    )
)  # fmt: skip
@example([step("phase1", 0, 1, 2e-313)])  # a time left that is no number
def test_whatever_happens_a_status_is_sound(events: list[Event]) -> None:
    """A share in 0..1, no negative time, a known state, one line of reason, and JSON."""
    run = StatusBuilder(config(phase2=2), SIZES)
    for event in events:
        run.handle_event(event)
        now = run.status
        assert 0 <= now.progress <= 1
        assert now.eta_s is None or now.eta_s >= -1e-6
        assert now.state in RunState
        assert "\n" not in now.reason + now.says
        json.dumps(now.to_dict(), allow_nan=False)


# ---------------------------------------------------------------------- written behind the run


@pytest.fixture
def open_board() -> Iterator[Callable[..., StatusWriter]]:
    """Opens boards that are closed with the test."""
    opened: list[StatusWriter] = []

    def start(folder: str, lost: Callable[[], object] = lambda: "") -> StatusWriter:
        opened.append(StatusWriter(folder, config(), SIZES, lost))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def until(done: Callable[[], object], seconds: float = 15) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.02)


def written(folder: str) -> dict[str, Any]:
    return dict(storage.read_json(f"{folder}/status.json"))


def test_a_change_of_state_is_written_at_once(root: str, open_board: Callable[..., StatusWriter]) -> None:
    """Long before the next status is due; who writes it, and when, stands there too."""
    mine = open_board(f"{root}/run")
    until(lambda: storage.is_file(f"{root}/run/status.json"))
    for event, state in (
        (Waiting(text="one node of two"), "waiting for nodes"),
        (started("10.0.0.1", "10.0.0.2"), "starting"),
        (step(), "running"),
        (RunEnd(state="failed", reason="no more nodes"), "failed"),
    ):
        mine.on_event(event)
        until(lambda state=state: written(f"{root}/run")["state"] == state, seconds=3)  # type: ignore[misc]
    now = written(f"{root}/run")
    assert (now["reason"], now["workers"], now["nodes"]) == ("no more nodes", 2, ["10.0.0.1", "10.0.0.2"])
    assert (now["host"], now["pid"]) == (socket.gethostname(), os.getpid())
    assert now["updated_at"].endswith("+00:00")


def test_many_steps_are_written_once_in_a_while(tmp_path: Path, open_board: Callable[..., StatusWriter]) -> None:
    """A thousand events in a moment make two writings: the change of state, and the last word."""
    seen: set[int] = set()
    mine = open_board(str(tmp_path))
    for number in range(1000):
        mine.on_event(step(number=number % 10))
        if (tmp_path / "status.json").exists():
            seen.add((tmp_path / "status.json").stat().st_mtime_ns)
    assert len(seen) <= 2
    mine.close()
    assert written(str(tmp_path))["step"] == 9


def test_a_storage_that_refuses_the_file_costs_one_warning(
    tmp_path: Path,
    open_board: Callable[..., StatusWriter],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A file stands where the folder should be; no event waits or fails, and when it is gone the status is written."""
    monkeypatch.setattr(status_writer, "_WRITE_INTERVAL_S", 0.05)
    obstacle = tmp_path / "run"
    obstacle.write_text("in the way")
    mine = open_board(str(obstacle))
    for number in range(100):
        mine.on_event(step(number=number % 10))
    time.sleep(0.5)
    warnings = [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()]
    assert len(warnings) == 1
    assert str(obstacle) in warnings[0]
    obstacle.unlink()
    until(lambda: (obstacle / "status.json").is_file())
    assert written(str(obstacle))["step"] == 9


def test_who_has_lost_the_lease_writes_no_more(tmp_path: Path, open_board: Callable[..., StatusWriter]) -> None:
    root = str(tmp_path)
    lost: list[str] = []
    mine = open_board(root, lambda: lost)
    until(lambda: storage.is_file(f"{root}/status.json"))
    lost.append("process 1 on another-host")
    mine.on_event(RunEnd(state="failed"))
    mine.close()
    assert written(root)["state"] == "starting"


# ---------------------------------------------------------------------- read from storage


def put_status(folder: str, *events: Event, **changes: Any) -> None:
    run = StatusBuilder(config(), SIZES)
    for event in events:
        run.handle_event(event)
    storage.write_json(f"{folder}/status.json", run.status.to_dict() | changes)


def put_lease(folder: str, *, dead: bool = False) -> None:
    """That of a process on another machine, or of one on this machine that has ended."""
    holder: dict[str, Any] = {"id": "theirs", "pid": 4711, "started": 1.0, "host": "another-host", "machine": "other"}
    if dead:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        holder |= {"pid": ended.pid, "host": socket.gethostname(), "machine": lease._machine()}
    storage.write_json(f"{folder}/lease.json", holder)


def find(root: str, name: str) -> RunStatus:
    found = read_status(root, name)
    assert found is not None
    return found


def test_a_run_with_a_driver_that_lives_is_running(root: str) -> None:
    folder = write_record(root, "run", "running")
    put_lease(folder)
    workers = started("10.0.0.1", "10.0.0.2", attempt=2)
    put_status(folder, failure(), workers, CheckpointSaved(name="phase1-epoch0001"), step())
    found = find(root, "run")
    assert (found.state, found.is_active, found.reason) == ("running", True, "")
    table = status_table([found], time.time())
    for word in ("run", "running", "phase1", "1/2", "5/10", "25%", "0:19+", "10.0"):
        assert word in table.splitlines()[1].split()
    full = status_details(found, time.time())
    for words in (
        "reached     phase1, epoch 1/2, step 5/10",
        "25%, 0:19 to go or more",
        "workers     2 on 10.0.0.1, 10.0.0.2, start 2",
        "failures    1; under this driver 1 of 3 allowed",
        "crash in phase1, epoch 1, step 5: it crashed",
        "checkpoint  phase1-epoch0001, ",
    ):
        assert words in full


def test_what_a_run_costs_grows_with_its_hours_and_is_known_at_the_end_by_its_eta(tmp_path: Path) -> None:
    """An hour of the drivers before and one of this one at 2.00; without a price per hour nothing is shown of it."""
    root, earlier = str(tmp_path), datetime.fromtimestamp(time.time() - 3600, UTC).isoformat()
    folder = write_record(root, "run", "running")
    put_lease(folder)
    put_status(folder, step(), started_at=earlier, eta_s=1800.0, eta_whole=True)
    unpriced = find(root, "run")
    assert (unpriced.price, unpriced.final_price) == (None, None)
    assert "price" not in status_table([unpriced], 0.0) + status_details(unpriced, 0.0) + str(unpriced.to_dict())
    record = read_record(folder)
    assert record is not None
    record.config["price_per_hour"], record.seconds = 2.0, 3600.0
    record.write(folder)
    found = find(root, "run")
    assert found.price == pytest.approx(4.0, abs=0.01)
    assert found.final_price == pytest.approx(5.0, abs=0.01)
    assert found.to_dict()["price"] == found.price
    assert "price       4.00 of 5.00\n" in status_details(found, time.time())
    assert status_table([found], time.time()).endswith("4.00 of 5.00")
    record.state = RecordState.COMPLETE
    record.write(folder)
    ended = find(root, "run")
    assert (ended.price, ended.final_price) == (2.0, None)
    assert status_table([ended], time.time()).endswith(" 2.00")


@pytest.mark.parametrize("dead", [True, False])
def test_a_run_whose_driver_died_is_not_called_running(root: str, dead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process has ended, or its lease was not renewed for too long: the remedy is said."""
    folder = write_record(root, "run", "running")
    put_status(folder, step())
    put_lease(folder, dead=dead)
    if not dead:
        assert find(root, "run").state == "running"
        monkeypatch.setattr(lease, "EXPIRES_S", 0.5)
        time.sleep(0.6)
    found = find(root, "run")
    assert (found.state, found.is_active) == (LOST, False)
    assert found.reason == f"no sign of life since {utc_timestamp(found.seen_s)}; submit the same command again"
    assert time.time() - found.seen_s < 60
    assert found.status is not None
    assert found.status.phase == "phase1"


def test_a_real_lease_is_a_sign_of_life(root: str) -> None:
    folder = write_record(root, "run", "running")
    held = Lease.acquire(folder)
    put_status(folder, step())
    assert find(root, "run").state == "running"
    held.release()
    assert find(root, "run").state == LOST


@pytest.mark.parametrize("state", ["interrupted", "failed", "complete"])
def test_a_run_that_has_ended_says_how(tmp_path: Path, state: str) -> None:
    """Also where run.json could not be written any more; of a failure the reason is told."""
    root = str(tmp_path)
    folder = write_record(root, "run", "running")
    reason = "the disk is full" * (state == "failed")
    put_status(folder, step(), RunEnd(state=state, reason=reason))
    put_lease(folder, dead=True)
    found = find(root, "run")
    assert (found.state, found.reason) == (state, "the disk is full" if state == "failed" else "")
    write_record(root, "run", state)
    assert find(root, "run").reason == found.reason


def test_a_run_that_is_taken_up_again_is_not_called_what_it_was(tmp_path: Path) -> None:
    """Its new driver has not written a status yet: it is starting; when that driver dies at once, it is dead."""
    root = str(tmp_path)
    folder = write_record(root, "run", "interrupted")
    put_status(folder, step(), RunEnd(state="interrupted"))
    time.sleep(1.1)  # an object store tells whole seconds
    write_record(root, "run", "running")
    put_lease(folder)
    assert find(root, "run").state == "starting"
    put_lease(folder, dead=True)
    assert find(root, "run").state == LOST


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"schema_version": 1}', b'{"schema_version": 99}'])
def test_an_unreadable_status_is_replaced_by_the_record(tmp_path: Path, content: bytes) -> None:
    """As for a run of a version without one: state, phase and best score from run.json and the checkpoints."""
    root = str(tmp_path)
    folder = incomplete_run(root, "run", [(1, 0, 0.5, 1.0), (1, 1, 0.75, 0.9)])
    storage.write_bytes(f"{folder}/status.json", content)
    found = find(root, "run")
    assert found.state == "interrupted"
    values = found.to_dict()
    assert {name: values[name] for name in list(values)[:5]} == {
        "phase": "phase1", "epoch": 3, "epochs": 9, "best_val_accuracy": 0.75,
        "checkpoint": "phase1-epoch0002-step000000",
    }  # fmt: skip
    assert set(values) - set(list(values)[:5]) == {"name", "kind", "state", "reason", "lives", "location", "seen_at"}
    assert "phase1, epoch 3/9" in status_details(found, time.time())


def test_older_runs_are_shown_from_their_record(tmp_path: Path) -> None:
    """Complete, interrupted, and one of which nothing but run.json is there."""
    root = str(tmp_path)
    complete_run(root, "whole", [(1, 0, 0.5, 1.0), (2, 0, 0.8, 0.5)])
    incomplete_run(root, "part", [(1, 0, 0.25, 1.0)])
    write_record(root, "begun", "failed")
    lines = status_table(list_status(root), time.time()).splitlines()
    assert [line.split()[:2] for line in lines[1:]] == [
        ["begun", "failed"],
        ["part", "interrupted"],
        ["whole", "complete"],
    ]
    assert "0.8000" in lines[3]
    assert "phase2" in lines[3]


def test_what_cannot_be_read_hides_no_other(tmp_path: Path) -> None:
    """A run.json that is no JSON, and one without what it must have; folders that are no runs are left out."""
    root = str(tmp_path)
    storage.write_bytes(f"{root}/broken/run.json", b"{")
    storage.write_bytes(f"{root}/empty/run.json", b"{}")
    storage.write_bytes(f"{root}/manifests/a.parquet", b"")
    storage.write_bytes(f"{root}/torn/sweep.json", b'{"state": "running"}')
    write_record(root, "run", "failed")
    states = {found.name: found.state for found in list_status(root)}
    assert states == {"broken": "unreadable", "empty": "unreadable", "torn": "unreadable", "run": "failed"}
    assert "run.json cannot be read" in find(root, "broken").reason


def test_clocks_that_differ_make_no_negative_ages(tmp_path: Path) -> None:
    folder = write_record(str(tmp_path), "run", "running")
    put_status(folder, CheckpointSaved(name="c"), step())
    put_lease(folder)
    ahead = time.time() + 30
    for file in ("lease.json", "status.json", "run.json"):
        os.utime(f"{folder}/{file}", (ahead, ahead))
    found = find(str(tmp_path), "run")
    assert found.state == "running"
    shown = status_details(found, time.time()) + status_table([found], time.time())
    assert shown.count(" ago") == shown.count(" 0 s ago") == 3


def put_sweep(root: str, state: str, states: list[str | None]) -> str:
    folder = storage.join(root, "search")
    storage.write_json(f"{folder}/sweep.json", {"name": "search", "state": state, "trials": len(states)})
    for number, of in enumerate(states):
        if of is not None:
            about = {"number": number, "values": {}, "state": of, "reason": "", "used": {"seconds": 61.0}}
            record = {"state": "running" if of == "running" else "trained", "fingerprints": {"data": ""}}
            more = {"config": to_dict(small_config()), "settings": {}, "seconds": 1.0, "trial": about}
            storage.write_json(f"{folder}/trials/{number}/run.json", record | more)
    return folder


def test_of_a_sweep_is_told_how_many_trials_are_done(root: str) -> None:
    """Ended ones of all that there will be, in one line of the table; each that has begun, in full."""
    folder = put_sweep(root, "running", ["trained", "stopped", "diverged", "running", None, None])
    put_lease(folder)
    write_record(root, "plain", "complete")
    found = list_status(root)
    assert [(one.name, one.kind, one.state) for one in found] == [
        ("plain", "run", "complete"),
        ("search", "sweep", "running"),
    ]
    assert "3 of 6 trials" in status_table(found, time.time())
    full = status_details(found[1], time.time())
    assert "3 of 6 have ended: 1 diverged, 1 running, 1 stopped, 1 trained" in full
    assert "3: running, 1:01" in full
    assert find(root, "search/trials/3").state == "running"
    assert find(root, "search/trials/1").kind == "trial"


def test_a_sweep_that_died_says_what_to_do(tmp_path: Path) -> None:
    root = str(tmp_path)
    folder = put_sweep(root, "running", ["trained", "running"])
    put_lease(folder, dead=True)
    found = find(root, "search")
    assert found.state == LOST
    assert "submit the same command again" in found.reason
    assert "1 of 2 have ended: 1 broken off, 1 trained" in status_details(found, time.time())
    assert find(root, "search/trials/1").state == "broken off"
    assert find(root, "search/trials/0").state == "trained"


@pytest.mark.parametrize(
    ("below", "name", "words"),
    [
        ("", "tablet", r"--name: received 'tablet', expected a run of .*, such as tablets"),
        ("", "tablets/trials/1", r"expected a run of"),
        ("nowhere", "", "nothing there"),
        ("nowhere", "tablets", "nothing there"),
        ("manifests", "", "a folder without runs|nothing there"),
        ("tablets", "", "the folder of a run"),
    ],
)
def test_what_is_not_there_is_bad_input(tmp_path: Path, below: str, name: str, words: str) -> None:
    root = str(tmp_path)
    write_record(root, "tablets", "failed")
    storage.write_bytes(f"{root}/tablets/checkpoints/a", b"")
    with pytest.raises(ConfigError, match=words):
        list_status(storage.join(root, below) if below else root, name)


def test_as_plain_values_all_is_json(root: str) -> None:
    folder = write_record(root, "run", "running")
    put_status(folder, failure(), step())
    incomplete_run(root, "older", [(1, 0, 0.5, 1.0)])
    put_sweep(root, "complete", ["trained"])
    values = {found.name: found.to_dict() for found in list_status(root)}
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["run"]["state"] == LOST
    assert values["search"]["trials"]["ended"] == 1
