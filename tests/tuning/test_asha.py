"""Which trials go on: examples worked out by hand, and what holds for any histories in any order of arrival."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.epoch_records import epoch_record

from pharmclf.core.events import EpochRecord
from pharmclf.tuning.asha import default_grace, rung_that_stops, rungs

Histories = dict[int, dict[int, EpochRecord]]


def history(*accuracies: float) -> dict[int, EpochRecord]:
    """Epochs with these validation accuracies."""
    return {number: epoch_record(val_accuracy=accuracy) for number, accuracy in enumerate(accuracies, 1)}


def test_rungs_are_counted_over_both_phases():
    """The design's run: 20 and 30 epochs; the last phase is compared after 8 and after 24 of its epochs."""
    assert default_grace((20, 30)) == 8
    assert rungs((20, 30), 8, 3) == [28, 44]
    assert rungs((8, 8), default_grace((8, 8)), 3) == [10, 14]
    assert rungs((0, 9), 1, 3) == [1, 3]
    assert rungs((9, 0), 1, 3) == [1, 3]


def test_a_last_phase_that_is_no_longer_than_its_grace_has_no_rung():
    """Nothing would be saved at the end."""
    assert rungs((5, 3), 3, 3) == []
    assert rungs((5, 3), 4, 3) == []
    assert rungs((5, 1), default_grace((5, 1)), 3) == []


@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 250), st.integers(2, 5))
def test_rungs_lie_behind_phase_1_and_before_the_end(first: int, second: int, given_grace: int, factor: int):
    """Phase 1 is never cut short where there is a phase 2; each trial has its grace; gaps grow by the factor."""
    epochs = first, second
    grace = given_grace or default_grace(epochs)
    found = rungs(epochs, grace, factor)
    before = first if second else 0
    assert found == sorted(set(found))
    assert all(before + grace <= rung < first + second for rung in found)
    assert [rung - before for rung in found] == [grace * factor**place for place in range(len(found))]
    assert bool(found) == (grace < (second or first))


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_grace_is_a_quarter_of_the_last_phase(first: int, second: int):
    """Rounded up, and one epoch at least."""
    assert default_grace((first, second)) == max(1, math.ceil((second or first) / 4))


def test_where_classes_are_weighed_balanced_accuracy_decides():
    """Of three trials with the same accuracy the least balanced is stopped."""
    balanced = {0: 0.3, 1: 0.5, 2: 0.4}
    trials = {n: {1: epoch_record(val_accuracy=0.9, val_balanced_accuracy=score)} for n, score in balanced.items()}
    assert [rung_that_stops(number, trials, [1], 3) for number in trials] == [1, None, None]


def test_of_nine_three_go_on():
    """The best third, by the best accuracy up to the rung."""
    trials = {number: history(0.9 - number / 100, 0.1) for number in range(9)}
    assert [number for number in trials if rung_that_stops(number, trials, [2], 3) is None] == [0, 1, 2]


def test_a_trial_before_a_rung_is_not_judged_by_it():
    """Neither stopped by it, nor counted at it."""
    trials = {0: history(0.9, 0.9), 1: history(0.8, 0.8), 2: history(0.1), 3: {}}
    assert rung_that_stops(2, trials, [2], 3) is None
    assert rung_that_stops(3, trials, [2], 3) is None
    trials = {0: history(0.9), 1: history(0.8), 2: history(0.1, 0.1)}
    assert rung_that_stops(2, trials, [2], 3) is None  # it is the only one that has come to it


def test_what_a_trial_shows_behind_a_rung_does_not_count_for_it_there():
    """A slow one that was better in the end is no measure for one that has just come to the rung."""
    trials = {0: history(0.9), 1: history(0.3, 0.95), 2: history(0.2, 0.95), 3: history(0.5)}
    assert rung_that_stops(3, trials, [1], 3) is None


def test_a_trial_is_stopped_at_the_first_rung_that_it_fails():
    """Its number is the epoch that is told to the user."""
    trials = {number: history(*[0.9 - number / 100] * 9) for number in range(3)}
    assert rung_that_stops(2, trials, [1, 3, 9], 3) == 1
    late = {0: history(0.3, 0.9), 1: history(0.2, 0.8), 2: history(0.4, 0.4)}
    assert rung_that_stops(2, late, [1, 2], 3) == 2


