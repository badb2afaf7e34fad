"""jobs/export.py as a user runs it, and the README's script on what it has written."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.programs import REPOSITORY, call, finish, start, wait_for

from pharmclf.data.image_decoding import decode
from pharmclf.evaluation.abstention_policy import AbstentionPolicy, read_policy, write_policy
from pharmclf.evaluation.metrics import Estimate, apply_temperature

export = partial(call, program="jobs/export.py")


@pytest.fixture(scope="module")
def run(drawn_images: str, drawn_manifest: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with EfficientNet at 64 pixels; beside it what jobs/export.py makes of it, and two pictures.

    Of the pictures the model answers one, and leaves the other to a human.
    """
    from pharmclf.config import HeadConfig
    from pharmclf.models.backbones import build_backbone
    from pharmclf.models.head import build_head, build_inference_model

    folder = tmp_path_factory.mktemp("export") / "run"
    (folder / "model").mkdir(parents=True)
    model = build_inference_model(
        build_backbone("efficientnet_lite0", 64, "imagenet"), build_head(HeadConfig(), 1280, 10, 0)
    )
    model.save(folder / "model" / "model.keras")
    (folder / "model" / "labels.json").write_text(json.dumps(drawn_manifest.class_names))
    drawn_manifest.write(str(folder / "manifest.parquet"))
    pictures = [path.read_bytes() for path in sorted(Path(drawn_images).glob("*/*.jpg"))[:80:40]]
    pixels = np.stack([decode(content, 64) for content in pictures]).astype(np.float32)
    confidences = apply_temperature(np.asarray(model(pixels, training=False)), 0.5).max(axis=1)
    decision = AbstentionPolicy(
        temperature=0.5, threshold=confidences.mean(), max_error=0.01, assured=False, num_validation_images=9,
        num_answered=9, coverage=Estimate(1.0, 0.9, 1.0), error=None, upper_bound=1.0, num_needed=300,
    )  # fmt: skip
    write_policy(decision, str(folder / "model" / "decision.json"))
    for number, content in enumerate(pictures):
        (folder.parent / f"{number}.jpg").write_bytes(content)
    flags = [f"--model={folder}", f"--out={folder.parent}/exported", "--format=onnx"]
    done = finish(*flags, program="jobs/export.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    (folder.parent / "said.txt").write_text(done.stdout)
    return folder


@pytest.mark.tf
def test_a_run_is_exported_and_the_console_says_how_near_it_is(run: Path):
    """Every test image gets the same answer in onnxruntime; model, labels and what was measured lie in the folder."""
    said = [line for line in (run.parent / "said.txt").read_text().splitlines() if "(usually" not in line]
    assert len(said) == 2
    pattern = r"onnx float32, .* MB, in onnxruntime .*: largest difference .*, equal answers (\d+) of (\d+) "
    [(equal, images)] = re.findall(pattern, said[0])
    assert equal == images != "0"
    assert said[1] == f"exported: onnx into {run.parent}/exported"
    names = sorted(path.name for path in (run.parent / "exported").iterdir())
    assert names == ["decision.json", "export.json", "labels.json", "load_image.py", "model.onnx"]
    noted = json.loads((run.parent / "exported" / "export.json").read_text())["formats"]["onnx"]
    assert noted["comparison"]["num_images"] == int(images)
    assert noted["comparison"]["largest_difference"] < 1e-5
    left = sorted(path.name for path in run.parent.iterdir())
    assert left == ["0.jpg", "1.jpg", "exported", "run", "said.txt"]


@pytest.mark.tf
def test_the_script_of_the_readme_gives_the_models_answer(run: Path, tmp_path: Path):
    """With onnxruntime, Pillow and numpy alone: label and confidence of the Keras model, or that a human must look."""
    import keras

    text = (REPOSITORY / "jobs" / "README.md").read_text(encoding="utf-8")
    [script] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "onnxruntime" in block]
    model = keras.saving.load_model(run / "model" / "model.keras", compile=False)
    labels = json.loads((run / "model" / "labels.json").read_text())
    decision = read_policy(str(run / "model" / "decision.json"))
    (tmp_path / "exported").symlink_to(run.parent / "exported")
    answered = []
    for picture in (run.parent / "0.jpg", run.parent / "1.jpg"):
        shutil.copy(picture, tmp_path / "tablet.jpg")
        alone = script + "\nimport sys\nassert not {'keras', 'tensorflow', 'pharmclf'} & set(sys.modules)\n"
        done = subprocess.run([sys.executable, "-c", alone], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answer, confidence = done.stdout.rsplit(maxsplit=1)
        pixels = decode(picture.read_bytes(), 64)
        probabilities = np.asarray(model(pixels[None].astype(np.float32), training=False))
        calibrated = decision.calibrated(probabilities)[0]
        assert float(confidence) == pytest.approx(calibrated.max(), abs=0.01)  # a JPEG scaled by another step
        sure = bool(decision.accepts(calibrated.max()))
        assert answer.strip() == (labels[calibrated.argmax()] if sure else "ask a human")
        answered.append(sure)
    assert sorted(answered) == [False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model=nowhere", "--out=out", "--format=onnx"], "--model nowhere: no model there"),
        (["--model=nowhere", "--out=.", "--format=onnx"], "left as it is"),
        (["--model=nowhere", "--out=out", "--format=coreml"], "savedmodel"),
        (["--model=nowhere", "--out=out"], "--format"),
    ],
)
def test_bad_input_ends_with_2_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
):
    """The error names what was received; nothing is written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    done = export(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert words in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_signal_in_the_middle_leaves_nothing(tmp_path: Path):
    """SIGTERM ends with 143; what was written so far is deleted."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "labels.json").write_text("[]")
    with zipfile.ZipFile(model / "model.keras", "w") as file:
        file.writestr("config.json", json.dumps({"config": {"layers": [{"config": {"batch_shape": [None, 8, 8, 3]}}]}}))
    Image.new("RGB", (8, 8)).save(model / "image.png")  # TensorFlow, which comes next, takes seconds to load
    flags = [f"--model={model}", f"--images={model}", f"--out={tmp_path}/out", "--format=savedmodel"]
    process = start(*flags, program="jobs/export.py")
    wait_for(process, lambda: any(path.name.startswith(".out.") for path in tmp_path.iterdir()))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
