"""Runs and sweeps on MLflow, read through its client; its store is a database in a file, without a server."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
from mlflow_reader import artifacts, client, points, runs
from tracked_runs import (
    ACCURACY,
    RESULT,
    history,
    record_of,
    run_config,
    sweep_record,
    tell,
    tracker_of,
    trial,
    trial_home,
    write_end,
    write_progress,
)

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.tracking import EXPERIMENT, SweepTracker, check_tracking, track_complete

pytest.importorskip("mlflow", reason="mlflow-skinny is not installed: pip install '.[mlflow]'")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # of MLflow's own tables


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    check_tracking(run_config("/r", mlflow=f"sqlite:///{path}"))
    return path


@pytest.fixture
def uri(empty_store: Path, tmp_path: Path) -> str:
    """A store of this test's own."""
    return f"sqlite:///{shutil.copy(empty_store, tmp_path / 'mlflow.db')}"


def test_a_run_is_told_with_all_that_it_has_come_to(uri: str, tmp_path: Path) -> None:
    """Settings, versions and fingerprints, both phases under the same names, final numbers, report and pictures."""
    config = run_config(str(tmp_path), mlflow=uri)
    said: list[str] = []
    tracker, folder = tracker_of(config, say=said.append)
    write_end(folder)
    tell(tracker, history(), "complete")
    (run,) = runs(uri).values()
    assert (run.info.run_name, run.info.status) == ("tablets", "FINISHED")
    assert run.data.params["phase1.learning_rate"] == "0.0001"
    assert run.data.params["head.dense"] == "[512, 256]"
    assert not {"storage", "num_workers", "mlflow"} & set(run.data.params)  # they may change when it is resumed
    about = {"folder": folder, "fingerprint.data": "d", "version.python": "3"}
    assert about.items() < run.data.tags.items()
    assert "**0.875**" in run.data.tags["mlflow.note.content"]
    assert points(uri, run, "val_accuracy") == ACCURACY
    assert points(uri, run, "phase") == [(1, 1), (2, 1), (3, 1), (5, 2), (6, 2)]
    assert points(uri, run, "best_val_accuracy") == [(1, 0.4), (2, 0.6), (3, 0.6), (5, 0.8), (6, 0.9)]
    for name, value in {"test_accuracy": 0.875, "test_accuracy_low": 0.75, "best_val_accuracy_high": 0.95}.items():
        assert points(uri, run, name) == [(6, value)]
    assert points(uri, run, "other light_accuracy") == [(6, 0.25)]
    assert artifacts(uri, run) == {
        "config.yaml", "evaluation/test/confusion_matrix.png", "history.json", "learning_curves.png",
        "model/README.md", "report.html", "result.json",
    }  # fmt: skip
    assert said == [f"MLflow: {uri}"]


def test_a_resumed_run_goes_on_in_the_same_run(uri: str, tmp_path: Path) -> None:
    """It is told as interrupted, then as running, then as finished; each epoch stands there once.

    What a driver could not tell, the next one does: the checkpoint has it.
    """
    config = run_config(str(tmp_path), mlflow=uri)
    tracker, folder = tracker_of(config)
    tell(tracker, history()[:1], "interrupted")
    (first,) = runs(uri).values()
    assert first.info.status == "KILLED"
    write_progress(folder, history()[:2])
    tracker, _ = tracker_of(config)
    tell(tracker, history()[2:], "failed")
    assert [run.info.status for run in runs(uri).values()] == ["FAILED"]
    write_progress(folder, history())
    write_end(folder)
    tracker, _ = tracker_of(config)
    tracker.close("complete")
    (last,) = runs(uri).values()
    assert (last.info.run_id, last.info.status) == (first.info.run_id, "FINISHED")
    for name in ("val_accuracy", "train_loss", "phase", "test_accuracy"):
        found = points(uri, last, name)
        assert [step for step, _ in found] == ([6] if name == "test_accuracy" else [1, 2, 3, 5, 6])


def test_a_complete_run_can_be_told_later(uri: str, tmp_path: Path) -> None:
    """Of one that was trained without a server, everything; of one that stands there, nothing more."""
    config = run_config(str(tmp_path))
    tracker, folder = tracker_of(config)
    write_end(folder)
    (tmp_path / "tablets" / "mlflow.json").unlink()
    tell(tracker, history(), "complete")
    asked = run_config(str(tmp_path), mlflow=uri)
    files = set(Path(folder, "tensorboard").iterdir())
    track_complete(asked, folder, record_of(asked), print)
    (run,) = runs(uri).values()
    assert run.info.status == "FINISHED"
    assert points(uri, run, "val_accuracy") == ACCURACY
    track_complete(asked, folder, record_of(asked), print)
    assert runs(uri)["tablets"].info.end_time == run.info.end_time
    assert set(Path(folder, "tensorboard").iterdir()) == files
    track_complete(config, folder, record_of(config), print)  # nobody asked


def test_a_run_of_the_same_name_and_place_is_another_one(uri: str, tmp_path: Path) -> None:
    config = run_config(str(tmp_path), mlflow=uri)
    for _ in range(2):
        tracker, folder = tracker_of(config)
        tell(tracker, history()[:2], "interrupted")
        shutil.rmtree(folder)
    experiment = client(uri).get_experiment_by_name(EXPERIMENT).experiment_id
    found = client(uri).search_runs([experiment])
    assert [points(uri, run, "val_accuracy") for run in found] == [ACCURACY[:2]] * 2


