"""jobs/train.py as a user runs it: a process of its own, killed and interrupted, fed with rubbish, submitted."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.programs import SMALL, final, finish, in_the_middle_of, kill_tree, start, wait_for

from pharmclf.config import RunConfig, SplitConfig
from pharmclf.data.prepare import split_manifest


@pytest.mark.ray
@pytest.mark.tf
def test_a_run_killed_in_both_phases_ends_as_the_unbroken_one(drawn_images: str, tmp_path: Path) -> None:
    """SIGKILL for driver and workers in phase 1, again in phase 2, the same command each time: equal bit for bit.

    The unbroken run has a user's settings of Keras around it, which change nothing.
    """
    shared = [f"--data={drawn_images}", f"--storage={tmp_path}", *SMALL]
    broken = [*shared, "--name=broken"]
    for phase in (0, 1):
        process = start(*broken)
        wait_for(process, in_the_middle_of(tmp_path / "broken", phase))
        kill_tree(process)
    ended = finish(*broken)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "resumed from phase2" in ended.stdout
    settings = {"floatx": "float16", "epsilon": 0.01, "backend": "torch", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(settings))
    whole = finish(*shared, "--name=whole", KERAS_HOME=str(tmp_path), KERAS_BACKEND="torch")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    one, other = final(tmp_path / "broken"), final(tmp_path / "whole")
    for file in ("weights", "optimizer"):
        assert all(np.array_equal(one[file][name], other[file][name]) for name in other[file])
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("broken", "whole")]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]
    again = finish(*broken)
    assert again.returncode == 0
    assert "is complete already" in again.stdout


@pytest.mark.ray
@pytest.mark.tf
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_writes_a_checkpoint_and_leaves(
    drawn_images: str, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """SIGINT ends with 130, SIGTERM with 143, each with a checkpoint in the middle of the epoch and the run's state."""
    process = start(f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", "--workers=0", *SMALL)
    wait_for(process, in_the_middle_of(tmp_path / "run", 0))
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == code, output
    assert "stopped on request; checkpoint phase" in output
    assert json.loads((tmp_path / "run" / "run.json").read_text())["state"] == "interrupted"


@pytest.mark.ray
@pytest.mark.tf
def test_a_finished_run_leaves_everything_that_is_promised(drawn_images: str, tmp_path: Path) -> None:
    """result.json with its keys, pictures, predictions, and a .keras that loads and predicts without this package.

    Given more epochs, the run trains those that are left, and all of that is renewed.
    """
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=run", "--workers=0", *SMALL]
    flags += ["--phase2.schedule=constant"]
    ended = finish(*flags)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    _check_promises(drawn_images, tmp_path)
    before = json.loads((tmp_path / "run" / "history.json").read_text())
    ended = finish(*flags, "--phase2.epochs=5")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "note: phase2.epochs is 4 there and 5 now: training continues from the newest checkpoint" in ended.stdout
    assert "resumed from phase2-epoch0004-step000000" in ended.stdout
    after = json.loads((tmp_path / "run" / "history.json").read_text())
    assert after[:8] == before
    assert [(epoch["phase"], epoch["epoch"]) for epoch in after[8:]] == [("phase2", 4)]
    assert [p["epochs"] for p in json.loads((tmp_path / "run" / "result.json").read_text())["phases"]] == [4, 5]
    shorter = finish(*flags)
    assert shorter.returncode == 2
    assert "phase2.epochs: 5 there, 4 now" in shorter.stderr


def _check_promises(drawn_images: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
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
        f"file = '{next(Path(drawn_images).glob('*/*.jpg'))}'\n"
        "image = keras.utils.load_img(file, target_size=model.input_shape[1:3], interpolation='bilinear')\n"
        "probabilities = model.predict(np.array(image, 'float32')[None], verbose=0)[0]\n"
        "assert abs(probabilities.sum() - 1) < 1e-5 and len(probabilities) == len(labels)\n"
        "assert not any(name.startswith('pharmclf') for name in sys.modules)\n"
    )
    loaded = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert loaded.returncode == 0, loaded.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data=/nowhere/at/all"], "/nowhere/at/all"),
        (["--workers=two"], "workers: received 'two'"),
        (["--config=/nowhere.yaml"], "--config /nowhere.yaml"),
        (["--split.test=1.5"], "split.test: received 1.5"),
        (["--backbone=resnet5"], "resnet50"),
        (["--no-such-flag=1"], "no-such-flag"),
    ],
)
def test_bad_input_ends_with_2_and_no_traceback(tmp_path: Path, arguments: list[str], words: str) -> None:
    """The error names what was received; nothing is written."""
    ended = finish(f"--storage={tmp_path}/runs", *arguments)
    assert ended.returncode == 2
    assert words in ended.stderr + ended.stdout
    assert "Traceback" not in ended.stderr
    assert not list(tmp_path.rglob("checkpoints"))


