"""jobs/train.py as a user runs it: killed and interrupted, fed with rubbish, submitted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.programs import SMALL, call, final, finish, in_the_middle_of, kill_tree, start, wait_for
from support.trained_runs import TrainedRuns

from pharmclf.config import RunConfig, SplitConfig
from pharmclf.data.prepare import split_manifest


def same_bits(one: Path, other: Path) -> bool:
    """Whether two storages hold a run with the same final weights and optimizer state."""
    ours, theirs = final(one / "run"), final(other / "run")
    return all(
        np.array_equal(ours[file][name], theirs[file][name])
        for file in ("weights", "optimizer")
        for name in theirs[file]
    )


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_killed_and_interrupted_ends_as_the_unbroken_one(trained: TrainedRuns) -> None:
    """SIGKILL in phase 1, SIGINT in phase 2, the same command each time: equal bit for bit.

    The unbroken run has a user's settings of Keras around it, which change nothing.
    """
    assert "resumed from phase1" in trained.output("interrupted")
    assert "stopped on request; checkpoint phase2" in trained.output("interrupted")
    assert json.loads((trained.interrupted / "run" / "run.json").read_text())["state"] == "interrupted"
    assert "resumed from phase2" in trained.output("complete")
    assert same_bits(trained.complete, trained.unbroken)
    results = [json.loads((place / "run/result.json").read_text()) for place in (trained.complete, trained.unbroken)]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    again = call(*trained.flags(trained.complete))
    assert again.returncode == 0
    assert "is complete already" in again.stdout


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.tf
def test_a_run_of_a_ray_worker_killed_in_both_phases_ends_as_the_unbroken_one(
    drawn_images: str, tmp_path: Path
) -> None:
    """SIGKILL for driver and worker, in phase 1 and again in phase 2: equal bit for bit."""
    shared = [f"--data={drawn_images}", "--name=run", *SMALL]
    broken = [*shared, f"--storage={tmp_path}/broken"]
    for phase in (0, 1):
        process = start(*broken)
        wait_for(process, in_the_middle_of(tmp_path / "broken" / "run", phase))
        kill_tree(process)
    for flags in (broken, [*shared, f"--storage={tmp_path}/whole"]):
        ended = finish(*flags)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    assert same_bits(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.tf
def test_sigterm_writes_a_checkpoint_and_leaves(drawn_images: str, tmp_path: Path) -> None:
    """A process ends with 143, with a checkpoint in the middle of the epoch and the run's state."""
    process = start(f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", "--num-workers=0", *SMALL)
    wait_for(process, in_the_middle_of(tmp_path / "run", 0))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    assert "stopped on request; checkpoint phase" in output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"


@pytest.mark.ray
@pytest.mark.tf
def test_a_finished_run_leaves_everything_that_is_promised(trained: TrainedRuns) -> None:
    """result.json with its keys, pictures, predictions, and a .keras that loads and predicts without this package."""
    _check_promises(trained.images, trained.unbroken)


@pytest.mark.ray
@pytest.mark.tf
def test_a_complete_run_takes_more_epochs_and_no_fewer(trained: TrainedRuns, tmp_path: Path) -> None:
    """It trains those that are left, and its result is renewed."""
    flags = trained.copy(tmp_path / "copy")
    folder = tmp_path / "copy" / "run"
    before = json.loads((folder / "history.json").read_text())
    ended = call(*flags, "--phase2.epochs=5")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "note: phase2.epochs is 4 there and 5 now: training continues from the newest checkpoint" in ended.stdout
    assert "resumed from phase2-epoch0004-step000000" in ended.stdout
    after = json.loads((folder / "history.json").read_text())
    assert after[:8] == before
    assert [(epoch["phase"], epoch["epoch"]) for epoch in after[8:]] == [("phase2", 4)]
    assert [phase["epochs"] for phase in json.loads((folder / "result.json").read_text())["phases"]] == [4, 5]
    shorter = call(*flags)
    assert shorter.returncode == 2
    assert "phase2.epochs: 5 there, 4 now" in shorter.stderr


def _check_promises(images: str, storage: Path) -> None:
    folder = storage / "run"
    result = json.loads((folder / "result.json").read_text())
    promised = {
        "name", "backbone", "workers", "train_images", "val_accuracy", "test_accuracy", "test_macro_f1", "phases",
        "seconds_total", "best_checkpoint",
    }  # fmt: skip
    assert promised <= set(result)
    assert [phase["name"] for phase in result["phases"]] == ["phase1", "phase2"]
    for split in ("validation", "test"):
        for file in ("confusion_matrix.png", "sample_predictions.png", "predictions.parquet", "report.txt"):
            assert (folder / "evaluation" / split / file).stat().st_size > 0
    assert (folder / "learning_curves.png").stat().st_size > 0
    script = (
        "import json, sys, keras, numpy as np\n"
        f"model = keras.saving.load_model('{folder}/model/model.keras')\n"
        f"labels = json.load(open('{folder}/model/labels.json'))\n"
        f"file = '{next(Path(images).glob('*/*.jpg'))}'\n"
        "image = keras.utils.load_img(file, target_size=model.input_shape[1:3], interpolation='bilinear')\n"
        "probabilities = model.predict(np.array(image, 'float32')[None], verbose=0)[0]\n"
        "assert abs(probabilities.sum() - 1) < 1e-5 and len(probabilities) == len(labels)\n"
        "assert not any(name.startswith('pharmclf') for name in sys.modules)\n"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=storage, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data=/nowhere/at/all"], "/nowhere/at/all"),
        (["--num-workers=two"], "--num-workers: received 'two'"),
        (["--config=/nowhere.yaml"], "--config: received '/nowhere.yaml'"),
        (["--split.test=1.5"], "split.test: received 1.5"),
        (["--backbone=resnet5"], "resnet50"),
        (["--no-such-flag=1"], "no-such-flag"),
    ],
)
def test_bad_input_ends_with_2_and_no_traceback(tmp_path: Path, arguments: list[str], words: str) -> None:
    """The error names what was received; nothing is written."""
    ended = call(f"--storage={tmp_path}/runs", *arguments)
    assert ended.returncode == 2
    assert words in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.ray
