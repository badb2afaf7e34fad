"""Runs the programs as a user does: each a process of its own that can be watched, killed and interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from pharmclf.training.checkpoint import list_checkpoints, newest_checkpoint

REPOSITORY = Path(__file__).parents[2]
SMALL = [
    "--image-size=64", "--batch-size=10", "--unfreeze-blocks=2", "--checkpoint-every-s=0.3",
    "--phase1.epochs=4", "--phase2.epochs=4", "--split.test=0.25", "--split.validation=0.25",
]  # fmt: skip


def environment() -> dict[str, str]:
    """The environment without any Ray that the tests themselves use."""
    hidden = {"RAY_ADDRESS", "RAY_JOB_ID"}
    return {name: value for name, value in os.environ.items() if name not in hidden} | {"PYTHONPATH": str(REPOSITORY)}


def start(*arguments: str, program: str = "jobs/train.py", **variables: str) -> subprocess.Popen[str]:
    """A program of the repository that has begun, in a session of its own; `variables` join its environment."""
    return subprocess.Popen(
        [sys.executable, str(REPOSITORY / program), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=environment() | variables,
    )


def finish(
    *arguments: str, program: str = "jobs/train.py", timeout: float = 600, **variables: str
) -> subprocess.CompletedProcess[str]:
    """A program of the repository that has ended, within `timeout` seconds; as `start`."""
    return subprocess.run(
        [sys.executable, str(REPOSITORY / program), *arguments],
        capture_output=True,
        text=True,
        env=environment() | variables,
        timeout=timeout,
    )


def wait_for(process: subprocess.Popen[str], happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL for the driver, its Ray and all workers: everything that it started."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    psutil.wait_procs(family, timeout=60)


def in_the_middle_of(folder: Path | str, phase: int) -> Callable[[], bool]:
    def happened() -> bool:
        positions = [checkpoint.position for checkpoint in list_checkpoints(f"{folder}/checkpoints")]
        return any(position.phase == phase and position.step > 0 for position in positions)

    return happened


def final(folder: Path | str) -> dict[str, dict[str, np.ndarray]]:
    found = newest_checkpoint(f"{folder}/checkpoints")
    assert found is not None
    return found[1]
