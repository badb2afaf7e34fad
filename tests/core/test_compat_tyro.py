"""The private part of tyro that says why a command line is refused, with the installed version."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import tyro

from pharmclf.core.compat.tyro import Refusal, handle_refusals


@dataclass
class Options:
    count: int
    kind: Literal["one", "two"] = "one"


class RefusedError(Exception):
    """Raised by the handler."""


CASES = {
    "": Refusal(kind="missing", words=("--count",)),
    "--count": Refusal(kind="no value", words=("--count",), expected="INT"),
    "--count 1 --kind three": Refusal(kind="no choice", words=("--kind",), value="three", choices=("one", "two")),
    "--count 1 --other 2": Refusal(kind="unknown", words=("--other", "2")),
}


def refused(line: str) -> Refusal:
    found: list[Refusal] = []

    def handle(refusal: Refusal) -> None:
        found.append(refusal)
        raise RefusedError

    with pytest.raises(RefusedError), handle_refusals(handle):
        tyro.cli(Options, args=line.split())
    return found[0]


@pytest.mark.parametrize("line", CASES)
def test_tyro_says_why_it_refuses(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert refused(line) == CASES[line]
    assert capfd.readouterr() == ("", "")


def test_tyro_names_the_flag_of_a_bad_value() -> None:
    found = refused("--count x")
    assert (found.kind, found.words, found.expected) == ("bad value", ("--count",), "INT")
    assert "'x'" in found.message


def test_a_good_command_line_is_no_matter_of_the_handler() -> None:
    with handle_refusals(lambda refusal: pytest.fail(str(refusal))):
        assert tyro.cli(Options, args=["--count", "3"]) == Options(3)