def test_a_passed_rung_counts_again_as_others_come_to_it():
    """One that was first and is bad does not go on for ever because nobody was there to compare it with."""
    trials: Histories = {0: history(0.1)}
    assert rung_that_stops(0, trials, [1], 3) is None
    trials = {0: history(0.1, 0.2), 1: history(0.5), 2: history(0.6)}
    assert rung_that_stops(0, trials, [1], 3) == 1


def test_a_late_bloomer_is_not_stopped_by_an_early_rung():
    """It stood third at the rung when the others came, but has long shown more than they have."""
    trials = {0: history(0.1, 0.95), 1: history(0.5), 2: history(0.6)}
    assert rung_that_stops(0, trials, [1], 3) is None


@st.composite
def sweeps(draw: st.DrawFn) -> tuple[Histories, list[int], list[int]]:
    """What trials would come to if they were trained to their end, the order in which they end epochs, and rungs."""
    count, epochs = draw(st.integers(1, 12)), draw(st.integers(1, 10))
    accuracy = st.integers(0, 8).map(lambda number: number / 8)
    whole = {number: history(*draw(st.lists(accuracy, min_size=epochs, max_size=epochs))) for number in range(count)}
    order = draw(st.permutations([number for number in whole for _ in range(epochs)]))
    return whole, order, draw(st.sampled_from([rungs((0, epochs), grace, 3) for grace in (1, 2)]))


def trained(whole: Histories, order: list[int], at: list[int]) -> tuple[Histories, dict[int, int]]:
    """Train the epochs in an order, stopping as told -> the histories, the rungs at which trials were stopped."""
    shown: Histories = {}
    stopped: dict[int, int] = {}
    for number in order:
        if number in stopped:
            continue
        at_epoch = len(shown.get(number, ())) + 1
        shown[number] = {epoch: whole[number][epoch] for epoch in range(1, at_epoch + 1)}
        if rung := rung_that_stops(number, shown, at, 3):
            stopped[number] = rung
    return shown, stopped


_many = settings(deadline=None, max_examples=300)


@_many
@given(sweeps())
def test_the_best_of_all_is_never_stopped(sweep: tuple[Histories, list[int], list[int]]):
    """Of all accuracies that were seen, the best ones belong to trials that were trained to their end."""
    shown, stopped = trained(*sweep)
    best = {number: max(epoch.val_accuracy for epoch in epochs.values()) for number, epochs in shown.items()}
    top = [number for number in best if best[number] == max(best.values())]
    assert not set(top) & set(stopped)
    assert len(shown) - len(stopped) >= min(2, len(shown))


@_many
@given(sweeps())
def test_none_is_stopped_before_the_first_rung(sweep: tuple[Histories, list[int], list[int]]):
    """And each stopped one has come to the rung at which it was."""
    shown, stopped = trained(*sweep)
    for number, rung in stopped.items():
        assert sweep[2][0] <= rung <= len(shown[number])


@_many
@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.integers(2, 5))
def test_of_all_at_a_rung_the_best_share_and_its_equals_go_on(accuracies: list[int], factor: int):
    """Judged when all are there: no fewer than the share, and no more than it and those equal to its last."""
    trials = {number: history(accuracy / 20) for number, accuracy in enumerate(accuracies)}
    on = [accuracies[number] for number in trials if rung_that_stops(number, trials, [1], factor) is None]
    share = min(len(accuracies), max(2, math.ceil(len(accuracies) / factor)))
    last = sorted(accuracies, reverse=True)[share - 1]
    assert sorted(on) == sorted(accuracy for accuracy in accuracies if accuracy >= last)
    assert len(on) <= share + accuracies.count(last) - 1


@_many
@given(st.permutations(range(30)), st.integers(2, 5))
def test_of_those_that_come_last_few_go_on(order: list[int], factor: int):
    """One after the other: each goes on only if it is among the best share of those before it and itself."""
    shown: Histories = {}
    for number in order:
        shown[number] = history(number / 30)
        rank = sum(other > number for other in shown)
        stops = rank >= max(2, math.ceil(len(shown) / factor))
        assert (rung_that_stops(number, shown, [1], factor) is not None) == stops


@pytest.mark.parametrize("at", [[], [5]])
def test_without_a_rung_on_the_way_all_go_on(at: list[int]):
    """No halving asked for, or none has come so far."""
    trials = {number: history(number / 10, number / 10) for number in range(10)}
    assert {rung_that_stops(number, trials, at, 3) for number in trials} == {None}
