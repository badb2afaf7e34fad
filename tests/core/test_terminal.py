"""Lines of a plain terminal: which are shown, how often, and without escape codes."""

from __future__ import annotations

import itertools

import pytest

from pharmclf.core import console
from pharmclf.core.terminal import Progress, Result, Terminal, Verbosity, format_usual


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("verbosity", "shown"),
    [
        (Verbosity.QUIET, ["warning: hot", "the result"]),
        (Verbosity.NORMAL, ["a note", "warning: hot", "the result"]),
        (Verbosity.VERBOSE, ["a note", "warning: hot", "a detail", "the result"]),
    ],
)
def test_a_quiet_terminal_shows_warnings_and_results_a_verbose_one_details(
    verbosity: Verbosity, shown: list[str], capsys: pytest.CaptureFixture[str]
):
    terminal = Terminal(verbosity)
    terminal.line("a note")
    terminal.line("warning: hot")
    terminal.detail("a detail")
    terminal.line(Result("the result"))
    assert capsys.readouterr().out.splitlines() == shown


def test_a_wait_of_over_a_second_has_a_line_with_its_usual_time(capsys: pytest.CaptureFixture[str]):
    """Shorter ones and those of unknown length have none; a quiet terminal shows none."""
    terminal = Terminal()
    with terminal.open("starting Ray", 12.0), terminal.open("listing"), terminal.open("a moment", 0.2):
        pass
    assert capsys.readouterr().out == "starting Ray (usually 12 s)\n"
    with Terminal(Verbosity.QUIET).open("starting Ray", 12.0):
        pass
    assert capsys.readouterr().out == ""


def test_a_verbose_terminal_shows_how_long_a_wait_took(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    with Terminal(Verbosity.VERBOSE, clock).open("listing") as activity:
        clock.now = 2.25
        activity.begin("loading", 0.0)
        clock.now = 2.5
    assert capsys.readouterr().out == "listing: 2.2 s\n"


@pytest.mark.parametrize(("begin_s", "least_s"), [(0.0, 5.0), (3000.0, 50.0), (90_000.0, 60.0)])
def test_progress_has_a_line_every_five_seconds_and_every_minute_in_the_end(
    begin_s: float, least_s: float, capsys: pytest.CaptureFixture[str]
):
    """However often it is reported; the first line does not come at once."""
    clock = Clock()
    terminal = Terminal(clock=clock)
    clock.now = begin_s
    activity = terminal.open()
    times = []
    for _ in range(20_000):
        clock.now += 0.01
        activity.progress("images", Progress(0.5, "5/10"))
        if capsys.readouterr().out:
            times.append(clock.now)
    gaps = [after - before for before, after in itertools.pairwise([begin_s, *times])]
    assert min(gaps) >= least_s - 0.02
    assert max(gaps) <= least_s * 1.1 + 2


def test_progress_says_how_far_with_figures_and_an_eta_where_it_is_known(capsys: pytest.CaptureFixture[str]):
    clock = Clock()
    terminal = Terminal(clock=clock)
    activity = terminal.open()
    for eta_s in (None, 83.0):
        activity.progress("phase 1 epoch 2/3", Progress(0.1, "6/60", ["loss 0.5", "9 img/s"], eta_s))
        clock.now += 6.0
        activity.progress("phase 1 epoch 2/3", Progress(0.2, "12/60", ["loss 0.5", "9 img/s"], eta_s))
    before, after = capsys.readouterr().out.splitlines()
    assert "12/60" in before
    assert "loss 0.5" in before
    assert "ETA" not in before
    assert after.endswith("ETA 1:23")


def test_what_was_opened_inside_an_activity_ends_with_it():
    """So that nothing stays on the screen where an error has skipped its end."""
    terminal = Terminal()
    with terminal.open("outer") as outer:
        terminal.open("inner")
        assert [activity.text for activity in terminal._activities] == ["outer", "inner"]
    assert terminal._activities == []
    outer.close()


def test_a_terminal_is_live_only_where_a_person_watches(monkeypatch: pytest.MonkeyPatch):
    """No pipe, no dumb terminal, no log of a CI system."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("CI", raising=False)
    assert console.is_watched()
    for name, value in (("TERM", "dumb"), ("CI", "true")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert not console.is_watched()
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert not console.is_watched()


@pytest.mark.parametrize(("seconds", "text"), [(4.0, "4 s"), (89.4, "89 s"), (150.0, "2 min")])
def test_usual_times_are_round(seconds: float, text: str):
    assert format_usual(seconds) == text
