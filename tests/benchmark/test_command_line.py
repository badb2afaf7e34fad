import sys

import pytest

from pharmclf.benchmark.registry import BENCHMARKS
from pharmclf.cli import take_command


@pytest.mark.parametrize(
    ("line", "command", "left"),
    [
        (["plain", "--sides", "plain", "--storage", "sweep"], "plain", ["--sides", "plain", "--storage", "sweep"]),
        (["--storage", "sweep"], "", ["--storage", "sweep"]),
        ([], "", []),
    ],
)
def test_only_the_first_word_names_a_benchmark(
    line: list[str], command: str, left: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *line])
    assert take_command(BENCHMARKS) == command
    assert sys.argv == ["benchmark.py", *left]
