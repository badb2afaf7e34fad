"""Writes tests/contracts/run_v1, which holds files of schema version 1: an interrupted run, an interrupted sweep,
the frozen features that both read, and their images.

Run it with the code that the fixture represents: commit 25a7f74, in which few files name their version.

    PYTHONPATH=. python tests/contracts/write_run_v1.py

The commands that `test_frozen_files.py` repeats are `TRAIN` and `SWEEP`; a changed command needs a new fixture.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
TARGET = Path(__file__).with_name("run_v1")
CLASSES, IMAGES_PER_CLASS, SIDE = 4, 12, 64
SMALL = [
    "--backbone=efficientnet_lite0", "--image-size=32", "--batch-size=8", "--head.dense", "--augment.views=1",
    "--split.test=0.25", "--split.validation=0.25", "--checkpoint-every-s=0", "--keep-checkpoints=1",
    "--precision=float32", "--accelerator=cpu", "--stopping.early-patience=0", "--phase1.epochs=30",
    "--phase1.learning-rate=0.001", "--phase2.learning-rate=0.0001",
]  # fmt: skip
TRAIN = [
    *SMALL, "--name=tablets", "--workers=0", "--activations=always", "--unfreeze-blocks=1", "--phase2.epochs=2",
    "--augment.rotation-deg=180",
]  # fmt: skip
SWEEP = [
    *SMALL, "--name=search", "--unfreeze-blocks=0", "--phase2.epochs=0", "--augment.rotation-deg=180",
    "--search=grid", "--trials=3", "--halving=False", "--batch-heads=False",
]  # fmt: skip
SPACE = "head.dropout: {values: [0.1, 0.3]}\n"


def main() -> None:
    """Draw the images, interrupt a run and a sweep, keep what they leave."""
    with tempfile.TemporaryDirectory(prefix="run_v1-") as name:
        home = Path(name)
        _write_images(home)
        (home / "space.yaml").write_text(SPACE)
        shared = [f"--data={home}/images", f"--storage={home}/runs"]
        run = home / "runs" / "tablets"
        while not _is_within_epoch(run):  # the moment of the signal is a matter of chance
            shutil.rmtree(run, ignore_errors=True)
            _interrupt(["jobs/train.py", *TRAIN, *shared], lambda: _has_epochs(run, 2))
        space = f"--space={home}/space.yaml"
        _interrupt(["tune/sweep.py", *SWEEP, *shared, space], lambda: _one_trial_ended(home / "runs/search"))
        shutil.rmtree(home / "runs" / "manifests")  # a cache by location
        for path in [*home.glob("runs/*/*.png"), *home.glob("runs/**/.lease.json.lock")]:
            path.unlink()
        shutil.rmtree(TARGET, ignore_errors=True)
        shutil.copytree(home, TARGET)


def _write_images(home: Path) -> None:
    from pharmclf.data.demo import write_demo

    drawn = write_demo(home / "drawn", seed=0, images_per_class=IMAGES_PER_CLASS)
    for folder in sorted(path for path in drawn.iterdir() if path.is_dir())[:CLASSES]:
        (home / "images" / folder.name).mkdir(parents=True)
        for path in folder.iterdir():
            Image.open(path).resize((SIDE, SIDE)).save(home / "images" / folder.name / path.name, quality=85)
    shutil.rmtree(drawn)


def _interrupt(command: list[str], is_time: Callable[[], bool]) -> None:
    """Run a job and send it SIGINT at some moment."""
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT)
    while not is_time():
        if process.poll() is not None:
            raise RuntimeError(f"{command[0]} ended before it could be interrupted")
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    if process.wait(timeout=300) != 130:
        raise RuntimeError(f"{command[0]}: exit code {process.returncode}, expected 130")


def _has_epochs(folder: Path, count: int) -> bool:
    return any(path.name >= f"phase1-epoch{count:04d}-step000001" for path in folder.glob("checkpoints/phase1-*"))


def _is_within_epoch(folder: Path) -> bool:
    newest = max((path.name for path in folder.glob("checkpoints/*")), default="step000000")
    return not newest.endswith("step000000")


def _one_trial_ended(folder: Path) -> bool:
    """Whether a trial has ended and the next one is in training."""
    try:
        states = {
            path.parent: json.loads(path.read_text())["trial"]["state"]
            for path in sorted(folder.glob("trials/*/run.json"))
        }
    except (ValueError, OSError):  # it is being written
        return False
    running = [trial for trial, state in states.items() if state == "running"]
    return "trained" in states.values() and any(_has_epochs(trial, 1) for trial in running)


if __name__ == "__main__":
    main()
