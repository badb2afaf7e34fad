"""A small run that many tests read: killed, interrupted and completed; and the same run unbroken."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.programs import SMALL, call, finish, in_the_middle_of, kill_tree, signal_when, start, wait_for
from support.sharing import make_once

SETTINGS = [*SMALL, "--num-workers=0", "--name=run", "--target-error=10%", "--phase2.schedule=constant"]
NUM_OTHER = 45
"""Images of an extra test set that are of products of the training."""


@dataclass(frozen=True)
class TrainedRuns:
    """Storages with a run named `run`, and what it printed; tests that change a run take a copy."""

    home: Path
    images: str

    @property
    def other(self) -> Path:
        """Other images of nine of the products and of one unknown product, five each."""
        return self.home / "other"

    @property
    def interrupted(self) -> Path:
        """The storage as SIGKILL in phase 1 and SIGINT in phase 2 have left it."""
        return self.home / "interrupted"

    @property
    def complete(self) -> Path:
        """The storage after the same command has been given once more."""
        return self.home / "complete"

    @property
    def unbroken(self) -> Path:
        """The storage of a process that ran from beginning to end."""
        return self.home / "unbroken"

    def output(self, name: str) -> str:
        """What `interrupted`, `complete` or `unbroken` printed."""
        return (self.home / f"{name}.txt").read_text(encoding="utf-8")

    def flags(self, storage: Path) -> list[str]:
        """The command line of the run."""
        extra = [f"--eval-data=lamp={self.other}", "--eval-data", f"day={self.other}", f"--unknown=new={self.other}"]
        return [f"--data={self.images}", f"--storage={storage}", *SETTINGS, *extra]

    def copy(self, storage: Path) -> list[str]:
        """Copy the complete run into another storage -> its command line there."""
        shutil.copytree(self.complete, storage)
        return self.flags(storage)


def trained_runs(factory: pytest.TempPathFactory, images: str) -> TrainedRuns:
    """Made by the first process that asks for them; Ray must be running in this one."""
    return TrainedRuns(make_once(factory, "trained-runs", lambda home: _make(TrainedRuns(home, images))), images)


def _make(runs: TrainedRuns) -> None:
    from pharmclf.data.demo import write_demo

    write_demo(runs.other, seed=7, images_per_class=5)
    min(path for path in runs.other.iterdir() if path.is_dir()).rename(runs.other / "Unknown")
    flags = runs.flags(runs.complete)
    process = start(*flags)
    wait_for(process, in_the_middle_of(runs.complete / "run", 0))
    kill_tree(process)
    with signal_when(in_the_middle_of(runs.complete / "run", 1)):
        interrupted = call(*flags)
    shutil.copytree(runs.complete, runs.interrupted)
    (runs.home / "keras").mkdir()
    settings = {"floatx": "float16", "epsilon": 0.01, "backend": "torch", "image_data_format": "channels_first"}
    (runs.home / "keras" / "keras.json").write_text(json.dumps(settings))
    surroundings = {"KERAS_HOME": str(runs.home / "keras"), "KERAS_BACKEND": "torch"}
    for name, expected, ended in (
        ("interrupted", 130, interrupted),
        ("complete", 0, call(*flags)),
        ("unbroken", 0, finish(*runs.flags(runs.unbroken), **surroundings)),
    ):
        assert ended.returncode == expected, ended.stdout + ended.stderr
        (runs.home / f"{name}.txt").write_text(ended.stdout, encoding="utf-8")
