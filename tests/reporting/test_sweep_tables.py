"""What a sweep says of its trials: order, rows and tables hold for any trials, and importances find what matters."""

import dataclasses
import io
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.epoch_records import epoch_record

from pharmclf.evaluation.metrics import wilson_interval
from pharmclf.reporting import sweep_tables
from pharmclf.reporting.trial_info import TrialInfo, best_trial, rank_trials, short_names

LOG_NAMES = ("phase1.learning_rate",)


def make_history(accuracies, phase1=3):
    """An epoch for each validation accuracy, the first three of them in phase 1; 2 s each."""
    places = [("phase1", index) if index < phase1 else ("phase2", index - phase1) for index in range(len(accuracies))]
    return {
        number: epoch_record(*place, val_loss=1.0 - accuracy, val_accuracy=accuracy, seconds=2.0)
        for number, (place, accuracy) in enumerate(zip(places, accuracies, strict=True), 1)
    }


def make_trials(count, seed=0, epochs=6):
    """Trials whose accuracy hangs on the learning rate; every fifth is stopped early, every eleventh diverges."""
    generator = np.random.default_rng(seed)
    trials = []
    for number in range(count):
        rate = float(10 ** generator.uniform(-5, -2))
        params = {
            "phase1.learning_rate": rate,
            "head.dropout": float(generator.uniform(0, 0.6)),
            "unfreeze_blocks": int(generator.integers(0, 5)),
        }
        top = 0.95 - 0.1 * (math.log10(rate) + 3.5) ** 2
        state = "diverged" if number % 11 == 10 else "stopped" if number % 5 == 4 else "trained"
        length = {"diverged": 1, "stopped": 2}.get(state, epochs)
        history = make_history([max(0.05, top * (1 - 0.6**epoch)) for epoch in range(1, length + 1)])
        times = {"seconds": 2.0 * length + 1.5, "cpu_s": 3.0 * length, "gpu_s": 2.0 * length}
        trials.append(TrialInfo(number=number, params=params, state=state, history=history, **times))
    return trials


facts = st.builds(
    TrialInfo,
    number=st.integers(0, 999),
    params=st.fixed_dictionaries(
        {
            "phase1.learning_rate": st.floats(1e-6, 1e-1),
            "head.dropout": st.floats(0, 0.9),
            "unfreeze_blocks": st.integers(0, 9),
            "augment.horizontal_flip": st.booleans(),
            "phase1.schedule": st.sampled_from(["constant", "cosine"]),
        }
    ),
    state=st.sampled_from(["running", "trained", "stopped", "diverged", "failed"]),
    reason=st.text(max_size=80),
    history=st.lists(st.floats(0, 1) | st.just(math.nan), max_size=5).map(make_history),
    seconds=st.floats(0, 1e5),
)
sweeps = st.lists(facts, max_size=50, unique_by=lambda trial: trial.number)


@given(sweeps, st.randoms())
@settings(max_examples=25, deadline=None)
def test_rank_is_that_of_the_accuracies_in_whatever_order_trials_come(trials, random):
    """No trial is lost, accuracies fall, trials without epochs come last, and the order of arrival is of no account."""
    ranked = rank_trials(trials)
    assert sorted(trial.number for trial in ranked) == sorted(trial.number for trial in trials)
    known = [trial for trial in ranked if trial.best]
    assert ranked[: len(known)] == known
    scores = [trial.best.val_accuracy for trial in known if not math.isnan(trial.best.val_accuracy)]
    assert scores == sorted(scores, reverse=True)
    again = [trial.number for trial in rank_trials(random.sample(trials, len(trials)))]
    assert again == [trial.number for trial in ranked]


def test_equal_accuracies_are_ranked_by_loss_and_then_by_number():
    """So that the best trial of a sweep is the same every time."""
    trials = [dataclasses.replace(trial, history=make_history([0.9])) for trial in make_trials(3)]
    trials[1] = dataclasses.replace(trials[1], history={1: epoch_record(val_accuracy=0.9, val_loss=0.01)})
    assert [trial.number for trial in rank_trials(reversed(trials))] == [1, 0, 2]
    assert best_trial(trials) is trials[1]
    assert best_trial([dataclasses.replace(trials[0], history={})]) is None


def test_an_epoch_without_a_number_is_never_the_best():
    """A loss or an accuracy that is not finite loses against any finite one, wherever it stands."""
    numbers = [(0.5, 0.5), (0.7, math.nan), (0.7, 0.3), (math.nan, 0.8)]
    epochs = [epoch_record(val_accuracy=accuracy, val_loss=loss) for accuracy, loss in numbers]
    for order in (epochs, epochs[::-1]):
        history = dict(enumerate(order, 1))
        assert TrialInfo(number=0, params={}, state="diverged", history=history).best is epochs[2]


