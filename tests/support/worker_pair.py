"""Two workers in processes of their own, joined by TF_CONFIG alone; each may see the storage as its node would."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pharmclf.training.context import TrainingContext
from support.ray_head import free_port
from support.recorder import Recorder


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One call of the loop by both workers."""

    job: TrainingContext
    stop_after: int | None = None
    """Steps after which the chief asks for a stop."""
    other_folder: str = ""
    """The run's folder as rank 1 sees it; "": the chief's."""
    shown_after_s: float | None = None
    """When rank 1 begins to see what is in the chief's folder; None: never."""
    other_weights: str = ""
    """Those of rank 1; "": the chief's."""
    patience_s: float = 60.0
    """How long a worker waits for a checkpoint that it does not see."""


def train_as_pair(scenes: Sequence[Scene], folder: Path, timeout_s: float = 400) -> list[list[dict[str, Any]]]:
    """What came of each scene, for rank 0 and rank 1: `outcome` of the loop, or its `error`.

    Rank 0 is ended with rank 1, as Ray Train does it.
    """
    (folder / "scenes").write_bytes(pickle.dumps(list(scenes)))
    ports = f"{free_port()},{free_port()}"
    roots = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), ports, str(folder)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(roots), "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = workers[1].communicate(timeout=timeout_s)[0]
    finally:
        for worker in workers:
            worker.kill()
        said_by_chief = workers[0].communicate()[0]
    assert workers[1].returncode == 0, said + said_by_chief
    lines = [(folder / str(rank)).read_text().splitlines() for rank in range(2)]
    return [[json.loads(line) for line in each] for each in lines]


def _work(rank: int, ports: str, folder: Path) -> None:
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports.split(",")]}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": rank}})
    from pharmclf.models.devices import configure_devices
    from pharmclf.training import collectives, resume, trainer

    configure_devices(deterministic=True, gpus=False)
    workers = collectives.init_distributed(1)
    for scene in pickle.loads((folder / "scenes").read_bytes()):
        recorder, job = Recorder(scene.stop_after), scene.job
        resume._STALE_VIEW_TIMEOUT_S = scene.patience_s
        if rank == 1:
            weights = scene.other_weights or job.config.weights
            config = dataclasses.replace(job.config, weights=weights)
            seen = scene.other_folder or job.folder
            if scene.shown_after_s is not None:
                threading.Thread(target=_show, args=(job.folder, seen, scene.shown_after_s)).start()
            job = dataclasses.replace(job, folder=seen, config=config)
        try:
            line = {"outcome": dataclasses.asdict(trainer.Trainer(job, workers, recorder).fit())}
        except RuntimeError as error:
            line = {"error": f"{type(error).__name__}: {error}"}
        with (folder / str(rank)).open("a") as file:
            file.write(json.dumps(line | {"polls": recorder.polls, "notes": recorder.notes}) + "\n")


def _show(source: str, target: str, after_s: float) -> None:
    time.sleep(after_s)
    shutil.copytree(source, target, dirs_exist_ok=True)


if __name__ == "__main__":
    _work(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
