"""The flags of every command, as --help shows them on a terminal of 120 columns."""

from __future__ import annotations

import contextlib
import io

import pytest
from goldens import GOLDENS, check_golden

from pharmclf.benchmark.registry import BENCHMARKS
from pharmclf.cli import run_command
from pharmclf.commands.registry import COMMANDS


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


def help_of(*command: str) -> str:
    """What --help prints, without spaces at the ends of lines."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        run_command([*command, "--help"])
    return "".join(f"{line.rstrip()}\n" for line in output.getvalue().splitlines())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_its_golden_text(name: str, request: pytest.FixtureRequest) -> None:
    """A flag that is added, lost, renamed or changed shows in review."""
    check_golden(f"help/{name}.txt", help_of(name), request)


def test_the_list_of_commands_is_its_golden_text(request: pytest.FixtureRequest) -> None:
    check_golden("help/pharmclf.txt", help_of(), request)


def test_the_options_of_each_benchmark_are_their_golden_text(request: pytest.FixtureRequest) -> None:
    """Those that `pharmclf benchmark` does not have without the name of a part."""
    config, texts = "--config=benchmark", []  # so that all have the same defaults
    shared = set(help_of("benchmark", config).splitlines())
    for part in sorted(BENCHMARKS):
        lines = help_of("benchmark", part, config).splitlines()
        texts += [f"# {part}", *(line for line in lines if line not in shared)]
    check_golden("help/benchmark-parts.txt", "\n".join(texts) + "\n", request)


def test_no_golden_help_is_left_over() -> None:
    """Each belongs to a command."""
    expected = {f"{name}.txt" for name in (*COMMANDS, "pharmclf", "benchmark-parts")}
    assert {path.name for path in (GOLDENS / "help").iterdir()} == expected