@given(sweeps)
@settings(max_examples=25, deadline=None)
def test_rows_survive_parquet_and_add_up(trials):
    """A row a trial, by number; times add up, intervals hold the accuracy, and Parquet gives back the same."""
    frame = sweep_tables.trial_frame(trials, 0.6, val_images=400)
    assert len(frame) == len(trials)
    if not trials:
        return
    buffer = io.BytesIO()
    frame.to_parquet(buffer)
    pd.testing.assert_frame_equal(pd.read_parquet(buffer), frame, check_dtype=False)
    assert list(frame["number"]) == sorted(trial.number for trial in trials)
    np.testing.assert_allclose(frame["train_s"] + frame["overhead_s"], frame["seconds"], atol=1e-6)
    np.testing.assert_allclose(frame["price"], frame["seconds"] / 3600 * 0.6, atol=1e-9)
    known = frame.dropna(subset="val_accuracy")
    assert (known["val_accuracy_low"] <= known["val_accuracy"] + 1e-12).all()
    assert (known["val_accuracy"] <= known["val_accuracy_high"] + 1e-12).all()


def test_row_of_a_trial_says_what_is_known_of_it():
    """Epochs count from 1 within the phase; without a price there is none; parameters keep their dotted names."""
    history = make_history([0.1, 0.2, 0.3, 0.5, 0.9, 0.6])
    trial = TrialInfo(number=7, params={"head.dropout": 0.3}, state="trained", history=history, seconds=14.0)
    row = sweep_tables.trial_frame([trial], 0.0, val_images=100).iloc[0]
    assert (row["head.dropout"], row["epochs"], row["best_phase"], row["best_epoch"]) == (0.3, 6, "phase2", 2)
    assert (row["train_s"], row["overhead_s"], row["val_accuracy"]) == (12.0, 2.0, 0.9)
    interval = wilson_interval(90, 100)
    assert (row["val_accuracy_low"], row["val_accuracy_high"]) == (interval.low, interval.high)
    assert pd.isna(row["price"])


def test_a_parameter_of_mixed_types_becomes_text():
    """A column of Parquet has one type; numbers alone stay numbers."""
    values = [True, "auto", 1]
    trials = [TrialInfo(number=n, params={"a": value, "b": n / 2}, state="failed") for n, value in enumerate(values)]
    frame = sweep_tables.trial_frame(trials, 0.0, val_images=0)
    assert list(frame["a"]) == ["True", "auto", "1"]
    assert frame["b"].dtype == np.float64
    frame.to_parquet(io.BytesIO())


def test_short_names_stay_apart():
    """The last part where it is the only one of its kind, else as many parts as tell it apart."""
    names = ["phase1.learning_rate", "phase2.learning_rate", "head.dropout", "dropout", "a.b.c", "x.b.c", "seed"]
    short = short_names(names)
    assert list(short.values()) == [*names[:6], "seed"]
    assert short_names(names[:3])["head.dropout"] == "dropout"


@given(st.lists(st.from_regex(r"[ab](\.[ab]){0,3}", fullmatch=True), unique=True))
def test_no_two_short_names_are_equal(names):
    assert len(set(short_names(names).values())) == len(names)


def test_table_shows_the_best_first_and_ends_with_the_sums():
    """Columns stand under their headings, rates in three digits, and the last line adds up what all trials took."""
    trials = [
        TrialInfo(number=0, params={"phase1.learning_rate": 1e-3, "head.dropout": 0.3}, state="trained", seconds=36),
        TrialInfo(number=1, params={"phase1.learning_rate": 1.2345e-5, "head.dropout": 0.25}, state="stopped"),
    ]
    trials[0] = dataclasses.replace(trials[0], history=make_history([0.8]), cpu_s=70.0)
    trials[1] = dataclasses.replace(trials[1], history=make_history([0.9]), reason="the worse\nhalf", seconds=4.0)
    lines = sweep_tables.results_table(trials, 50.0, val_images=100).splitlines()
    heading = "trial learning_rate dropout epochs val acc (95 %) seconds price state"
    assert " ".join(lines[0].split()) == heading
    row = "1 1.23e-05 0.25 1 0.900 (0.826-0.945) 4.0 0.0556 stopped: the worse half"
    assert " ".join(lines[1].split()) == row
    assert lines[2].endswith("36.0  0.5000  trained (plain run)")
    assert " 1e-03 " in lines[2]
    assert lines[1].index("stopped") == lines[0].index("state") == lines[2].index("trained")
    assert lines[3].startswith("2 trials: 1 trained, 1 stopped; 40.0 s, 70.0 CPU-s, 0.0 GPU-s; price 0.5556")
    assert lines[3].endswith("median overhead 18.0 s a trial")


