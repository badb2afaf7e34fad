"""The head of a command's help, wrapped for the width of the terminal."""

from __future__ import annotations

import pytest

from pharmclf.commands.description import format_description
from pharmclf.commands.registry import COMMANDS, load_command

DOCSTRING = """Train a classifier.

pharmclf train                 the demo
pharmclf train --data DIR      your own images
pharmclf train --model a/path/that/is/long --name NAME

The same command again resumes the run,
or reports that it is complete.
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_the_text_of_a_command_fits_into_the_terminal(name: str, monkeypatch: pytest.MonkeyPatch):
    """At 80 columns; only a command is never broken."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = format_description(load_command(name).__doc__).splitlines()
    assert len(lines) > 3
    assert [line for line in lines if len(line) > 80 and not line.startswith("  pharmclf ")] == []


def test_words_and_examples_are_those_of_the_docstring(monkeypatch: pytest.MonkeyPatch):
    for columns in ("20", "80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert format_description(DOCSTRING).split() == DOCSTRING.split()


def test_meanings_are_in_a_column_or_below_where_the_terminal_is_narrow(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert format_description(DOCSTRING).splitlines()[2:5] == [
        "  pharmclf train             the demo",
        "  pharmclf train --data DIR  your own images",
        "  pharmclf train --model a/path/that/is/long --name NAME",
    ]
    monkeypatch.setenv("COLUMNS", "40")
    assert format_description(DOCSTRING).splitlines()[2:5] == [
        "  pharmclf train",
        "    the demo",
        "  pharmclf train --data DIR",
    ]