@pytest.mark.tf
def test_a_folder_with_rubbish_trains_on_what_is_good(shared_ray: None, drawn_images: str, tmp_path: Path) -> None:
    """Bad files are named with their reasons and left out, those too that change after the data set was listed; with
    --max-invalid 1% the same folder ends with 2, untrained. The run is complete even when the folder is gone."""
    data = tmp_path / "data"
    shutil.copytree(drawn_images, data)
    first, second = sorted(folder for folder in data.iterdir() if folder.is_dir())[:2]
    whole = next(first.glob("*.jpg")).read_bytes()
    (first / "empty.jpg").write_bytes(b"")
    (first / "short.jpg").write_bytes(whole[: len(whole) // 2])
    (second / "words.jpg").write_text("not an image")
    flags = [
        f"--data={data}",
        f"--storage={tmp_path}",
        "--num-workers=0",
        *SMALL,
        "--phase1.epochs=1",
        "--phase2.epochs=0",
    ]
    config = RunConfig(data=str(data), storage=str(tmp_path), split=SplitConfig(test=0.25, validation=0.25))
    manifest = split_manifest(config, str(tmp_path / "none"))
    # of the same size and time, so that the data set counts as unchanged
    lost = {split: Path(manifest.table["path"][manifest.rows(split)[2]]) for split in ("train", "validation", "test")}
    for path in lost.values():
        content, times = bytearray(path.read_bytes()), path.stat()
        content[-3] ^= 1  # it decodes, to other pixels
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended = call(*flags, "--name=trained")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    listed = (tmp_path / "trained" / "quarantine.csv").read_text()
    assert all(name in listed for name in ("empty.jpg", "short.jpg", "words.jpg"))
    for path in lost.values():
        assert f"warning: quarantined: {path}: changed since the data set was listed" in ended.stdout
        assert f"{path},{path.parent.name},changed since the data set was listed" in listed
    result = json.loads((tmp_path / "trained" / "result.json").read_text())
    for split, key in (("train", "train_images"), ("validation", "val_images"), ("test", "test_images")):
        assert result[key] == len(manifest.rows(split)) - 1
    assert result["val_accuracy_mismatch"] is None
    full = call(*flags, "--name=full", "--max-invalid=4%")  # three of 83 are bad before the training begins
    assert full.returncode == 2
    assert re.search(r"[45] of 83 images are bad ", full.stderr)
    assert json.loads((tmp_path / "full" / "run.json").read_text())["state"] == "failed"
    refused = call(*flags, "--name=refused", "--max-invalid=1%")
    assert refused.returncode == 2
    assert "3 of 83 images are bad" in refused.stderr
    assert not (tmp_path / "refused" / "checkpoints").exists()
    shutil.rmtree(data)
    again = call(*flags, "--name=trained")
    assert again.returncode == 0, again.stderr
    assert "is complete already" in again.stdout


@pytest.mark.tf
def test_a_dry_run_lists_layers_and_counts(drawn_images: str, tmp_path: Path) -> None:
    """Each phase's trained and frozen parameters add up to the model's, and nothing is kept."""
    ended = call(f"--data={drawn_images}", f"--storage={tmp_path}/runs", *SMALL, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    found = re.findall(r"phase \d: ([\d,]+) parameters trained, ([\d,]+) frozen", ended.stdout)
    sums = {sum(int(number.replace(",", "")) for number in pair) for pair in found}
    assert len(found) == 2
    assert len(sums) == 1
    assert "block15_expand_conv" in ended.stdout
    assert not (tmp_path / "runs" / "images").exists()


@pytest.mark.ray
@pytest.mark.tf
def test_the_name_of_another_run_is_refused_and_left_alone(trained: TrainedRuns, tmp_path: Path) -> None:
    """The same name with another setting, or other images, ends with 2 and names the field; the run stays as it was."""
    flags, folder = trained.flags(trained.complete), trained.complete / "run"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    changed = call(*flags, "--seed=1")
    assert changed.returncode == 2
    assert "seed: 0 there, 1 now" in changed.stderr
    other = tmp_path / "other"
    shutil.copytree(trained.images, other)
    for image in sorted(other.glob("*/*.jpg"))[:20]:  # of 80: more than --max-invalid
        image.unlink()
    replaced = call(*flags, f"--data={other}")
    assert replaced.returncode == 2
    assert "started with other images" in replaced.stderr
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
