"""A Ray head started by the command line, as on a cluster, on ports of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
_READY_S = 180.0  # measured: 26 s with the processor busy


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Head:
    """A running head node."""

    address: str
    environment: dict[str, str]

    def submit(self, *entrypoint: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` from the repository with variables for the job, waiting for the end."""
        arguments = [RAY, "job", "submit", "--address", self.address, "--working-dir", "."]
        arguments += ["--runtime-env-json", json.dumps({"env_vars": variables}), "--", *entrypoint]
        return subprocess.run(
            arguments, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, timeout=600
        )

    def wait_until_it_takes_jobs(self, process: subprocess.Popen[bytes]) -> None:
        """Submit jobs that do nothing until one succeeds: the job server answers before a node's agent takes jobs."""
        deadline, answer = time.monotonic() + _READY_S, ""
        while (left := deadline - time.monotonic()) > 0:
            if process.poll() is not None:
                pytest.fail(f"`ray start` ended with {process.returncode} before it took a job; {answer}")
            tried = [RAY, "job", "submit", "--address", self.address, "--", "true"]
            try:
                ended = subprocess.run(tried, env=self.environment, capture_output=True, text=True, timeout=left)
            except subprocess.TimeoutExpired:
                break
            if ended.returncode == 0:
                return
            answer = f"its last answer: {(ended.stdout + ended.stderr)[-1000:]}"
            time.sleep(0.5)
        pytest.fail(f"the Ray head at {self.address} took no job within {_READY_S:.0f} s; {answer or 'no answer'}")


@pytest.fixture
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` with its job server on 127.0.0.1; stopped by the ids of its own processes."""
    import psutil

    port, dashboard = free_port(), free_port()
    binaries = str(Path(sys.executable).parent)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # jobs find their `python` on the PATH of `ray start`
    environment |= {"PATH": f"{binaries}{os.pathsep}{environment['PATH']}", "RAY_AUTH_MODE": "disabled"}
    folder = Path("/tmp") / f"ray-test-{port}"  # short, since the paths of Ray's sockets have a limit
    head = subprocess.Popen(
        [
            RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir={folder}",
            # the agent's own port would be 52365, which the Ray of another test may hold: jobs are then refused for ever
            "--dashboard-agent-listen-port=0", "--disable-usage-stats",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        started = Head(f"http://127.0.0.1:{dashboard}", environment)
        started.wait_until_it_takes_jobs(head)
        yield started
    finally:
        if head.poll() is None:
            family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
            head.terminate()
            _, alive = psutil.wait_procs(family, timeout=30)
            for member in alive:
                member.kill()
            psutil.wait_procs(alive, timeout=10)
            head.wait(timeout=10)
