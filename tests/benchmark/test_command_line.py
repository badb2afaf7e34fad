"""The command line of the benchmarks: its first word names a benchmark, whose options are then flags."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from pharmclf.benchmark.measure import MeasureOptions
from pharmclf.commands import benchmark as job
from pharmclf.core.errors import ConfigError


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would be measured."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(job, "run_benchmark", lambda *arguments: calls.append(arguments) or {})
    monkeypatch.setattr(job, "run_benchmarks", lambda *arguments: calls.append(arguments) or {})
    monkeypatch.setattr(job.storage, "write_json", lambda *_: None)
    return calls


def call(monkeypatch: pytest.MonkeyPatch, *line: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *line])
    return job.main()


@pytest.mark.parametrize("quick", [[], ["--quick"]])
def test_the_first_word_names_a_benchmark(calls: list[Any], quick: list[str], monkeypatch: pytest.MonkeyPatch):
    """Before and after --quick; its own options are flags, and other values may be called as it is."""
    for line in ([*quick, "plain"], ["plain", *quick]):
        assert call(monkeypatch, *line, "--sides", "plain", "--storage", "sweep") == 0
        name, config, options = calls.pop()
        assert (name, config.storage, options.sides) == ("plain", "sweep", ("plain",))
        assert isinstance(options, MeasureOptions)
        assert (config.image_size == 128) == bool(quick)


def test_a_benchmark_without_options_gets_none(calls: list[Any], monkeypatch: pytest.MonkeyPatch):
    assert call(monkeypatch, "storage", "--seed", "3") == 0
    name, config, options = calls.pop()
    assert (name, config.seed, options) == ("storage", 3, None)


def test_without_a_name_all_run(calls: list[Any], monkeypatch: pytest.MonkeyPatch):
    """Each with its own defaults, and with the flags; --quick takes fewer."""
    assert call(monkeypatch, "--storage", "sweep") == 0
    names, configs = calls.pop()
    assert names == job.ALL
    assert {config.storage for _, config in configs.values()} == {"sweep"}
    assert len({config.image_size for _, config in configs.values()}) > 1
    assert call(monkeypatch, "--quick") == 0
    assert calls.pop()[0] == job.QUICK


@pytest.mark.parametrize(
    ("line", "message"), [(["plian"], "did you mean plain"), (["--seed", "3", "plain"], "Give it first")]
)
def test_a_name_that_is_unknown_or_late_is_refused(line: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=message):
        call(monkeypatch, *line)
