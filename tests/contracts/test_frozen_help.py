"""The flags of every job, as --help shows them on a terminal of 120 columns."""

from __future__ import annotations

import pytest
from goldens import GOLDENS, check_golden
from support.programs import PROGRAMS, REPOSITORY, call_job

from pharmclf.benchmark.registry import BENCHMARKS


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


def help_of(program: str, *command: str) -> str:
    """What --help prints, without spaces at the ends of lines."""
    text = call_job(program, *command, "--help")
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_help_of_a_job_is_its_golden_text(program: str, request: pytest.FixtureRequest) -> None:
    """A flag that is added, lost, renamed or changed shows in review."""
    check_golden(_golden_of(program), help_of(program), request)


def test_the_options_of_each_benchmark_are_their_golden_text(request: pytest.FixtureRequest) -> None:
    """Those that jobs/benchmark.py does not have without the name of a part."""
    config, texts = f"--config={REPOSITORY}/pharmclf/presets/benchmark.yaml", []  # so that all have the same defaults
    shared = set(help_of("jobs/benchmark.py", config).splitlines())
    for part in sorted(BENCHMARKS):
        lines = help_of("jobs/benchmark.py", part, config).splitlines()
        texts += [f"# {part}", *(line for line in lines if line not in shared)]
    check_golden("help/benchmark-parts.txt", "\n".join(texts) + "\n", request)


def test_no_golden_help_is_left_over() -> None:
    """Each belongs to a job."""
    expected = {*map(_golden_of, PROGRAMS), "help/benchmark-parts.txt"}
    assert {f"help/{path.name}" for path in (GOLDENS / "help").iterdir()} == expected


def _golden_of(program: str) -> str:
    return f"help/{program.removesuffix('.py').replace('/', '-')}.txt"
