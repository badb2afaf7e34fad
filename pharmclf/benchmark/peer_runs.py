"""The contestants of the comparison of accuracy over time: each trains once, in a separate process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from pharmclf import storage
from pharmclf.benchmark import torch_finetune
from pharmclf.benchmark.measure import AccuracyPoint
from pharmclf.benchmark.pharmclf_run import run_to_end
from pharmclf.benchmark.torch_finetune import TorchJob
from pharmclf.config import RunConfig
from pharmclf.core.console import show_activity
from pharmclf.core.errors import RunError, describe_exit
from pharmclf.core.stderr_filter import suppress_native_stderr
from pharmclf.data.image_set import ImageSet
from pharmclf.data.manifest import Manifest
from pharmclf.data.prepare import MANIFEST_FILE
from pharmclf.data.ray_loader import load_images
from pharmclf.monitoring.cores import usable_cores
from pharmclf.storage.local_disk import cache_folder
from pharmclf.training.checkpoint import METADATA_FILE, list_checkpoints
from pharmclf.training.phases import build_phases

_BATCH_SIZE, _LEARNING_RATE = 32, 3e-4
REQUIREMENTS = ("torch==2.13.0+cpu", "efficientnet-lite-pytorch==0.1.0", "numpy>=2.1,<3", "pillow>=11.3,<14")
_INDEX = "https://download.pytorch.org/whl/cpu"
_USUAL_S = 120.0
_COMPLETE = "requirements.txt"  # written last


def run_pharmclf_points(config: RunConfig, began: float) -> list[AccuracyPoint]:
    """Train as `pharmclf train` does; then test the checkpoint of each epoch, which takes its time from its file.

    Args:
        config: the run; all its checkpoints are kept, which changes no number.
        began: `time.time()` at the start of this process.

    Raises:
        RunError: the run failed.
    """
    epochs = config.phase1.epochs + config.phase2.epochs
    config = dataclasses.replace(config, name="run", num_checkpoints_to_keep=epochs + 1, checkpoint_interval_s=0.0)
    folder = run_to_end(config)
    from pharmclf.training.save_model import restore_model  # with TensorFlow, which the run has imported

    manifest = Manifest.read(storage.join(folder, MANIFEST_FILE))  # with the products that the run looks at
    phases = {phase.number: phase for phase in build_phases(config)}
    numbers = {name: number for number, name in enumerate(manifest.class_names)}
    rows, points = manifest.rows("test"), []
    images, _ = load_images(ImageSet.of(manifest).select(rows), config.image_size)
    labels = manifest.table["label"].map(numbers).to_numpy()[rows]
    for checkpoint in list_checkpoints(storage.join(folder, "checkpoints")):
        model = restore_model(config, phases[checkpoint.position.phase], len(numbers), checkpoint)
        batches = [images[first : first + 64].astype(np.float32) for first in range(0, len(images), 64)]
        outputs = [model(batch, training=False) for batch in batches]  # without a graph, which each model would build
        predicted = np.concatenate([np.asarray(output) for output in outputs]).argmax(axis=1)
        epoch = checkpoint.state["history"][-1]
        point = AccuracyPoint(
            seconds=Path(checkpoint.location, METADATA_FILE).stat().st_mtime - began,
            val_accuracy=epoch["val_accuracy"],
            val_loss=epoch["val_loss"],
            test_accuracy=float((predicted == labels).mean()),
        )
        points.append(point)
    return points


def run_torch_points(config: RunConfig, manifest: Manifest, epochs: int, python: Path) -> list[AccuracyPoint]:
    """Fine-tune all of EfficientNet-Lite0 in PyTorch, from its packaged ImageNet weights.

    Args:
        config: the run, for its image size and seed.
        manifest: with splits, of images on a local disk.

    Raises:
        RunError: the program failed.
    """
    with suppress_native_stderr():
        from pharmclf.models.efficientnet_lite import packaged_weights_path  # imports TensorFlow

    numbers = {name: number for number, name in enumerate(manifest.class_names)}
    table = manifest.ok
    places = {split: np.flatnonzero(table["split"] == split).tolist() for split in ("train", "validation", "test")}
    job = TorchJob(
        began=time.time(),
        weights=str(packaged_weights_path(torch_finetune.NETWORK.replace("-", "_"))),
        paths=[storage.absolute(path) for path in table["path"]],
        labels=[numbers[label] for label in table["label"]],
        splits=places,
        num_classes=len(numbers),
        image_size=config.image_size,
        batch_size=_BATCH_SIZE,
        epochs=epochs,
        learning_rate=_LEARNING_RATE,
        threads=usable_cores(),
        seed=config.seed,
    )
    command = [str(python), "-I", torch_finetune.__file__]  # isolated from the folders of this process
    done = subprocess.run(command, input=json.dumps(vars(job)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RunError(f"the program in PyTorch ended with {describe_exit(done.returncode, done.stderr)}")
    return [AccuracyPoint(**json.loads(line)) for line in done.stdout.splitlines()]


def environment_folder() -> Path:
    """The folder: `PHARMCLF_TORCH_ENVIRONMENT`, else one for this user among the temporary files."""
    return cache_folder("PHARMCLF_TORCH_ENVIRONMENT", "torch")


def find_torch_python() -> Path | None:
    """The Python of the environment; None where it is missing, not complete, or has other requirements."""
    folder = environment_folder()
    complete = folder / _COMPLETE
    is_complete = complete.is_file() and complete.read_text("utf-8") == "\n".join(REQUIREMENTS)
    return folder / "bin" / "python" if is_complete else None


def get_or_make_torch_python() -> Path:
    """The Python of the environment, which is made where it is missing.

    Raises:
        RunError: pip cannot install it.
    """
    if python := find_torch_python():
        return python
    folder = environment_folder()
    made = folder / "bin" / "python"
    install = [str(made), "-m", "pip", "install", "--quiet", *REQUIREMENTS]
    with show_activity(f"installing PyTorch for CPUs into {folder}", _USUAL_S):
        failure = _run([sys.executable, "-m", "venv", "--clear", str(folder)])
        if not failure and (failure := _run(install)):  # first from the indexes that pip is configured for
            failure = _run([*install, "--extra-index-url", _INDEX])
    if failure:
        raise RunError(f"PyTorch cannot be installed into {folder}: {failure}")
    (folder / _COMPLETE).write_text("\n".join(REQUIREMENTS), "utf-8")
    return made


def _run(command: list[str]) -> str:
    """Run a command -> why it failed, or ""."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return describe_exit(done.returncode, done.stderr) if done.returncode else ""
