"""Runs and sweeps as TensorBoard shows them, and what becomes of a run that cannot be tracked."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from tracked_runs import (
    ACCURACY,
    dot_png,
    event_files,
    history,
    points,
    record_of,
    run_config,
    tags,
    tell,
    tracker_of,
    trial,
    write_end,
    write_progress,
)

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.core import background
from pharmclf.core.events import WorkersStarted
from pharmclf.tracking import SweepTracker, check_tracking
from pharmclf.tracking.tensorboard import TAGS


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "_LAST_RETRY_S", 0.01)


def test_a_run_is_shown_over_both_phases_to_its_end(root: str) -> None:
    """Every number of an epoch, the configuration, the final numbers, the pictures; on a disk and in a bucket."""
    tracker, folder = tracker_of(run_config(root))
    write_end(folder)
    tell(tracker, history(), "complete")
    (events,) = event_files(f"{folder}/tensorboard")
    assert points(events, "accuracy/validation") == ACCURACY
    assert points(events, "training/phase") == [(1, 1), (2, 1), (3, 1), (5, 2), (6, 2)]
    assert {*TAGS.values()} - {TAGS["val_balanced_accuracy"]} < tags(events)  # which only runs with class weights have
    assert points(events, "final/test_accuracy") == [(6, 0.875)]
    assert points(events, "final/other light_accuracy") == [(6, 0.25)]
    shown = [value for event in events for value in event.summary.value]
    texts = {one.tag: one.tensor.string_val[0].decode() for one in shown if one.tag.endswith("/text_summary")}
    assert "name: tablets" in texts["config/text_summary"]
    assert "| test_macro_f1 | 0.5000 | 0.2500 | 0.7500 |" in texts["result/text_summary"]
    pictures = {one.tag: one.image.encoded_image_string for one in shown if one.HasField("image")}
    assert pictures == {"learning_curves": dot_png(), "evaluation/test/confusion_matrix": dot_png()}


def test_a_resumed_run_shows_each_epoch_once(tmp_path: Path) -> None:
    """Its file begins anew with what the checkpoint holds, and says that earlier files do not count from there on."""
    tracker, folder = tracker_of(run_config(str(tmp_path)))
    tell(tracker, history()[:3], "failed")  # the third epoch lies behind the newest checkpoint
    write_progress(folder, history()[:2])
    tracker, _ = tracker_of(run_config(str(tmp_path)))
    tell(tracker, history()[2:], "interrupted")
    first, second = event_files(folder)
    assert points(first, "accuracy/validation") == ACCURACY[:3]
    assert points(second, "accuracy/validation") == ACCURACY
    assert points(second, "accuracy/best_validation") == [(1, 0.4), (2, 0.6), (3, 0.6), (5, 0.8), (6, 0.9)]
    for events in (first, second):
        restart = events[1]
        assert (restart.session_log.status, restart.step) == (1, 1)
        assert min(event.step for event in events if event.summary.value and event.step) == 1


def test_an_epoch_that_is_trained_again_has_one_point(tmp_path: Path) -> None:
    """Under one driver, after a node was lost: the same steps, and so the same numbers."""
    tracker, folder = tracker_of(run_config(str(tmp_path)))
    tell(tracker, [*history()[:3], *history()[1:]], "interrupted")
    (events,) = event_files(folder)
    assert points(events, "accuracy/validation") == ACCURACY


def test_a_run_without_an_epoch_leaves_no_file(tmp_path: Path) -> None:
    tracker, folder = tracker_of(run_config(str(tmp_path)))
    tracker.on_event(WorkersStarted(workers=1, nodes=(), attempt=1))
    tracker.close("failed")
    assert not Path(folder).exists()


@pytest.mark.parametrize("why", ["not asked for", "not installed", "lease lost"])
def test_nothing_is_written_where_it_shall_not_be(tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(str(tmp_path), tensorboard=why != "not asked for")
    if why == "not installed":
        monkeypatch.setitem(sys.modules, "tensorboardX", None)
    tracker, folder = tracker_of(config, lambda: "another driver" if why == "lease lost" else "")
    tell(tracker, history(), "interrupted")
    assert not Path(folder).exists()


def test_a_disk_that_refuses_does_not_fail_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker, folder = tracker_of(run_config(str(tmp_path)))
    Path(folder).mkdir()
    (Path(folder) / "tensorboard").write_text("in the way")
    tell(tracker, history(), "interrupted")
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2
    assert "the run continues" in warnings[0]
    assert "could not be sent" in warnings[1]


@pytest.mark.parametrize("content", [b"no JSON", b'{"a": 1}', b'[{"phase": "phase9"}]', b"[1]"])
def test_a_history_that_cannot_be_read_does_not_fail_the_run(tmp_path: Path, content: bytes) -> None:
    """What comes from now on is shown; what earlier files hold of the epochs before stays."""
    storage.write_bytes(f"{tmp_path}/tablets/history.json", content)
    tracker, folder = tracker_of(run_config(str(tmp_path)))
    tell(tracker, history()[2:], "interrupted")
    (events,) = event_files(folder)
    assert points(events, "accuracy/validation") == ACCURACY[2:]
    assert (events[1].session_log.status, events[1].step) == (1, 3)


def test_a_package_that_cannot_be_loaded_does_not_fail_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboardX.py").write_text("raise TypeError('descriptors of another protobuf')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorboardX")
    tracker, folder = tracker_of(run_config(str(tmp_path)))
    tell(tracker, history(), "interrupted")
    assert "tensorboardX cannot be loaded: TypeError: descriptors of another protobuf" in caplog.text
    assert not Path(folder).exists()


def test_each_trial_of_a_sweep_has_its_file_once(root: str) -> None:
    """With its parameters for the table; none without an epoch, and none again under the next driver."""
    config = run_config(root, name="search")
    record = record_of(config).to_dict() | {"state": "interrupted"}
    homes = [f"{root}/search/trials/{number:04d}" for number in range(3)]
    facts = [trial(0), trial(1, "stopped", 3, "not among the best"), trial(2, "diverged", 0, "the loss")]
    written = []
    for _driver in range(2):
        tracker = SweepTracker(config, f"{root}/search", record, lambda: None, print)
        for one, home in zip(facts, homes, strict=True):
            tracker.on_trial_end(one, home)
        tracker.close(record)
        written.append([(entry.location, entry.mtime_ns) for entry in storage.list_files(f"{root}/search")])
    assert written[0] == written[1]
    assert [location.split("/trials/")[1] for location, _ in written[0]] == [
        "0000/tensorboard/events.out.tfevents.0.trial",
        "0001/tensorboard/events.out.tfevents.0.trial",
    ]
    first, second = event_files(f"{root}/search")
    assert points(first, "accuracy/validation") == ACCURACY
    assert points(second, "accuracy/validation") == ACCURACY[:3]
    assert "_hparams_/session_start_info" in tags(first)


def test_a_missing_client_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is trained; a run that does not ask for a server needs none."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"not installed. Run pip install 'pharmclf\[mlflow\]'"):
        check_tracking(run_config("/r", mlflow="http://127.0.0.1:1"))
    check_tracking(run_config("/r"))
