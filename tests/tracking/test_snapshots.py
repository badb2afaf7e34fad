"""What is tracked of a run: the axis, the names, the files."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracked_runs import RESULT, epoch, history, run_config, write_end

from pharmclf.tracking.snapshots import final_metrics, metrics_by_step, outcome_text, visible_files


def test_epochs_are_counted_over_both_phases() -> None:
    """Phase 2 begins at the same number whether phase 1 stopped early or not; `phase` tells where."""
    found = metrics_by_step(run_config("/r"), history())
    assert [one.at for one in found] == [1, 2, 3, 5, 6]
    assert [one.numbers["phase"] for one in found] == [1, 1, 1, 2, 2]
    assert [one.numbers["val_accuracy"] for one in found] == [0.4, 0.6, 0.5, 0.8, 0.9]
    assert metrics_by_step(run_config("/r"), history()[3:4])[0].at == 5


def test_epochs_before_this_driver_lie_as_far_back_as_they_took() -> None:
    records = [replace(record, seconds=float(number)) for number, record in enumerate(history(), start=1)]
    assert [one.ended_s for one in metrics_by_step(run_config("/r"), records, ended_s=100.0)] == [
        86.0,
        88.0,
        91.0,
        95.0,
        100.0,
    ]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.floats(0, 1))
def test_the_best_accuracy_is_that_of_all_epochs_by_then(scores: list[float], before: float) -> None:
    records = [epoch(1, number, score) for number, score in enumerate(scores)]
    found = [one.numbers["best_val_accuracy"] for one in metrics_by_step(run_config("/r"), records, best=before)]
    assert found == [max(before, *scores[: number + 1]) for number in range(len(scores))]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_what_is_no_number_is_left_out(value: Any) -> None:
    """A server would refuse it, and with it the whole epoch."""
    (found,) = metrics_by_step(run_config("/r"), [replace(epoch(1, 0, 0.5), train_loss=value)])
    assert "train_loss" not in found.numbers
    assert found.numbers["val_loss"] == 2.0


def test_every_score_of_a_result_has_a_name_of_its_own() -> None:
    """Intervals as low and high; extra tests behind their names; the validation as the best of all epochs."""
    assert final_metrics(RESULT) == {
        "best_val_accuracy": 0.9,
        "best_val_accuracy_low": 0.8,
        "best_val_accuracy_high": 0.95,
        "test_accuracy": 0.875,
        "test_accuracy_low": 0.75,
        "test_accuracy_high": 0.9375,
        "test_macro_f1": 0.5,
        "test_macro_f1_low": 0.25,
        "test_macro_f1_high": 0.75,
        "threshold_assured": 1.0,
        "other light_accuracy": 0.25,
        "other light_accuracy_low": 0.125,
        "other light_accuracy_high": 0.5,
    }
    assert final_metrics({"score_interval": None, "score": None, "phases": [{"name": "phase1", "epochs": 1}]}) == {}


def test_people_are_shown_report_card_numbers_and_pictures(root: str) -> None:
    """And neither the model, nor checkpoints, nor what keeps the run going, on a disk and in a bucket alike."""
    folder = f"{root}/tablets"
    write_end(folder)
    assert sorted(visible_files(folder)) == [
        "evaluation/test/confusion_matrix.png",
        "history.json",
        "learning_curves.png",
        "model/README.md",
        "report.html",
        "result.json",
    ]
    assert all(location == f"{folder}/{path}" for path, location in visible_files(folder).items())


def test_the_outcome_is_told_with_its_interval() -> None:
    assert re.match(r"Test accuracy \*\*0\.875\*\* \(95 % interval 0\.750–0\.938\) on 123", outcome_text(RESULT, "/r"))
    assert outcome_text(RESULT | {"verdict": "good"}, "/r").startswith("Verdict: **good**. Test accuracy")
