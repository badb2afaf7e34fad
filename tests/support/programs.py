"""The programs of jobs/ and tune/: as processes that can be watched and killed, or called in this process, which is
quicker, since TensorFlow is imported and Ray may be running."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import psutil

from pharmclf.core.program import run_job
from pharmclf.training.checkpoint import list_checkpoints, newest_checkpoint

REPOSITORY = Path(__file__).parents[2]
PROGRAMS = sorted(
    str(path.relative_to(REPOSITORY)) for path in [*REPOSITORY.glob("jobs/*.py"), REPOSITORY / "tune" / "sweep.py"]
)
SMALL = [
    "--image-size=64", "--batch-size=10", "--unfreeze-blocks=2", "--checkpoint-interval-s=0.3",
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


def main_of(program: str) -> Callable[[], int]:
    """The main function of a program, such as jobs/train.py."""
    name = f"program_{Path(program).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, REPOSITORY / program)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    main: Callable[[], int] = sys.modules[name].main
    return main


def call(*arguments: str, program: str = "jobs/train.py") -> subprocess.CompletedProcess[str]:
    """A program that has ended, called in this process with a command line; it runs on the Ray of this process."""
    command, output, errors = [program, *arguments], io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with mock.patch.object(sys, "argv", command):
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
                run_job(main_of(program))
    except SystemExit as end:
        return subprocess.CompletedProcess(command, int(end.code or 0), output.getvalue(), errors.getvalue())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    raise AssertionError("run_job ends with an exit code")


def call_job(program: str, *arguments: str) -> str:
    """What a program prints that is called in this process; its exit code must be 0."""
    ended = call(*arguments, program=program)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@contextlib.contextmanager
def signal_when(happened: Callable[[], bool], number: signal.Signals = signal.SIGINT) -> Iterator[None]:
    """Within, this process gets a signal once something has happened, if it handles it then."""
    over, before = threading.Event(), signal.getsignal(number)

    def watch() -> None:
        while not over.wait(0.02):
            if happened() and signal.getsignal(number) is not before:
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


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
