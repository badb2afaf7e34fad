"""Asynchronous successive halving (ASHA): decides which trials continue. Pure.

After Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pharmclf.core.events import EpochRecord
from pharmclf.training.lr_schedule import selection_score

_MIN_TRIALS = 2  # trials that always continue at a rung, however few have reached it


def rungs(epochs: tuple[int, int], grace: int, factor: int) -> list[int]:
    """The epochs, counted over both phases from 1, behind which trials are compared.

    Args:
        epochs: of phase 1 and of phase 2.
        grace: epochs of the last phase that every trial may train; phase 1 is never cut short for phase 2's sake.
        factor: the epochs of the last phase grow by it from rung to rung.
    """
    before, last = epochs if epochs[1] else (0, epochs[0])
    found, reach = [], grace
    while reach < last:
        found.append(before + reach)
        reach *= factor
    return found


def default_grace(epochs: tuple[int, int]) -> int:
    """A quarter of the last phase, one epoch at least."""
    return max(1, math.ceil((epochs[1] or epochs[0]) / 4))


def rung_that_stops(
    number: int, histories: Mapping[int, Mapping[int, EpochRecord]], at_rungs: Sequence[int], factor: int
) -> int | None:
    """The rung at which a trial is not among the best 1 / `factor` of those that have reached it; None: it continues.

    A rung that it has passed counts again when others reach it later; they are compared with the best of the trial
    since, so that the most accurate of all is never stopped.

    Args:
        histories: by number of the trial its epochs, by their number counted over both phases.
        at_rungs: of `rungs`.
        factor: of all at a rung, the best 1 / factor continue, equals included.
    """
    for rung in at_rungs:
        if _score(histories[number], rung) is None:
            return None
        mine = max(map(selection_score, histories[number].values()))
        scores = [score for history in histories.values() if (score := _score(history, rung)) is not None]
        better = sum(score > mine for score in scores)
        if better >= max(_MIN_TRIALS, math.ceil(len(scores) / factor)):
            return rung
    return None


def _score(history: Mapping[int, EpochRecord], rung: int) -> float | None:
    """The best of what epochs are chosen by, up to a rung; None where the trial has not come so far."""
    if max(history, default=0) < rung:
        return None
    return max((selection_score(record) for number, record in history.items() if number <= rung), default=None)
