"""The files on disk: version 1 is listed, fetched from, resumed and evaluated (see write_run_v1.py); keys and types."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from file_shapes import json_shape, parquet_shape, tensor_shape, with_free_keys
from goldens import check_golden
from old_folder import Continued, copy_old_folder, read
from shown_names import mlflow_names, mlflow_runs, tensorboard_tags
from support.programs import call_job
from write_run_v1 import TARGET

from pharmclf.feature_cache.shards import ShardLayout, write_index
from pharmclf.tracking.tensorboard import TAGS

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # of MLflow's own tables
NEWEST = "phase1-epoch0003-step000001"


def test_the_old_folder_is_listed(tmp_path: Path) -> None:
    """Run, sweep and trials, with the state of each; Ray is not started."""
    folder = copy_old_folder(tmp_path / "copy")
    assert folder.states() == {"search": "interrupted", "tablets": "interrupted"}
    shown = call_job("jobs/status.py", f"--storage={folder.runs}", "--name=search")
    assert "1 trained" in shown
    table = call_job("jobs/fetch_best.py", f"--storage={folder.runs}", "--list")
    lines = [line.split()[:2] for line in table.splitlines()[1:]]
    states = {"search/trials/0000": "trained", "search/trials/0001": "running", "tablets": "interrupted"}
    assert dict(lines) == states
    kept = call_job("jobs/activations.py", f"--storage={folder.runs}")
    assert kept.count("complete") == 2


@pytest.mark.tf
def test_the_model_of_the_old_interrupted_run_is_fetched(tmp_path: Path) -> None:
    """Its best checkpoint, restored."""
    metrics = copy_old_folder(tmp_path / "copy").fetch("tablets", tmp_path / "best")
    assert (metrics["run"], metrics["checkpoint"]) == ("tablets", "phase1-epoch0001-step000000")
    assert (tmp_path / "best" / "model.keras").stat().st_size > 10_000_000


@pytest.mark.ray
@pytest.mark.tf
def test_the_old_run_is_resumed_in_the_middle_of_its_epoch(continued: Continued) -> None:
    """From its newest checkpoint to its end, on the frozen features of the folder; the earlier epochs stay."""
    assert f"resumed from {NEWEST}" in continued.run_output
    assert "feature cache: the features of phase1 and phase2 exist" in continued.run_output
    run = continued.folder.runs / "tablets"
    before = read(TARGET / "runs" / "tablets" / "checkpoints" / NEWEST / "checkpoint.json")["state"]["history"]
    history = read(run / "history.json")
    assert history[: len(before)] == before
    assert [(each["phase"], each["epoch"]) for each in history] == [
        *(("phase1", epoch) for epoch in range(30)), ("phase2", 0), ("phase2", 1)
    ]  # fmt: skip
    assert read(run / "run.json")["fingerprints"] == read(TARGET / "runs" / "tablets" / "run.json")["fingerprints"]


@pytest.mark.ray
@pytest.mark.tf
def test_the_old_frozen_features_are_read_and_not_computed_again(continued: Continued) -> None:
    """The folders are the same, and so is every byte of their shards."""
    old, new = TARGET / "runs" / "activations", continued.folder.runs / "activations"
    assert {path.name for path in new.iterdir() if path.is_dir()} == {path.name for path in old.iterdir()}
    for path in old.glob("*/*.npy"):
        now = new / path.relative_to(old)
        assert hashlib.sha256(now.read_bytes()).hexdigest() == path.name.split(".")[1]


@pytest.mark.ray
@pytest.mark.tf
def test_the_old_sweep_is_resumed(continued: Continued) -> None:
    """The trial that had ended is not trained again, the interrupted one continues, the last one starts."""
    assert "resumed: 1 trials have ended" in continued.sweep_output
    old, new = (home / "runs" / "search" for home in (TARGET, continued.folder.home))
    records = {path.name: read(path / "run.json") for path in (new / "trials").iterdir()}
    assert {name: record["trial"]["state"] for name, record in records.items()} == dict.fromkeys(
        ("0000", "0001", "0002"), "trained"
    )
    assert (new / "trials/0000/history.json").read_bytes() == (old / "trials/0000/history.json").read_bytes()
    newest = max((old / "trials/0001/checkpoints").iterdir())
    before = read(newest / "checkpoint.json")["state"]["history"]
    after = read(new / "trials/0001/history.json")
    assert [each["val_loss"] for each in after[: len(before)]] == [each["val_loss"] for each in before]
    assert read(new / "sweep.json")["state"] == "complete"


@pytest.mark.ray
@pytest.mark.tf
def test_the_resumed_run_is_evaluated_and_fetched_from(continued: Continued, tmp_path: Path) -> None:
    """jobs/evaluate.py finds the test split of the old manifest at its new place, and the accuracy of result.json."""
    folder = continued.folder
    accuracy = read(folder.runs / "tablets" / "result.json")["test_accuracy"]
    call_job("jobs/evaluate.py", f"--model={folder.runs}/tablets", "--num-workers=0", f"--out={tmp_path}/evaluation")
    assert read(tmp_path / "evaluation" / "metrics.json")["accuracy"]["value"] == accuracy
    assert folder.states() == {"search": "complete", "tablets": "complete"}
    assert folder.fetch("tablets", tmp_path / "run")["state"] == "complete"
    winner = read(folder.runs / "search" / "sweep.json")["winner"]
    assert folder.fetch("search", tmp_path / "sweep")["run"] == f"search/trials/{winner:04d}"


JSON_FILES = {
    "run.json": "tablets/run.json",
    "result.json": "tablets/result.json",
    "status.json": "tablets/status.json",
    "history.json": "tablets/history.json",
    "checkpoint.json": "tablets/checkpoints/*/checkpoint.json",
    "decision.json": "tablets/model/decision.json",
    "evaluation-metrics.json": "tablets/evaluation/*/metrics.json",
    "checksums.json": "tablets/model/checksums.json",
    "shard-used.json": "activations/*/used.json",
    "sweep.json": "search/sweep.json",
    "trial-run.json": "search/trials/*/run.json",
}
PARQUET_FILES = {
    "manifest.parquet": "tablets/manifest.parquet",
    "predictions.parquet": "tablets/evaluation/test/predictions.parquet",
    "sweep.parquet": "search/sweep.parquet",
}
VERSIONED = (
    "run.json", "result.json", "status.json", "checkpoint.json", "decision.json", "sweep.json", "trial-run.json",
)  # fmt: skip
_ANSWERED = ("test_answered_error", "test_answered_error_interval", "val_accuracy_mismatch", "warnings[].classes")
# whose types depend on the numbers of the run, or on the moment
FREE = {
    "status.json": ("eta_s", "images_per_second", "hardware_warnings", "last_failures"),
    "result.json": _ANSWERED,
    "decision.json": ("error",),
    "evaluation-metrics.json": ("answered.error", "classes[].precision", "classes[].f1", "most_confused_pairs"),
    "sweep.json": ("importances", "comparison", *(f"result.{name}" for name in _ANSWERED)),
}


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.parametrize("name", [*JSON_FILES, *PARQUET_FILES])
def test_a_file_has_its_keys_and_types(name: str, continued: Continued, request: pytest.FixtureRequest) -> None:
    """A key that is added, lost or renamed shows in review."""
    runs = continued.folder.runs
    if name in PARQUET_FILES:
        lines = parquet_shape(runs / PARQUET_FILES[name])
    else:
        paths = sorted(runs.glob(JSON_FILES[name]))
        lines = with_free_keys(json_shape([path for path in paths if _is_of_today(path)]), FREE.get(name, ()))
    check_golden(f"files/{name}.txt", "\n".join(lines) + "\n", request)
    if name in VERSIONED:
        assert "schema_version: int" in lines


def test_a_shard_index_has_its_keys_and_types(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Written from the content of the old one, it differs from that only in its version."""
    for old in sorted(TARGET.glob("runs/activations/*/index.json")):
        index = read(old)
        names = {tuple(file.split(".")[0].rsplit("-", 1)): file for each in index["files"].values() for file in each}
        found = {(section, int(shard)): file for (section, shard), file in names.items()}
        write_index(str(tmp_path), ShardLayout.from_dict(index["layout"]), index["parts"], found, index["seconds"])
        assert read(tmp_path / "index.json") == index | {"schema_version": 1}
    lines = json_shape([tmp_path / "index.json"])
    check_golden("files/shard-index.json.txt", "\n".join(lines) + "\n", request)


