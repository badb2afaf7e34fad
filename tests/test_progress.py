"""Progress of long tasks: nothing is shown before the work begins, and nothing stays behind its end."""

from __future__ import annotations

import pytest

from pharmclf.core import console
from pharmclf.core.terminal import Terminal
from pharmclf.progress import image_progress, progress_reporter


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """That of the process, in which a test looks."""
    terminal = Terminal()
    monkeypatch.setattr(console, "_terminal", terminal)
    return terminal


def test_work_is_shown_from_its_first_report_to_its_last(terminal: Terminal):
    report = image_progress("examining images")
    assert terminal._activities == []
    report(0, 3)
    (activity,) = terminal._activities
    assert activity.text == "examining images"
    report(2, 3)
    assert terminal._activities == [activity]
    assert activity.state is not None
    assert (activity.state.count, activity.state.fraction) == ("2/3", pytest.approx(2 / 3))
    report(3, 3)
    assert terminal._activities == []


def test_no_work_at_all_is_shown_for_no_time(terminal: Terminal):
    progress_reporter("nothing")(0, 0)
    assert terminal._activities == []


def test_an_eta_begins_with_the_work_and_not_with_what_comes_before(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
):
    """133 seconds in which programs start, then 100 images a second."""
    now = [0.0]
    monkeypatch.setattr("pharmclf.progress.time.monotonic", lambda: now[0])
    report = image_progress("predicting")
    now[0] = 133.0
    etas = []
    for done in range(1, 1000):
        report(done, 1000)
        state = terminal._activities[0].state
        assert state is not None
        if state.eta_s is not None:
            etas.append(state.eta_s / (10.0 - done / 100))
        now[0] += 0.01
    assert etas
    assert all(ratio == pytest.approx(1.0, rel=0.05) for ratio in etas[:-10])
    assert len(etas) > 700
