"""The pictures of a sweep: PNG that opens, with every text readable, whatever the trials are."""

import dataclasses
import math

import pytest
from figure_checks import check_texts, opened
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sweep_tables import LOG_NAMES, make_history, make_trials

from pharmclf.reporting import sweep_axes, sweep_plots
from pharmclf.reporting.figures import png_bytes
from pharmclf.reporting.trial_info import TrialInfo

BACKBONES = ["efficientnet_lite0", "resnet50", "a_backbone_with_a_name_that_goes_on_and_on", "mobilenet"]
EXTRA = {
    "phase2.learning_rate": [1e-5, 3e-5, 1e-4],
    "augment.horizontal_flip": [True, False],
    "backbone": BACKBONES,
    "optimizer.label_smoothing": [0.0, 0.1],
    "optimizer.a_parameter_with_a_name_that_goes_on_and_on_for_ever": [1, 2, 3],
}


def widened(trials):
    """The same trials with eight parameters: rates, numbers, texts, yes and no, long names."""
    return [
        dataclasses.replace(
            trial,
            params={**trial.params, **{name: known[trial.number % len(known)] for name, known in EXTRA.items()}},
        )
        for trial in trials
    ]


def without_history(trials, state):
    return [dataclasses.replace(trial, history={}, state=state) for trial in trials]


def narrowed(trials, *names):
    return [dataclasses.replace(trial, params={name: trial.params[name] for name in names}) for trial in trials]


def equal(trials):
    return [dataclasses.replace(trial, history=make_history([0.9, 0.9])) for trial in trials]


FIGURES = (
    sweep_plots.trial_curves_figure,
    lambda trials: sweep_plots.parameters_figure(trials, LOG_NAMES),
    lambda trials: sweep_plots.parallel_coordinates_figure(trials, LOG_NAMES),
)


SWEEPS = {
    "one trial": make_trials(1),
    "16 trials": make_trials(16),
    "200 trials": make_trials(200),
    "eight parameters": widened(make_trials(30)),
    "one parameter": narrowed(make_trials(12), "head.dropout"),
    "one categorical parameter": narrowed(widened(make_trials(12)), "backbone"),
    "no history": without_history(make_trials(3), "running"),
    "all diverged": without_history(make_trials(5), "diverged"),
    "some without history": [*make_trials(8), *without_history(make_trials(12)[8:], "failed")],
    "equal accuracies": equal(make_trials(9)),
    "running": [dataclasses.replace(trial, state="running") for trial in make_trials(4)],
    "no parameters": narrowed(make_trials(2)),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_no_text_is_clipped_or_covered_by_another(name):
    for draw in FIGURES:
        check_texts(draw(SWEEPS[name]), shared=1.0)


def test_pictures_are_png_and_the_same_every_time():
    """Equal trials give equal bytes; without trials there is no picture."""
    trials = make_trials(12)
    for draw in FIGURES:
        png = png_bytes(draw(trials))
        assert png == png_bytes(draw(trials))
        assert opened(png).width > 1000
        with pytest.raises(ValueError, match="received none"):
            draw([])


def test_border_of_the_phases_is_drawn_where_all_trials_share_it():
    """After epoch 3 in all of them: a line at 3.5; where one leaves phase 1 earlier: none."""
    trials = make_trials(6)
    same = sweep_plots.trial_curves_figure(trials)
    other = dataclasses.replace(trials[0], history=make_history([0.5, 0.6, 0.7], phase1=1))
    mixed = sweep_plots.trial_curves_figure([other, *trials[1:]])
    borders = [[list(line.get_xdata()) for line in figure.axes[0].lines] for figure in (same, mixed)]
    assert [3.5, 3.5] in borders[0]
    assert [3.5, 3.5] not in borders[1]
    assert "phase 2" in [text.get_text() for text in same.axes[0].texts]


def test_best_trial_is_named_at_its_best_epoch():
    trials = [dataclasses.replace(trial, history=make_history([0.5, 0.7, 0.6])) for trial in make_trials(3)]
    trials[2] = dataclasses.replace(trials[2], history=make_history([0.5, 0.875, 0.6]))
    figure = sweep_plots.trial_curves_figure(trials)
    named = [text for text in figure.axes[0].texts if text.get_text() == "trial 2: 0.875"]
    assert named[0].xy == (2, 0.875)
    assert any("best: trial 2 with 0.875" in text.get_text() for text in figure.texts)


def test_states_differ_in_shape():
    """No two looks share marker and filling, so that they are told apart in black and white."""
    shapes = [(look["marker"], look.get("markerfacecolor", "full") == "full") for look in sweep_plots._MARKS.values()]
    assert len(set(shapes)) == len(shapes)


def test_diverged_and_far_trials_stand_at_the_lower_edge():
    """The axis is that of the others; how many lie below is said in the heading."""
    trials = [
        TrialInfo(number=number, params={"a": number}, state="trained", history=make_history([accuracy]))
        for number, accuracy in enumerate([0.9, 0.91, 0.92, 0.93, 0.94, 0.2])
    ]
    trials.append(TrialInfo(number=6, params={"a": 6}, state="diverged", history=make_history([0.93])))
    heights, (low, high) = sweep_axes.clipped_accuracies(trials)
    assert 0.8 < low < 0.9
    assert high > 0.94
    assert heights[5] == heights[6] == low
    assert heights[4] == 0.94
    figure = sweep_plots.parameters_figure(trials, ())
    assert any(f"1 below {low:.2f} at the lower edge" in text.get_text() for text in figure.texts)


values = st.floats(1e-7, 1e7) | st.integers(1, 10**6)


@given(st.lists(values, min_size=1, max_size=30), st.booleans())
@settings(max_examples=100, deadline=None)
def test_axis_holds_all_values_and_its_ticks(numbers, logarithmic):
    """Every place lies within the limits, in the order of the values that are far enough apart; so do 1 to 8 ticks."""
    trials = [TrialInfo(number=n, params={"a": number}, state="running") for n, number in enumerate(numbers)]
    (scale,) = sweep_axes.build_scales(trials, ["a"] if logarithmic else [])
    assert set(scale.places) == set(range(len(numbers)))
    assert all(0 <= scale.share(place) <= 1 for place in scale.places.values())
    assert 1 <= len(scale.ticks) <= 8
    assert all(-1e-9 <= scale.share(place) <= 1 + 1e-9 for place, _ in scale.ticks)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.booleans())
@settings(max_examples=100, deadline=None)
def test_accuracy_axis_shows_the_best_and_tells_its_ticks_apart(shares, cut):
    """The best lies within, nothing lies above, and no two ticks read the same."""
    low, high = sweep_axes.accuracy_range(shares, cut=cut)
    assert low <= max(shares) < high
    assert cut or low <= min(shares)
    texts = [text for _, text in sweep_axes.accuracy_ticks(low, high)]
    assert len(set(texts)) == len(texts) >= 1
    assert not any(math.isnan(float(text)) or float(text) > 1 for text in texts)