@given(sweeps, st.just(0.0) | st.floats(0.01, 1000))
@settings(max_examples=25, deadline=None)
def test_tables_of_any_trials_are_short_and_have_no_price_without_one(trials, price):
    """At most 40 rows, a line each whatever a reason holds, and the rest counted."""
    lines = sweep_tables.results_table(trials, price, val_images=50).split("\n")
    assert len(lines) == 2 + min(len(trials), 40) + (len(trials) > 40)
    assert (len(trials) > 40) == lines[-2].startswith("and ")
    assert ("price" in lines[-1]) == (price > 0)
    live = sweep_tables.live_table(trials, "1:00", num_trials=60).split("\n")
    assert "of 60 trials done" in live[0]
    assert "ETA 1:00" in live[0]
    assert len(live) <= 12


def test_live_table_shows_the_best_and_those_that_run():
    """The best trial first, then the running ones by number; a running one may be the best."""
    trials = [dataclasses.replace(trial, state="running") if trial.number > 5 else trial for trial in make_trials(8)]
    lines = sweep_tables.live_table(trials, "3:12", num_trials=16).splitlines()
    assert lines[0] == "6 of 16 trials done (2 running, 5 trained, 1 stopped), ETA 3:12"
    best = best_trial(trials)
    assert lines[2].split()[:2] == ["best", str(best.number)]
    assert {int(line.removeprefix("best").split()[0]) for line in lines[2:]} == {best.number, 6, 7}
    assert sweep_tables.live_table([], "-:--").splitlines() == ["0 trials done (none yet), ETA -:--"]


def test_importance_goes_to_the_parameter_that_the_accuracy_hangs_on(capfd):
    """A rate searched over decades gets its due, a constant gets none, shares stay below 1, and Optuna says nothing."""
    trials = [
        dataclasses.replace(trial, params={**trial.params, "flag": trial.number % 2 == 0, "seed": 0, "way": "same"})
        for trial in make_trials(40)
        if trial.state == "trained"
    ]
    shares = sweep_tables.parameter_importances(trials, LOG_NAMES)
    assert list(shares) == list(trials[0].params)
    assert shares["phase1.learning_rate"] > 0.6
    assert shares["seed"] == shares["way"] == 0.0
    assert sum(shares.values()) == pytest.approx(1.0)
    assert shares == sweep_tables.parameter_importances(trials, LOG_NAMES)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("log_names", [["rate"], []])
def test_a_parameter_over_decades_is_found_on_either_scale(log_names):
    """Accuracy that falls by decade goes to the rate, and not to what only orders the bad trials."""
    rates = [10.0**-power for power in (6, 5, 4, 3, 2, 1)] * 4
    trials = [
        TrialInfo(
            number=number,
            params={"rate": rate, "other": (number * 7) % 24},
            state="trained",
            history=make_history([0.9 if rate < 3e-4 else 0.4 + 0.01 * (number * 7 % 24)]),
        )
        for number, rate in enumerate(rates)
    ]
    assert sweep_tables.parameter_importances(trials, log_names)["rate"] > 0.6


def test_nothing_is_said_of_importances_without_enough_trials():
    """Fewer than ten that ended, or equal accuracies: {}; failed and running ones do not count, diverged ones as 0."""
    trials = make_trials(10)
    assert sweep_tables.parameter_importances(trials, LOG_NAMES)
    assert sweep_tables.parameter_importances(trials[1:], LOG_NAMES) == {}
    assert (
        sweep_tables.parameter_importances([dataclasses.replace(trial, state="failed") for trial in trials], LOG_NAMES)
        == {}
    )
    equal = [dataclasses.replace(trial, history=make_history([0.5])) for trial in trials]
    assert sweep_tables.parameter_importances(equal, LOG_NAMES) == {}
    assert sweep_tables.parameter_importances(
        [*equal[1:], dataclasses.replace(equal[0], state="diverged", history=[])], LOG_NAMES
    )


@given(st.lists(facts, min_size=10, max_size=16, unique_by=lambda trial: trial.number))
@settings(max_examples=5, deadline=None)
def test_importances_of_any_trials_are_shares(trials):
    shares = sweep_tables.parameter_importances(trials, ["phase1.learning_rate", "head.dropout"])
    assert not shares or set(shares) == set(trials[0].params)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares.values())


@pytest.mark.parametrize("module", ["sweep_tables", "sweep_plots"])
def test_reports_of_sweeps_load_without_ray_tensorflow_and_optuna(module):
    """Optuna is loaded when importances are asked for, and pyplot never."""
    code = (
        f"import sys, pharmclf.reporting.{module}; "
        "print([name for name in ('matplotlib.pyplot', 'tensorflow', 'ray', 'optuna') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
