"""A Ray head started by the command line, as on a cluster, on ports of its own, and `ray job` on it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    """Of its job server."""
    ray_address: str
    """What RAY_ADDRESS takes."""
    environment: dict[str, str]
    folder: Path = REPOSITORY
    """Where `ray job` is called."""

    def job(self, verb: str, *arguments: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
        """`ray job VERB`."""
        command = [RAY, "job", verb, "--address", self.address, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )

    def submit(self, *entrypoint: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` with variables for the job, waiting for the end."""
        given = ["--working-dir", ".", "--runtime-env-json", json.dumps({"env_vars": variables})]
        return self.job("submit", *given, "--", *entrypoint)

    def begin(self, name: str, *entrypoint: str) -> None:
        """`ray job submit` with the project's own runtime environment, under a name, without waiting."""
        given = ["--working-dir", ".", "--runtime-env", "jobs/runtime-env.yaml", "--submission-id", name, "--no-wait"]
        begun = self.job("submit", *given, "--", *entrypoint)
        assert begun.returncode == 0, begun.stdout + begun.stderr

    def log(self, name: str) -> str:
        """What a job has printed so far."""
        return self.job("logs", name).stdout

    def wait_until(self, name: str, happened: Callable[[], bool], patience_s: float = 300) -> None:
        """Wait for something that a job does."""
        deadline = time.monotonic() + patience_s
        while not happened():
            if time.monotonic() > deadline:
                pytest.fail(f"it did not happen within {patience_s:.0f} s; the job's log:\n{self.log(name)}")
            time.sleep(0.1)

    def wait_until_it_takes_jobs(self, process: subprocess.Popen[bytes]) -> None:
        """Submit jobs that do nothing until one succeeds: the job server answers before a node's agent takes jobs."""
        deadline, answer = time.monotonic() + _READY_S, ""
        while (left := deadline - time.monotonic()) > 0:
            if process.poll() is not None:
                pytest.fail(f"`ray start` ended with {process.returncode} before it took a job; {answer}")
            try:
                ended = self.job("submit", "--", "true", timeout_s=left)
            except subprocess.TimeoutExpired:
                break
            if ended.returncode == 0:
                return
            answer = f"its last answer: {(ended.stdout + ended.stderr)[-1000:]}"
            time.sleep(0.5)
        pytest.fail(f"the Ray head at {self.address} took no job within {_READY_S:.0f} s; {answer or 'no answer'}")


@contextlib.contextmanager
def running_head(
    *,
    with_token: bool,
    dashboard_host: str = "127.0.0.1",
    metrics_port: int | None = None,
    python: Path | None = None,
) -> Iterator[Head]:
    """`ray start --head`; stopped by the ids of its own processes.

    Args:
        with_token: whether it asks for one, which the head's `environment` then holds.
        dashboard_host: where its job server listens.
        metrics_port: where the node's metrics are; None: anywhere.
        python: interpreter of the node and of its workers; None: the one of this process.
    """
    import psutil

    port, dashboard = free_port(), free_port()
    hidden = {"RAY_ADDRESS"} if python is None else {"RAY_ADDRESS", "PYTHONPATH"}  # which may lead to this repository
    python = python or Path(sys.executable)
    binaries = str(python.parent)
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    # jobs find their `python` on the PATH of `ray start`
    environment |= {"PATH": f"{binaries}{os.pathsep}{environment['PATH']}", "RAY_AUTH_MODE": "disabled"}
    if with_token:
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    folder = Path("/tmp") / f"ray-test-{port}"  # short, since the paths of Ray's sockets have a limit
    head = subprocess.Popen(
        [
            str(python), "-m", "ray.scripts.scripts", "start", "--head", "--block",
            f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=2",
            "--node-ip-address=127.0.0.1", f"--dashboard-host={dashboard_host}", f"--temp-dir={folder}",
            # its usual port, 10001, may be held by the Ray of another test
            f"--ray-client-server-port={free_port()}",
            # so may the agent's, 52365, and jobs are then refused for ever
            "--dashboard-agent-listen-port=0", "--disable-usage-stats",
            *([f"--metrics-export-port={metrics_port}"] if metrics_port else []),
        ],
        env=environment,
        cwd="/",  # jobs without a folder run there, and Python looks there first
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        started = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", environment)
        started.wait_until_it_takes_jobs(head)
        yield started
    finally:
        if head.poll() is None:
            family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
            head.terminate()
            _, alive = psutil.wait_procs(family, timeout=10)  # after Ray Data's work it would take longer
            for member in alive:
                member.kill()
            psutil.wait_procs(alive, timeout=10)
            head.wait(timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


class Refused(OSError):
    """An answer that is not 2xx: its status and its text."""


def ask(url: str, method: str = "GET", body: Any = None, token: str | None = None) -> Any:
    """A request with JSON both ways.

    Raises:
        Refused: the server says no.
        OSError: it does not answer.
    """
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise Refused(error.code, error.read().decode("utf-8", "replace")) from error
