"""Token authentication of a cluster's job server."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from namespaces import RAY, Refused, ask, kill

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class TokenHead:
    """A head on 127.0.0.1 that wants a token."""

    url: str
    token: str
    environment: dict[str, str]

    def submit(self, **environment: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit` of a job that says a word, with the token unless variables say otherwise."""
        return subprocess.run(
            [RAY, "job", "submit", "--address", self.url, "--", "echo", "accepted"],
            env=self.environment | environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def takes_jobs(self) -> bool:
        """Whether a job that does nothing, with the token, is taken: a node's agent is there later than the server."""
        try:
            ask(f"{self.url}/api/jobs/", "POST", {"entrypoint": "true"}, self.token)
        except OSError:
            return False
        return True

    def jobs(self) -> list[dict[str, str]]:
        """All that it has taken."""
        return ask(f"{self.url}/api/jobs/", token=self.token)


@pytest.fixture
def token_head(tmp_path: Path) -> Iterator[TokenHead]:
    """`ray start --head` in token mode; stopped by the ids of its own processes."""
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, dashboard = one.getsockname()[1], other.getsockname()[1]
    token = secrets.token_hex(32)
    (tmp_path / "token").write_text(token, "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    head = subprocess.Popen(
        [
            RAY, "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}", "--num-cpus=1",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--temp-dir=/tmp/ray-token-{port}",
            "--dashboard-agent-listen-port=0", "--disable-usage-stats",
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    started = TokenHead(f"http://127.0.0.1:{dashboard}", token, environment)
    try:
        until = time.monotonic() + 180
        while not started.takes_jobs():
            assert head.poll() is None, "`ray start` has ended"
            assert time.monotonic() < until, "it takes no jobs"
            time.sleep(0.5)
        yield started
    finally:
        family = [*psutil.Process(head.pid).children(recursive=True), psutil.Process(head.pid)]
        head.terminate()
        _, alive = psutil.wait_procs(family, timeout=30)
        kill(alive)
        head.wait(timeout=10)


def test_a_job_without_the_token_is_refused(token_head: TokenHead):
    """None and a wrong one: refused, and no job is there; the right one: it runs."""
    job = {"entrypoint": "echo accepted"}
    for token, status in ((None, 401), ("0" * 64, 403)):
        with pytest.raises(Refused) as refused:
            ask(f"{token_head.url}/api/jobs/", "POST", job, token)
        assert refused.value.args[0] == status
    without = token_head.submit(RAY_AUTH_MODE="disabled")
    wrong = token_head.submit(RAY_AUTH_TOKEN="0" * 64)
    for ended, reason in ((without, "Missing authentication token"), (wrong, "Invalid authentication token")):
        assert ended.returncode != 0
        assert reason in ended.stdout + ended.stderr
    before = token_head.jobs()
    ended = token_head.submit()
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "accepted" in ended.stdout
    assert len(token_head.jobs()) == len(before) + 1
    assert {job["entrypoint"] for job in before} == {"true"}  # with which the head was tried
