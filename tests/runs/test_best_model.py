"""The best run's model arrives whole or not at all, copied or restored from a checkpoint."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.run_folders import MODEL, complete_run, incomplete_run, small_config, write_record

from pharmclf import storage
from pharmclf.config import ConfigError, RunConfig, load_yaml
from pharmclf.core import console
from pharmclf.core.compat.keras import flatten_layers
from pharmclf.core.hashing import sha256_bytes
from pharmclf.core.terminal import Terminal
from pharmclf.data.manifest import Manifest
from pharmclf.runs import best_model
from pharmclf.runs.best_model import CorruptedRunError, fetch_best
from pharmclf.runs.registry import RunInfo

FILES = ["config.yaml", "labels.json", "metrics.json", "model.keras"]


def _fetch(root: str, out: Path, **arguments: Any) -> tuple[RunInfo, list[str]]:
    said: list[str] = []
    return fetch_best(root, out, say=said.append, **arguments), said


def _flip(location: str) -> str:
    """Change one byte of a file; the sha256 that it has then."""
    content = bytearray(storage.read_bytes(location))
    content[len(content) // 2] ^= 1
    storage.write_bytes(location, bytes(content))
    return sha256_bytes(bytes(content))


def test_the_best_model_arrives_with_its_labels_config_and_metrics(root: str, tmp_path: Path):
    """From any kind of storage, into a folder that is not there yet; bytes as they were, and nothing beside it."""
    complete_run(root, "worse", [(1, 0, 0.5, 0.1)])
    folder = complete_run(root, "sweep/trials/3", [(1, 0, 0.5, 1.0), (2, 0, 0.75, 0.5)], test=0.7, seed=7)
    depth = b'{"white_level": 4095}'  # of a model that was trained on frames of 12 bits
    storage.write_bytes(storage.join(folder, "model/pixels.json"), depth)
    checksums = storage.read_json(storage.join(folder, "model/checksums.json")) | {"pixels.json": sha256_bytes(depth)}
    storage.write_json(storage.join(folder, "model/checksums.json"), checksums)
    out = tmp_path / "a" / "best"
    fetched = _fetch(root, out)[0]
    assert fetched.name == "sweep/trials/3"
    assert sorted(path.name for path in out.iterdir()) == [*FILES, "pixels.json"]
    assert (out / "pixels.json").read_bytes() == depth
    assert [path.name for path in out.parent.iterdir()] == ["best"]
    assert (out / "model.keras").read_bytes() == MODEL
    assert json.loads((out / "labels.json").read_text()) == ["one", "two"]
    assert load_yaml(out / "config.yaml") == small_config(seed=7)
    assert json.loads((out / "metrics.json").read_text()) == {
        "run": "sweep/trials/3",
        "state": "complete",
        "metric": "val_accuracy",
        "value": 0.75,
        "phase": "phase2",
        "epoch": 0,
        "checkpoint": "phase2-epoch0001-step000000",
        "val_accuracy": 0.75,
        "val_loss": 0.5,
        "sha256": sha256_bytes(MODEL),
        "result": storage.read_json(storage.join(folder, "result.json")),
    }
    assert _fetch(root, tmp_path / "by-loss", metric="val_loss")[0].name == "worse"


@pytest.mark.parametrize("file", ["model.keras", "labels.json", "checksums.json"])
def test_a_damaged_model_is_named_and_the_next_best_is_taken(tmp_path: Path, file: str):
    """A flipped byte or a missing file of the best run: the second one arrives, and the console says why."""
    root = str(tmp_path / "runs")
    best = complete_run(root, "best", [(1, 0, 0.9, 0.1)])
    complete_run(root, "second", [(1, 0, 0.8, 0.1)])
    if file == "checksums.json":
        Path(best, "model", file).unlink()
    else:
        _flip(storage.join(best, "model", file))
    fetched, said = _fetch(root, tmp_path / "out")
    assert fetched.name == "second"
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["run"] == "second"
    left_out = next(line for line in said if line.startswith("left out: run best: "))
    assert file in left_out
    assert "the next best is run second" in left_out


def test_a_damaged_model_without_a_next_best_leaves_nothing(tmp_path: Path):
    root = str(tmp_path / "runs")
    location = storage.join(complete_run(root, "only", [(1, 0, 0.9, 0.1)]), "model/model.keras")
    found = _flip(location)
    with pytest.raises(CorruptedRunError) as error:
        _fetch(root, tmp_path / "out")
    assert all(text in str(error.value) for text in (location, found, sha256_bytes(MODEL)))
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_fetch_that_breaks_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException):
    """The disk fills up, or Ctrl-C, with half of the model written: no output and no rest of it."""
    root = str(tmp_path / "runs")
    complete_run(root, "best", [(1, 0, 0.9, 0.1)])

    def broken(location: str, target: Path, progress: Callable[[int], None] | None = None) -> None:
        target.write_bytes(MODEL[:100])
        raise failure

    monkeypatch.setattr(storage, "download", broken)
    with pytest.raises(type(failure)):
        _fetch(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_an_output_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path):
    """A folder with a file, a file, a remote place; an empty folder and a link to one are taken."""
    root = str(tmp_path / "runs")
    complete_run(root, "best", [(1, 0, 0.9, 0.1)])
    full, file, empty, link = (tmp_path / name for name in ("full", "file", "empty", "link"))
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    empty.mkdir()
    for out in (full, file, file / "below", "s3://bucket/out", "/", ""):
        with pytest.raises(ConfigError, match="--out: "):
            _fetch(root, Path(out) if isinstance(out, Path) else out)  # type: ignore[arg-type]
    assert [path.name for path in full.iterdir()] == ["mine.txt"]
    assert file.read_text() == "mine"
    link.symlink_to(empty)
    _fetch(root, link)
    assert link.is_symlink()
    assert sorted(path.name for path in empty.iterdir()) == FILES


def test_an_output_that_is_taken_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another process fills the folder during the download: its files stay, ours go."""
    root, out = str(tmp_path / "runs"), tmp_path / "out"
    complete_run(root, "best", [(1, 0, 0.9, 0.1)])
    download = storage.download

    def slow(location: str, target: Path, progress: Callable[[int], None] | None = None) -> None:
        download(location, target, progress)
        out.mkdir(exist_ok=True)
        (out / "other.txt").write_text("other")

    monkeypatch.setattr(storage, "download", slow)
    with pytest.raises(ConfigError, match="--out: "):
        _fetch(root, out)
    assert [path.name for path in out.iterdir()] == ["other.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "runs"]


def test_bad_input_is_named(tmp_path: Path):
    write_record(f"{tmp_path}/runs", "started", "running")
    with pytest.raises(ConfigError, match="no finished epoch in started"):
        _fetch(f"{tmp_path}/runs", tmp_path / "out")
    with pytest.raises(ConfigError, match="--metric: received 'f1', expected val_accuracy or val_loss"):
        _fetch(f"{tmp_path}/runs", tmp_path / "out", metric="f1")


def test_a_storage_that_does_not_answer_damages_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The fetch fails as such; no second best is taken for it."""
    root = str(tmp_path / "runs")
    incomplete_run(root, "best", [(1, 0, 0.9, 0.1)])
    complete_run(root, "second", [(1, 0, 0.8, 0.1)])
    read_bytes = storage.read_bytes

    def away(location: str) -> bytes:
        if location.endswith("manifest.parquet"):
            raise storage.StorageUnavailableError("no answer for 180 s")
        return read_bytes(location)

    monkeypatch.setattr(storage, "read_bytes", away)
    with pytest.raises(storage.StorageUnavailableError):
        _fetch(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_run_that_goes_on_meanwhile_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its best checkpoint is replaced and deleted between the listing and the fetch: that is no damage."""
    root = str(tmp_path / "runs")
    folder = incomplete_run(root, "live", [(1, 0, 0.7, 0.5)], state="running")
    tried: list[str] = []

    def restored(config: RunConfig, phase: Any, num_classes: int, checkpoint: Any, *, crops: bool) -> Any:
        tried.append(checkpoint.name)
        if len(tried) == 1:
            storage.delete_folder(storage.join(folder, "checkpoints"))
            incomplete_run(root, "live", [(1, 0, 0.7, 0.5), (1, 1, 0.8, 0.4)], state="running")
            raise ValueError("weights.safetensors cannot be read")
        return type("Model", (), {"save": staticmethod(lambda path: path.write_bytes(MODEL))})

    monkeypatch.setattr(best_model, "_restore_model", restored)
    fetched, said = _fetch(root, tmp_path / "out")
    assert tried == ["phase1-epoch0001-step000000", "phase1-epoch0002-step000000"]
    assert fetched.best is not None
    assert fetched.best.val_accuracy == 0.8
    assert any("run live " in line and "again" in line for line in said)
    assert "result" not in json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_runs_on_different_images_are_remarked_upon(tmp_path: Path):
    root = str(tmp_path / "runs")
    complete_run(root, "one", [(1, 0, 0.9, 0.1)])
    assert not any("different images" in line for line in _fetch(root, tmp_path / "a")[1])
    complete_run(root, "two", [(1, 0, 0.8, 0.1)], data="other images")
    assert any("different images" in line for line in _fetch(root, tmp_path / "b")[1])
    assert not any("different images" in line for line in _fetch(root, tmp_path / "c", name="two")[1])


def test_a_download_shows_percent_size_and_speed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """And an ETA once the speed is known, in a line every few seconds."""
    now = [100.0]
    monkeypatch.setattr(console, "_terminal", Terminal(clock=lambda: now[0]))
    monkeypatch.setattr("pharmclf.progress.time.monotonic", lambda: now[0])
    report = best_model._download_progress("model.keras", 100_000_000)
    for done in range(1, 101):
        report(done * 1_000_000)
        now[0] += 0.1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("downloading model.keras: ")
    for part in (r"5\d % of 100\.0 MB", r"10\.0 MB/s", "ETA 0:05"):
        assert re.search(part, line), line


def test_a_complete_run_is_fetched_without_tensorflow(tmp_path: Path):
    """Neither TensorFlow nor Keras nor Ray is imported, so it takes a second and not twenty."""
    complete_run(f"{tmp_path}/runs", "best", [(1, 0, 0.9, 0.1)])
    code = (
        f"import sys, pharmclf.runs.best_model as runs; runs.fetch_best('{tmp_path}/runs', '{tmp_path}/out', "
        "say=print)\n"
        "assert not {'tensorflow', 'keras', 'ray'} & set(sys.modules), 'too much is imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.keras").is_file()


@pytest.mark.tf
def test_an_incomplete_run_gives_the_weights_of_its_best_checkpoint(root: str, tmp_path: Path):
    """The best of all runs is not complete: its model is restored, with the head that the checkpoint holds."""
    import keras

    complete_run(root, "second", [(1, 0, 0.8, 0.1)])
    incomplete_run(root, "best", [(1, 0, 0.9, 0.5), (1, 1, 0.85, 0.4)])
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        fetched, _ = _fetch(root, tmp_path / "out")
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert (fetched.name, fetched.checkpoint) == ("best", "phase1-epoch0001-step000000")
    model = keras.saving.load_model(tmp_path / "out" / "model.keras", compile=False)
    logits = next(layer for layer in flatten_layers(model) if layer.name == "head_logits")
    assert np.array_equal(logits.get_weights()[0], np.random.default_rng(0).normal(size=(1280, 2)).astype(np.float32))
    probabilities = model.predict(np.full((1, 32, 32, 3), 200, np.float32), verbose=0)
    assert probabilities.dtype == np.float32
    assert json.loads((tmp_path / "out" / "labels.json").read_text()) == ["one", "two"]
    about = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (about["state"], about["value"], about["epoch"]) == ("interrupted", 0.9, 0)
    assert about["sha256"] == sha256_bytes((tmp_path / "out" / "model.keras").read_bytes())


@pytest.mark.tf
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("weights", "weights.safetensors has sha256"),
        ("manifest", "manifest.parquet"),
        ("images", "not of the images"),
        ("file", "no-such-file.h5"),
        ("config", "unknown key"),
    ],
)
def test_a_checkpoint_that_cannot_be_restored_is_named_and_left_out(tmp_path: Path, damage: str, words: str):
    """Damaged tensors, a manifest that is gone or of other images, weights that nothing holds, keys of the future."""
    root = str(tmp_path / "runs")
    complete_run(root, "second", [(1, 0, 0.8, 0.1)])
    weights = f"{tmp_path}/no-such-file.h5" if damage == "file" else "imagenet"
    folder = incomplete_run(root, "best", [(1, 0, 0.9, 0.5)], weights=weights)
    if damage == "weights":
        _flip(storage.join(folder, "checkpoints/phase1-epoch0001-step000000/weights.safetensors"))
    elif damage == "manifest":
        Path(folder, "manifest.parquet").unlink()
    elif damage == "images":
        manifest = Manifest.read(f"{folder}/manifest.parquet")
        manifest.with_splits(["train", "test"]).write(f"{folder}/manifest.parquet")
    elif damage == "config":
        record = storage.read_json(f"{folder}/run.json")
        record["config"]["of_a_later_version"] = 1
        storage.write_json(f"{folder}/run.json", record)
    fetched, said = _fetch(root, tmp_path / "out")
    assert fetched.name == "second"
    assert any(line.startswith("left out: run best: ") and words in line for line in said), said
