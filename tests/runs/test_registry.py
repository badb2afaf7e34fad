"""The runs of a storage: all are found, put in order and shown."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support.run_folders import complete_run, incomplete_run, write_record

from pharmclf import storage
from pharmclf.config import ConfigError
from pharmclf.runs.registry import METRICS, list_runs, rank_runs, runs_table


def test_runs_and_trials_are_found_and_nothing_else(root: str):
    """Also an interrupted run without a checkpoint, in any kind of storage; not caches, images, hidden folders."""
    complete_run(root, "demo", [(1, 0, 0.5, 1.0)])
    write_record(root, "started", "running")
    for trial in ("sweep/trials/1", "sweep/trials/2", "sweeper/trials/1", "demo/trials/1"):
        incomplete_run(root, trial, [(1, 0, 0.5, 1.0)])
    for other in ("manifests", "activations", "demo-data-0-100", ".hidden"):
        write_record(root, other, "complete")
    storage.write_bytes(storage.join(root, "images", "one", "a.jpg"), b"")
    storage.write_json(storage.join(root, "benchmark.json"), {})
    every = ["demo", "demo/trials/1", "started", "sweep/trials/1", "sweep/trials/2", "sweeper/trials/1"]
    assert [run.name for run in list_runs(root)] == every
    assert [run.name for run in list_runs(root, experiment="sweep")] == every[3:5]
    assert [run.name for run in list_runs(root, experiment="sweep/trials/2/")] == ["sweep/trials/2"]
    assert [run.name for run in list_runs(root, experiment="demo")] == ["demo", "demo/trials/1"]
    assert [run.name for run in list_runs(root, name="demo")] == ["demo"]
    assert [run.name for run in list_runs(root, name="sweep/trials/1")] == ["sweep/trials/1"]
    assert [run.name for run in list_runs(storage.join(root, "sweep"))] == ["trials/1", "trials/2"]


def test_the_table_tells_what_each_run_has_come_to(tmp_path: Path):
    """The best checkpoint is a phase's best, the phase reached may be another; "-" stands for what is not yet."""
    root = str(tmp_path)
    complete_run(root, "whole", [(1, 0, 0.5, 1.0), (2, 0, 0.75, 0.5), (2, 1, 0.7, 0.4)], test=0.625)
    incomplete_run(root, "half", [(1, 0, 0.5, 1.0), (1, 1, 0.625, 0.5), (2, 0, 0.5, 0.5)], backbone="resnet50")
    incomplete_run(root, "first", [], state="running")
    write_record(root, "none", "failed")
    rows = [line.split("  ") for line in runs_table(rank_runs(list_runs(root), "val_accuracy")).splitlines()]
    rows = [[cell.strip() for cell in row if cell] for row in rows]
    lite = "efficientnet_lite0"
    assert rows == [
        ["name", "state", "backbone", "reached", "val_accuracy", "val_loss", "test_accuracy", "checkpoint"],
        ["whole", "complete", lite, "phase2 epoch 2", "0.7500", "0.5000", "0.6250", "phase2-epoch0001-step000000"],
        ["half", "interrupted", "resnet50", "phase2 epoch 2", "0.6250", "0.5000", "-", "phase1-epoch0002-step000000"],
        ["first", "running", lite, "phase1 epoch 1", "-", "-", "-", "-"],
        ["none", "failed", lite, "-", "-", "-", "-", "-"],
    ]


def test_the_metric_decides_and_then_the_other(tmp_path: Path):
    """Highest accuracy or lowest loss; equal ones by the other, then complete before incomplete, then by name."""
    root = str(tmp_path)
    scores = {"a": (0.5, 0.1), "b": (0.9, 0.3), "c": (0.9, 0.2), "e": (0.9, 0.2)}
    for name, (accuracy, loss) in scores.items():
        complete_run(root, name, [(1, 0, accuracy, loss)])
    incomplete_run(root, "d", [(1, 0, 0.9, 0.2)])
    write_record(root, "0", "running")
    orders = [[run.name for run in rank_runs(list_runs(root), metric)] for metric in METRICS]
    assert orders == [["c", "e", "d", "b", "a", "0"], ["a", "c", "e", "d", "b", "0"]]


def test_an_unreadable_run_does_not_hide_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """run.json cut short, a result that is gone, a checkpoint of another schema: named in the log, and in the list."""
    root = str(tmp_path)
    complete_run(root, "good", [(1, 0, 0.5, 1.0)])
    short, lost = (complete_run(root, name, [(1, 0, 0.9, 1.0)]) for name in ("short", "lost"))
    Path(short, "run.json").write_bytes(Path(short, "run.json").read_bytes()[:50])
    Path(lost, "result.json").unlink()
    other = Path(incomplete_run(root, "other", [(1, 0, 0.9, 1.0)]))
    record = next(other.rglob("checkpoint.json"))
    record.write_text(record.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with caplog.at_level(logging.WARNING):
        states = {run.name: run.state for run in list_runs(root)}
    assert states == {"good": "complete", "short": "unreadable", "lost": "unreadable", "other": "unreadable"}
    assert all(name in caplog.text for name in ("short", "lost", "other"))
    assert "schema_version" in caplog.text


def test_bad_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No such storage, no run in it, another name, two filters, no right to read."""
    root = str(tmp_path / "runs")
    with pytest.raises(ConfigError, match="runs: nothing there"):
        list_runs(root)
    storage.write_json(f"{root}/manifests/x.json", {})
    with pytest.raises(ConfigError, match="a folder without runs"):
        list_runs(root)
    write_record(root, "demo-blisters", "running")
    with pytest.raises(
        ConfigError, match=r"--name: received 'blister', expected .*, such as demo-blisters; see --list"
    ):
        list_runs(root, name="blister")
    with pytest.raises(ConfigError, match="--experiment: received 'demo-blister'"):
        list_runs(root, experiment="demo-blister")
    with pytest.raises(ConfigError, match="received both"):
        list_runs(root, name="demo-blisters", experiment="sweep")

    def refuse(location: str) -> list[str]:
        raise PermissionError(13, "Permission denied", location)

    monkeypatch.setattr(storage, "list_folders", refuse)
    with pytest.raises(ConfigError, match="Permission denied"):
        list_runs(root)


def test_a_folder_of_others_does_not_hide_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As lost+found, which only root may list."""
    root = str(tmp_path)
    write_record(root, "mine", "running")
    storage.write_json(f"{root}/lost+found/x.json", {})
    list_folders = storage.list_folders

    def refuse(location: str) -> list[str]:
        if "lost+found" in location:
            raise PermissionError(13, "Permission denied", location)
        return list_folders(location)

    monkeypatch.setattr(storage, "list_folders", refuse)
    assert [run.name for run in list_runs(root)] == ["mine"]


@pytest.mark.s3
def test_a_bucket_that_is_not_there_is_bad_input(bucket: str):
    with pytest.raises(ConfigError, match="no bucket"):
        list_runs("s3://no-such-bucket-of-ours/runs")
    with pytest.raises(ConfigError, match="nothing there"):
        list_runs(f"{bucket}/runs")
