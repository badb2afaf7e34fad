"""The folder that version 1 has written, copied, and the jobs of today at work on it, in this process."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.programs import call_job
from write_run_v1 import SWEEP, TARGET, TRAIN

PRESET = ["--crop=off", "--phase2.image-size="]
"""What the preset of that version had not; a run that goes on keeps its settings, so that they are given."""


@dataclass(frozen=True)
class OldFolder:
    """A copy of `run_v1`; see write_run_v1.py."""

    home: Path

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def flags(self) -> list[str]:
        return [f"--data={self.home}/images", f"--storage={self.runs}"]

    def resume_run(self, store: str = "") -> str:
        """The command of the run again; `store` is a database of MLflow."""
        return call_job("jobs/train.py", *TRAIN, *PRESET, *self.flags, f"--mlflow={store}")

    def resume_sweep(self, store: str = "") -> str:
        space = f"--space={self.home}/space.yaml"
        return call_job("tune/sweep.py", *SWEEP, *self.flags, space, f"--mlflow={store}")

    def fetch(self, name: str, out: Path) -> dict[str, Any]:
        """Fetch the best model of a run or sweep -> its metrics.json."""
        call_job("jobs/fetch_best.py", f"--storage={self.runs}", f"--experiment={name}", f"--out={out}")
        return dict(json.loads((out / "metrics.json").read_text()))

    def states(self) -> dict[str, str]:
        """What jobs/status.py shows: name -> state."""
        shown = json.loads(call_job("jobs/status.py", f"--storage={self.runs}", "--json"))
        return {run["name"]: run["state"] for run in shown}


def copy_old_folder(target: Path) -> OldFolder:
    shutil.copytree(TARGET, target)
    return OldFolder(target)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Continued:
    """The folder of version 1 after today's code has completed its run and its sweep."""

    folder: OldFolder
    store: str
    """The database of MLflow; "" where it is not installed."""
    run_output: str
    sweep_output: str
