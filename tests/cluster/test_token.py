"""Token authentication of a cluster's job server."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator

import pytest
from namespaces import Refused, ask
from support.ray_head import Head, running_head

pytestmark = pytest.mark.ray


@pytest.fixture
def token_head() -> Iterator[Head]:
    """A head on 127.0.0.1 that wants a token."""
    with running_head(with_token=True) as head:
        yield head


def say_accepted(head: Head, **environment: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` of a job that says a word, with the token unless variables say otherwise."""
    return dataclasses.replace(head, environment=head.environment | environment).job("submit", "--", "echo", "accepted")


def jobs(head: Head) -> list[dict[str, str]]:
    """All that it has taken."""
    return ask(f"{head.address}/api/jobs/", token=head.environment["RAY_AUTH_TOKEN"])


def test_a_job_without_the_token_is_refused(token_head: Head):
    """None and a wrong one: refused, and no job is there; the right one: it runs."""
    job = {"entrypoint": "echo accepted"}
    for token, status in ((None, 401), ("0" * 64, 403)):
        with pytest.raises(Refused) as refused:
            ask(f"{token_head.address}/api/jobs/", "POST", job, token)
        assert refused.value.args[0] == status
    without = say_accepted(token_head, RAY_AUTH_MODE="disabled")
    wrong = say_accepted(token_head, RAY_AUTH_TOKEN="0" * 64)
    for ended, reason in ((without, "Missing authentication token"), (wrong, "Invalid authentication token")):
        assert ended.returncode != 0
        assert reason in ended.stdout + ended.stderr
    before = jobs(token_head)
    ended = say_accepted(token_head)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "accepted" in ended.stdout
    assert len(jobs(token_head)) == len(before) + 1
    assert {job["entrypoint"] for job in before} == {"true"}  # with which the head was tried