@pytest.mark.ray
@pytest.mark.tf
def test_a_folder_with_rubbish_trains_on_what_is_good(drawn_images: str, tmp_path: Path) -> None:
    """Bad files are named with their reasons and left out, those too that change after the data set was listed; with
    --max-bad 1% the same folder ends with 2, untrained. The run is complete even when the folder is gone."""
    data = tmp_path / "data"
    shutil.copytree(drawn_images, data)
    first, second = sorted(folder for folder in data.iterdir() if folder.is_dir())[:2]
    whole = next(first.glob("*.jpg")).read_bytes()
    (first / "empty.jpg").write_bytes(b"")
    (first / "short.jpg").write_bytes(whole[: len(whole) // 2])
    (second / "words.jpg").write_text("not an image")
    flags = [f"--data={data}", f"--storage={tmp_path}", "--workers=0", *SMALL, "--phase1.epochs=1", "--phase2.epochs=0"]
    config = RunConfig(data=str(data), storage=str(tmp_path), split=SplitConfig(test=0.25, validation=0.25))
    manifest = split_manifest(config, str(tmp_path / "none"))
    # of the same size and time, so that the data set counts as unchanged
    lost = {split: Path(manifest.table["path"][manifest.rows(split)[2]]) for split in ("train", "validation", "test")}
    for path in lost.values():
        content, times = bytearray(path.read_bytes()), path.stat()
        content[-3] ^= 1  # it decodes, to other pixels
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    ended = finish(*flags, "--name=trained")
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
    full = finish(*flags, "--name=full", "--max-bad=4%")  # three of 83 are bad before the training begins
    assert full.returncode == 2
    assert re.search(r"[45] of 83 images are bad .* not what they were when the data set was listed", full.stderr)
    assert json.loads((tmp_path / "full" / "run.json").read_text())["state"] == "failed"
    refused = finish(*flags, "--name=refused", "--max-bad=1%")
    assert refused.returncode == 2
    assert "3 of 83 images are bad" in refused.stderr
    assert not (tmp_path / "refused" / "checkpoints").exists()
    shutil.rmtree(data)
    again = finish(*flags, "--name=trained")
    assert again.returncode == 0, again.stderr
    assert "is complete already" in again.stdout


@pytest.mark.tf
def test_a_dry_run_lists_layers_and_counts(drawn_images: str, tmp_path: Path) -> None:
    """Each phase's trained and frozen parameters add up to the model's, and nothing is kept."""
    ended = finish(f"--data={drawn_images}", f"--storage={tmp_path}/runs", *SMALL, "--dry-run")
    assert ended.returncode == 0, ended.stderr
    found = re.findall(r"phase \d: ([\d,]+) parameters trained, ([\d,]+) frozen", ended.stdout)
    sums = {sum(int(number.replace(",", "")) for number in pair) for pair in found}
    assert len(found) == 2
    assert len(sums) == 1
    assert "block15_expand_conv" in ended.stdout
    assert not (tmp_path / "runs" / "images").exists()


@pytest.mark.ray
@pytest.mark.tf
def test_a_submitted_job_ends_with_the_summary(drawn_images: str, tmp_path: Path, ray_head: Any) -> None:
    """`ray job submit --working-dir . -- python jobs/train.py` takes the same flags and prints the summary last.

    Variables that the submission sets and the job would set itself are no conflict, and stay the submission's. A sweep
    without --storage is refused, since its winner would be deleted with the copy of the working directory.
    """
    flags = [f"--data={drawn_images}", f"--storage={tmp_path}", "--name=job", *SMALL]
    submitted = ray_head.submit("python", "jobs/train.py", *flags, AWS_REGION="eu-west-1", TF_CPP_MIN_LOG_LEVEL="2")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert "job: test accuracy" in submitted.stdout
    assert json.loads((tmp_path / "job" / "result.json").read_text())["workers"] == 1
    lost = ray_head.submit("python", "tune/sweep.py", f"--data={drawn_images}", "--name=search", "--trials=2")
    assert "failed with exit code 2" in lost.stdout
    assert re.search(
        r"error: --storage: received /\S+/runs, which is in Ray's copy of the working directory", lost.stdout
    )
    refused = ray_head.submit("python", "jobs/train.py", "--workers=none")
    assert refused.returncode != 0
    assert "workers: received 'none'" in refused.stdout + refused.stderr


@pytest.mark.ray
@pytest.mark.tf
def test_the_name_of_another_run_is_refused_and_left_alone(drawn_images: str, tmp_path: Path) -> None:
    """The same name with another setting, or other images, ends with 2 and names the field; the run stays as it was."""
    shared = [f"--storage={tmp_path}", "--name=run", "--workers=0", *SMALL, "--phase1.epochs=1", "--phase2.epochs=0"]
    assert finish(f"--data={drawn_images}", *shared).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    changed = finish(f"--data={drawn_images}", *shared, "--seed=1")
    assert changed.returncode == 2
    assert "seed: 0 there, 1 now" in changed.stderr
    other = tmp_path / "other"
    shutil.copytree(drawn_images, other)
    for image in sorted(other.glob("*/*.jpg"))[:20]:  # of 80: more than --max-bad
        image.unlink()
    replaced = finish(f"--data={other}", *shared)
    assert replaced.returncode == 2
    assert "has begun with other images" in replaced.stderr
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