def _is_of_today(path: Path) -> bool:
    """Whether a file has been written since the folder was copied."""
    old = TARGET / "runs" / path.relative_to(next(part for part in path.parents if part.name == "runs"))
    return not old.is_file() or old.read_bytes() != path.read_bytes()


@pytest.mark.ray
@pytest.mark.tf
def test_the_tensors_of_a_checkpoint_have_their_names_and_shapes(
    continued: Continued, request: pytest.FixtureRequest
) -> None:
    """Weights and optimizer state behind phase 2."""
    newest = continued.folder.runs / "tablets" / "checkpoints" / "phase2-epoch0002-step000000"
    lines = [f"{part} {line}" for part in ("weights", "optimizer") for line in _tensors(newest, part)]
    check_golden("files/checkpoint-tensors.txt", "\n".join(lines) + "\n", request)


def _tensors(checkpoint: Path, part: str) -> list[str]:
    return tensor_shape(checkpoint / f"{part}.safetensors")


@pytest.mark.ray
@pytest.mark.tf
def test_mlflow_shows_its_names(continued: Continued, request: pytest.FixtureRequest) -> None:
    """Parameters, metrics and tags of a run, a sweep, its trials and its winner; and the files of each."""
    if not continued.store:
        pytest.skip("mlflow-skinny is not installed")
    run, sweep = (mlflow_runs(continued.store, name) for name in ("pharmclf", "search"))
    winner = f"trial {read(continued.folder.runs / 'search' / 'sweep.json')['winner']}"
    other = next(name for name in sorted(sweep) if name not in ("search", winner))
    shown = {"run": run["tablets"], "sweep": sweep["search"], "winner": sweep[winner], "trial": sweep[other]}
    lines = [f"{kind} {line}" for kind, one in shown.items() for line in mlflow_names(one)]
    check_golden("names/mlflow.txt", "\n".join(lines) + "\n", request)


@pytest.mark.ray
@pytest.mark.tf
def test_tensorboard_shows_its_tags(continued: Continued, request: pytest.FixtureRequest) -> None:
    """Of a run, of a trial, and those of every number that an epoch can have."""
    runs = continued.folder.runs
    lines = [f"epoch {tag}" for tag in TAGS.values()]
    lines += [f"run {tag}" for tag in tensorboard_tags(runs / "tablets")]
    lines += [f"trial {tag}" for tag in tensorboard_tags(runs / "search" / "trials" / "0002")]
    check_golden("names/tensorboard.txt", "\n".join(lines) + "\n", request)
