"""jobs/fetch_best.py as a user runs it: after a real run, in the middle of one, and with bad input."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.epoch_records import epoch_record
from support.programs import call, finish, start, wait_for
from support.trained_runs import TrainedRuns

from pharmclf.config import load_yaml
from pharmclf.core.hashing import sha256_file
from pharmclf.data.image_decoding import decode
from pharmclf.training.checkpoint import read_checkpoint

FILES = ["config.yaml", "labels.json", "metrics.json", "model.keras"]
OF_A_TESTED_MODEL = sorted([*FILES, "decision.json", "strangeness.npz", "README.md"])


fetch = partial(call, program="jobs/fetch_best.py")


def load(out: Path) -> Any:
    import keras

    return keras.saving.load_model(out / "model.keras", compile=False)


@pytest.mark.ray
@pytest.mark.tf
def test_the_fetched_model_predicts_what_the_run_has_reported(trained: TrainedRuns, tmp_path: Path):
    """The probabilities of every test image are those that the run's evaluation stored, class by class."""
    out = tmp_path / "out"
    done = finish(f"--storage={trained.complete}", f"--out={out}", program="jobs/fetch_best.py", timeout=300)
    assert done.returncode == 0, done.stderr
    assert f"fetched: the model of run run into {out}" in done.stdout
    assert sorted(path.name for path in out.iterdir()) == OF_A_TESTED_MODEL
    run = trained.complete / "run"
    result = json.loads((run / "result.json").read_text())
    about = json.loads((out / "metrics.json").read_text())
    assert about["result"] == result
    assert about["sha256"] == sha256_file(out / "model.keras") == sha256_file(run / "model" / "model.keras")
    assert about["checkpoint"] == result["best_checkpoint"].rsplit("/", 1)[-1]
    assert about["val_accuracy"] == pytest.approx(result["val_accuracy"])
    assert load_yaml(out / "config.yaml").image_size == 64

    predictions = pq.read_table(run / "evaluation" / "test" / "predictions.parquet").to_pydict()
    images = np.stack([decode(Path(path).read_bytes(), 64) for path in predictions["path"]])
    probabilities = load(out).predict(images.astype(np.float32), verbose=0)
    np.testing.assert_allclose(probabilities, np.array(predictions["probabilities"]), atol=1e-5)
    labels = json.loads((out / "labels.json").read_text())
    assert [labels[number] for number in probabilities.argmax(axis=1)] == predictions["predicted"]


@pytest.mark.ray
@pytest.mark.tf
def test_an_interrupted_run_gives_the_weights_of_its_best_checkpoint(trained: TrainedRuns, tmp_path: Path):
    """Every tensor of the checkpoint is in the restored model, bit for bit; the console says that it is untested."""
    out = tmp_path / "out"
    done = fetch(f"--storage={trained.interrupted}", "--name=run", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert "run run is not complete" in done.stdout
    assert done.stderr == ""
    assert sorted(path.name for path in out.iterdir()) == FILES
    about = json.loads((out / "metrics.json").read_text())
    assert about["state"] == "interrupted"
    assert "result" not in about
    checkpoint = read_checkpoint(str(trained.interrupted / "run" / "checkpoints" / about["checkpoint"]))
    weights = checkpoint.tensors("weights")
    variables = {"/".join(v.path.split("/")[-2:]): v.numpy() for v in load(out).variables}
    assert len(weights) >= 2
    for name, array in weights.items():
        assert np.array_equal(variables["/".join(name.split("/")[-2:])], array), name
    assert json.loads((out / "labels.json").read_text()) == json.loads(
        (trained.complete / "run" / "model" / "labels.json").read_text()
    )


@pytest.mark.ray
@pytest.mark.tf
def test_the_list_shows_states_and_scores(trained: TrainedRuns):
    """A test accuracy where the run is complete, "-" where it is not; nothing is written."""
    shown = [fetch(f"--storage={storage}", "--list") for storage in (trained.interrupted, trained.complete)]
    assert [done.returncode for done in shown] == [0, 0]
    interrupted, complete = (done.stdout.splitlines()[1].split() for done in shown)
    assert interrupted[:4] == ["run", "interrupted", "efficientnet_lite0", "phase2"]
    assert interrupted[-2] == "-"
    result = json.loads((trained.complete / "run" / "result.json").read_text())
    assert complete[:2] == ["run", "complete"]
    assert complete[-2:] == [f"{result['test_accuracy']:.4f}", result["best_checkpoint"].rsplit("/", 1)[-1]]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--list"], "nothing there"),
        (["--out=best"], "nothing there"),
        ([], "--out: received nothing"),
        (["--out=."], "not empty"),
        (["--metric=f1", "--list"], "val_accuracy"),
        (["--name=a", "--experiment=b", "--list"], "received both"),
        (["--no-such-flag=1"], "no-such-flag"),
    ],
)
def test_bad_input_ends_with_2_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
):
    """The error names what was received; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    done = fetch(f"--storage={tmp_path}/runs", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_middle_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int):
    """SIGINT ends with 130, SIGTERM with 143; what was fetched so far is deleted."""
    run = tmp_path / "runs" / "run"
    (run / "model").mkdir(parents=True)
    epoch = epoch_record(val_accuracy=0.5, val_loss=1.0).to_dict()
    record = {"settings": {}, "seconds": 1.0, "state": "complete", "config": {}, "fingerprints": {"data": ""}}
    result = {"best_checkpoint": "checkpoints/phase1-epoch0001-step000000"}
    for name, value in (("run", record), ("result", result), ("history", [epoch]), ("model/checksums", {})):
        (run / f"{name}.json").write_text(json.dumps(value))
    with open(run / "model" / "model.keras", "wb") as file:
        file.truncate(40 << 30)  # holes, which take no room and minutes to read
    process = start(f"--storage={tmp_path}/runs", f"--out={tmp_path}/out", program="jobs/fetch_best.py")
    wait_for(process, _downloading(tmp_path))
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def _downloading(folder: Path) -> Callable[[], bool]:
    return lambda: any(folder.glob(".out.*.part/model.keras"))