def test_a_sweep_is_a_run_with_its_trials_below(uri: str, tmp_path: Path) -> None:
    """Each once, over two drivers: what was searched, its epochs, how it ended and why; the winner with its test."""
    config = run_config(str(tmp_path), name="search", mlflow=uri, tensorboard=False)
    folder = f"{tmp_path}/search"
    facts = [trial(0), trial(1, "stopped", 3, "not among the best"), trial(2, "diverged", 0, "loss"), trial(3)]
    interrupted = sweep_record(config, "interrupted")
    tracker = SweepTracker(config, folder, interrupted, lambda: None, print)
    for one in facts[:2]:
        tracker.on_trial_end(one, trial_home(config, f"{one.number:04d}"))
    tracker.close(interrupted)
    assert runs(uri, "search")["search"].info.status == "KILLED"

    tracker = SweepTracker(config, folder, interrupted, lambda: None, print)
    for one in facts:
        tracker.on_trial_end(one, trial_home(config, f"{one.number:04d}"))
    best = trial_home(config, "0003")
    write_end(best)
    storage.write_bytes(f"{folder}/sweep.parquet", b"table")
    storage.write_bytes(f"{folder}/trial_curves.png", b"picture")
    done = sweep_record(config, "complete", trials=4, winner=3, winner_folder=best, result=RESULT)
    tracker.close(done)

    found = runs(uri, "search")
    assert set(found) == {"search", "trial 0", "trial 1", "trial 2", "trial 3"}
    whole = found.pop("search")
    assert {run.data.tags["mlflow.parentRunId"] for run in found.values()} == {whole.info.run_id}
    assert [found[f"trial {n}"].info.status for n in range(4)] == ["FINISHED", "KILLED", "FAILED", "FINISHED"]
    assert found["trial 1"].data.params == {"head.dropout": "0.125", "unfreeze_blocks": "1"}
    assert found["trial 1"].data.tags["reason"] == "not among the best"
    assert points(uri, found["trial 1"], "val_accuracy") == ACCURACY[:3]
    assert points(uri, found["trial 0"], "val_accuracy") == ACCURACY
    assert points(uri, found["trial 2"], "val_accuracy") == []
    assert [points(uri, found[f"trial {n}"], "cpu_seconds") for n in (0, 1)] == [[(6, 30.0)], [(3, 30.0)]]
    assert [name for name, run in found.items() if "winner" in run.data.tags] == ["trial 3"]
    assert points(uri, found["trial 3"], "test_accuracy") == [(6, 0.875)]
    assert "report.html" in artifacts(uri, found["trial 3"])
    assert (whole.info.status, whole.data.tags["winner"], whole.data.tags["sweep.search"]) == ("FINISHED", "3", "tpe")
    assert points(uri, whole, "test_accuracy") == [(4, 0.875)]
    assert artifacts(uri, whole) == {"config.yaml", "sweep.parquet", "trial_curves.png"}


def test_another_winner_takes_the_tag(uri: str, tmp_path: Path) -> None:
    """When a sweep is given more trials; also where the winner is trained anew, in a run of its own."""
    config = run_config(str(tmp_path), name="search", mlflow=uri, tensorboard=False)
    folder = f"{tmp_path}/search"
    for number, place in ((0, "0000"), (1, "winner")):
        record = sweep_record(config, "running", trials=number + 1)
        tracker = SweepTracker(config, folder, record, lambda: None, print)
        for one in range(number + 1):
            tracker.on_trial_end(trial(one), trial_home(config, f"{one:04d}"))
        best = trial_home(config, place)
        write_end(best)
        tracker.close(
            sweep_record(config, "complete", trials=number + 1, winner=number, winner_folder=best, result=RESULT)
        )
    found = runs(uri, "search")
    assert {name for name, run in found.items() if "winner" in run.data.tags} == {"search", "winner"}
    assert found["winner"].data.params == {"head.dropout": "0.125", "unfreeze_blocks": "1"}
    assert points(uri, found["winner"], "val_accuracy") == ACCURACY
    assert points(uri, found["search"], "test_accuracy") == [(1, 0.875), (2, 0.875)]


@pytest.mark.parametrize(
    "address", ["file:./mlruns", "mlruns", "postgresql://host/db", "http:127.0.0.1", "s3://bucket"]
)
def test_an_address_of_another_kind_is_refused_with_two_that_work(address: str) -> None:
    """MLflow itself takes no folder of files any more; of the two that are proposed every test here uses the file."""
    with pytest.raises(ConfigError) as caught:
        check_tracking(run_config("/r", mlflow=address))
    assert str(caught.value) == (
        f"mlflow: received {address!r}, expected a URI that begins with http, https, databricks or sqlite. "
        "Give http://HOST:PORT of a server, or sqlite:///mlflow.db for a file on this machine"
    )


def test_a_server_that_does_not_answer_is_told_before_the_start() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # nobody listens
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
        words = rf"received '{address}', expected a server that answers: ConnectionRefusedError: .* refused\. Start it"
        with pytest.raises(ConfigError, match=words):
            check_tracking(run_config("/r", mlflow=address))


def test_an_experiment_that_was_deleted_is_told_before_the_start(uri: str) -> None:
    client(uri).delete_experiment(client(uri).create_experiment("search"))
    with pytest.raises(ConfigError, match="'search' is deleted"):
        check_tracking(run_config("/r", mlflow=uri), "search")
    check_tracking(run_config("/r", mlflow=uri))
