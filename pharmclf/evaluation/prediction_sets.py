"""Prediction sets: the classes that an image may be, so that its true class is among them for a given share of images.

Split conformal prediction with the score 1 - p of the true class (Sadinle, Lei and Wasserman 2019, "Least Ambiguous
Set-Valued Classifiers With Bounded Error Levels"), on the validation images.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pharmclf.evaluation.metrics import Estimate, apply_temperature, proportion
from pharmclf.evaluation.metrics.intervals import row_blocks

COVERAGE = 0.98
"""Share of images whose true class is to be in its set."""
_COMMON = 5  # sets of several classes that are listed


@dataclass(frozen=True, kw_only=True)
class PredictionSets:
    """The probabilities from which a class is in the set of an image; the most probable class always is."""

    coverage: float
    """Share of images like the validation images whose set has the true class, at least."""
    least: float
    """Probability after temperature scaling, 0..1."""
    least_of_class: Mapping[int, float]
    """Class number -> a lower one, which its own validation images need for the share to hold among them too. Classes
    with too few validation images have none."""
    num_groups: int
    """Different validation images; near duplicates count as one."""

    def members(self, probabilities: np.ndarray) -> np.ndarray:
        """(n, classes) booleans: the classes in the set of each image.

        Args:
            probabilities: (n, classes), after temperature scaling.
        """
        least = np.full(probabilities.shape[1], self.least)
        least[list(self.least_of_class)] = list(self.least_of_class.values())
        is_member = probabilities >= least
        is_member[np.arange(len(is_member)), probabilities.argmax(axis=1)] = True
        return np.asarray(is_member)


@dataclass(frozen=True, kw_only=True)
class SetScores:
    """Prediction sets on some images."""

    coverage: Estimate
    """Share of the images whose set has the true class."""
    single: Estimate
    """Share of the images whose set has one class."""
    mean_size: float
    """Classes in a set."""
    common: tuple[tuple[tuple[int, ...], int], ...]
    """The most frequent sets of several classes, by their numbers, and in how many images."""


def fit_sets(
    probabilities: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    coverage: float = COVERAGE,
    *,
    temperature: float = 1.0,
) -> PredictionSets | None:
    """Choose the probabilities from which a class is in a set.

    Args:
        probabilities: (n, classes), of images that the model was not trained on.
        truth: (n,) class numbers.
        groups: (n,) integers; of the images of one group, the least probable true class counts.
        coverage: share of images whose set has the true class, 0..1.
        temperature: of the temperature scaling.

    Returns:
        None where there are too few images for this share: 49 different ones for 98 %.
    """
    given = np.empty(len(truth))
    for rows, calibrated in _calibrated_blocks(probabilities, temperature):
        given[rows] = calibrated[np.arange(len(calibrated)), truth[rows]]
    order = np.argsort(given, kind="stable")
    first = order[np.unique(groups[order], return_index=True)[1]]  # of each group
    least = _conformal_quantile(given[first], coverage)
    if least is None:
        return None
    own: dict[int, float] = {}
    for number in np.unique(truth[first]).tolist():
        value = _conformal_quantile(given[first[truth[first] == number]], coverage)
        own |= {number: value} if value is not None and value < least else {}
    return PredictionSets(coverage=coverage, least=least, least_of_class=own, num_groups=len(first))


def _conformal_quantile(given: np.ndarray, coverage: float) -> float | None:
    """The largest probability that at least this share of further images reach; None: too few images to know."""
    place = math.floor((len(given) + 1) * (1 - coverage) + 1e-9)  # without what rounding takes from a whole number
    return float(np.sort(given)[place - 1]) if place >= 1 else None


def _calibrated_blocks(probabilities: np.ndarray, temperature: float) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of rows after temperature scaling: doubles of all of many classes would fill the memory."""
    for rows in row_blocks(*probabilities.shape):
        yield rows, apply_temperature(probabilities[rows], temperature)


def score_sets(
    sets: PredictionSets,
    probabilities: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray,
    *,
    temperature: float = 1.0,
) -> SetScores:
    """Score the sets of some images.

    Args:
        probabilities: (n, classes).
        truth: (n,) class numbers.
        groups: (n,) integers; images of one group are near duplicates.
        temperature: of the temperature scaling.
    """
    hits, sizes = np.empty(len(truth), bool), np.empty(len(truth), np.int64)
    several: Counter[tuple[int, ...]] = Counter()
    for rows, calibrated in _calibrated_blocks(probabilities, temperature):
        members = sets.members(calibrated)
        hits[rows], sizes[rows] = members[np.arange(len(members)), truth[rows]], members.sum(axis=1)
        several.update(tuple(np.flatnonzero(row).tolist()) for row in members[sizes[rows] > 1])
    return SetScores(
        coverage=proportion(hits, groups),
        single=proportion(sizes == 1, groups),
        mean_size=float(sizes.mean()),
        common=tuple(several.most_common(_COMMON)),
    )


def set_names(members: np.ndarray, labels: Sequence[str]) -> list[str]:
    """The sets of some images as text: "Dolmaquin|Eskibor"."""
    return ["|".join(labels[number] for number in np.flatnonzero(row).tolist()) for row in members]
