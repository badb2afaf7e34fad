"""What the page of a sweep claims: a gain only where the interval leaves out 0, and what is missing is said."""

import dataclasses

import numpy as np
import pytest
from test_sweep_tables import LOG_NAMES, make_trials

from pharmclf.evaluation.metrics import Estimate, paired_difference, proportion
from pharmclf.reporting.sweep_page import sweep_page
from pharmclf.reporting.sweep_report import (
    INDISTINCT,
    PlainComparison,
    SweepReport,
    comparison_line,
    comparison_sentences,
    headline,
)
from pharmclf.reporting.sweep_tables import parameter_importances
from pharmclf.reporting.trial_info import best_trial


def compare(gained, lost, same=150):
    """On `same` images both are right; on others only the winner, or only the plain run."""
    plain, winner = (np.repeat(hits, [gained, lost, same]) for hits in ([False, True, True], [True, False, True]))
    groups = np.arange(len(plain))
    return PlainComparison(
        num_images=len(plain),
        plain=proportion(plain, groups),
        winner=proportion(winner, groups),
        difference=paired_difference(plain, winner, groups),
    )


def make_report(comparison=None, count=16, winner=True, **about):
    trials = make_trials(count)
    values = {
        "name": "search", "trials": trials, "num_trials": count, "log_names": LOG_NAMES, "val_images": 160,
        "importances": parameter_importances(trials, LOG_NAMES),
        "winner": best_trial(trials) if winner else None, "winner_folder": "trials/0003",
        "test_accuracy": Estimate(0.91, 0.86, 0.94), "comparison": comparison,
    }  # fmt: skip
    return SweepReport(**values | about)


@pytest.mark.parametrize(
    ("gained", "lost", "claims"),
    [(20, 2, "points better"), (2, 20, "points worse"), (5, 1, INDISTINCT), (0, 0, INDISTINCT), (3, 9, INDISTINCT)],
)
def test_a_gain_is_claimed_only_where_its_interval_leaves_out_0(gained, lost, claims):
    comparison = compare(gained, lost)
    report = make_report(comparison)
    assert claims in headline(report)
    assert comparison.is_clear == (claims != INDISTINCT) == (INDISTINCT not in comparison_line(comparison))
    assert (INDISTINCT in sweep_page(report)) == (not comparison.is_clear)


def test_a_plain_run_that_was_stopped_early_is_not_called_beaten_by_its_end():
    """The reader learns after how many epochs it was stopped."""
    report = make_report(compare(20, 2))
    trials = [dataclasses.replace(trial, state="stopped") if trial.number == 0 else trial for trial in report.trials]
    stopped = comparison_sentences(dataclasses.replace(report, trials=trials))
    assert len(stopped) == len(comparison_sentences(report)) + 1
    assert "6 epochs" in stopped[-1]


def test_without_a_plain_run_no_gain_is_claimed():
    """The distance to the median trial is given as what it is."""
    report = make_report()
    trials = [
        dataclasses.replace(trial, state="diverged", reason="its loss is not finite", history={})
        if trial.number == 0
        else trial
        for trial in report.trials
    ]
    report = dataclasses.replace(report, trials=trials)
    assert "better" not in headline(report)
    missing, median = comparison_sentences(report)
    assert "diverged: its loss is not finite" in missing
    assert "median" in median


def test_a_plain_run_that_won_is_no_gain():
    report = make_report()
    plain = next(trial for trial in report.trials if trial.number == 0)
    assert "No trial was better" in headline(dataclasses.replace(report, winner=plain))


def test_a_sweep_that_is_not_complete_has_no_winner():
    report = make_report(winner=False, num_trials=40)
    assert "16 of 40 trials" in headline(report)
    assert comparison_sentences(report) == []
    assert "report.html" not in sweep_page(report)


@pytest.mark.parametrize(("count", "has_importance"), [(1, False), (9, False), (10, True), (16, True)])
def test_importance_is_shown_from_ten_trials_up(count, has_importance):
    page = sweep_page(make_report(count=count))
    assert ('class="share"' in page) == has_importance
    assert ("from 10 trials up" in page) != has_importance


def test_whole_numbers_are_shown_as_such():
    """The depth of each trial, in the table and on the axis of its chart."""
    page = sweep_page(make_report(compare(5, 1)))
    assert 'data-sort="4">4</td>' in page
    assert "4.0<" not in page


def test_equal_sweeps_give_equal_pages_and_every_trial_has_a_row():
    report = make_report(compare(5, 1))
    page = sweep_page(report)
    assert page == sweep_page(report)
    assert page.count('<th scope="row" data-sort=') == len(report.trials)
