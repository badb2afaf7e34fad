"""A call in a child process: its value, its error, its end, its time and its output."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial

import pytest

from pharmclf.config import ConfigError
from pharmclf.core.subprocess_call import SubprocessDiedError, run_in_subprocess


def add(first: int, second: int) -> tuple[int, int]:
    sys.stderr.write("a complaint\n")
    return first + second, os.getpid()


def refuse() -> None:
    raise ConfigError("received 3, expected 4")


class UnreadableError(Exception):
    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


def fail_unreadably() -> None:
    raise UnreadableError("some", "words")


def kill_itself(number: int) -> None:
    os.write(2, b"before the end\n")
    os.kill(os.getpid(), number)


def return_and_crash() -> int:
    import atexit

    atexit.register(os.abort)
    return 7


def test_the_value_comes_from_another_process_and_its_output_is_read() -> None:
    texts: list[str] = []
    total, pid = run_in_subprocess(partial(add, 1, 2), read_output=texts.append)
    assert (total, texts) == (3, ["a complaint\n"])
    assert pid != os.getpid()


def test_an_error_is_raised_here_with_the_traceback_of_the_child() -> None:
    with pytest.raises(ConfigError, match="received 3, expected 4") as caught:
        run_in_subprocess(refuse)
    assert "in refuse" in "".join(caught.value.__notes__)


def test_an_error_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(RuntimeError, match="UnreadableError: some words"):
        run_in_subprocess(fail_unreadably)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (partial(os._exit, 9), "^exit code 9$"),
        (partial(kill_itself, signal.SIGILL), "^signal SIGILL: before the end$"),
        (partial(kill_itself, signal.SIGKILL), "^signal SIGKILL: before the end .*memory"),
    ],
)
def test_a_process_that_dies_is_an_error_with_its_end(call: partial[None], message: str) -> None:
    with pytest.raises(SubprocessDiedError, match=message):
        run_in_subprocess(call, read_output=lambda _: None)


def test_a_process_that_takes_too_long_is_killed() -> None:
    began = time.monotonic()
    with pytest.raises(SubprocessDiedError, match="no answer within 1 s"):
        run_in_subprocess(partial(time.sleep, 60), timeout_s=1.0)
    assert time.monotonic() - began < 30


def test_a_crash_after_the_return_does_not_lose_the_value() -> None:
    assert run_in_subprocess(return_and_crash, read_output=lambda _: None) == 7


def test_the_environment_is_the_given_one() -> None:
    variables = os.environ | {"PHARMCLF_TEST_VALUE": "here"}
    assert run_in_subprocess(partial(os.getenv, "PHARMCLF_TEST_VALUE"), environment=variables) == "here"
