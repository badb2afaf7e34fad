"""Groups of classes that a model confuses with one another, and with others hardly; pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from pharmclf.evaluation import metrics
from pharmclf.evaluation.metrics import Estimate
from pharmclf.evaluation.results import EvaluationResult

MIN_CONFUSED = 0.05
"""Two classes look alike where more than this share of their images is confused, beyond chance: one in twenty.
Fewer are ordinary mistakes, whatever the other classes show."""
_RISK = 0.05
"""How often a set of images without look-alikes may show any."""


@dataclass(frozen=True, kw_only=True)
class LookAlikes:
    """Classes that are confused with one another."""

    names: tuple[str, ...]
    """Two or more, in the order of the model's outputs."""
    confused: Estimate
    """Share of their images that got the name of another one of them, 0..1."""


def find_look_alikes(evaluation: EvaluationResult) -> list[LookAlikes]:
    """Find the groups of classes whose mutual confusion is above what the rest shows.

    If all classes looked equally different, each mistake would hit any pair of classes as often as its images and their
    wrong names make it likely. Two classes look alike where their mistakes are more than that allows (exact test at
    5 %, divided by the number of pairs) and are more than `MIN_CONFUSED` of their images. Of two classes in all there
    is no rest, and the second condition decides. Classes that are connected by such pairs are one group.

    Args:
        evaluation: of images that the model was not trained on; near duplicates count as one image.

    Returns:
        The groups, the one with most confused images first.
    """
    cells, num_classes = evaluation.cells, evaluation.cells.num_classes
    sizes = np.array([metrics.independent_size(item.recall) for item in evaluation.classes])
    worth = sizes / np.maximum(cells.support, 1)  # of an image of each class, in independent images
    wrong = cells.truth != cells.predicted
    truth, predicted = cells.truth[wrong], cells.predicted[wrong]
    mistakes = cells.counts[wrong] * worth[truth]
    keys, place = np.unique(
        np.minimum(truth, predicted) * num_classes + np.maximum(truth, predicted), return_inverse=True
    )
    pairs = np.stack([keys // num_classes, keys % num_classes], axis=1)
    confused = np.bincount(place, mistakes, minlength=len(keys))
    images = sizes[pairs].sum(axis=1)
    found = pairs[_is_excess(confused, images, mistakes.sum(), sizes.sum(), num_classes)]
    groups = [_describe(group, evaluation, sizes, truth, predicted, mistakes) for group in _connect(found.tolist())]
    return sorted(groups, key=lambda group: -group.confused.value * len(group.names))


def _is_excess(
    confused: np.ndarray, images: np.ndarray, mistakes: float, all_images: float, num_classes: int
) -> np.ndarray:
    """Whether each pair is confused more than the rest allows, and more than `MIN_CONFUSED`; (pairs,) booleans."""
    shares = [metrics.wilson_interval(min(part, total), total) for part, total in zip(confused, images, strict=True)]
    is_much = np.array([share.low > MIN_CONFUSED for share in shares], bool) & (confused >= 1)
    if num_classes <= 2 or not is_much.any():
        return is_much
    expected = images / (all_images * (num_classes - 1))  # share of all mistakes
    chance = 1 - metrics.tail_probability(np.maximum(confused - 1, 0), mistakes, expected)
    return is_much & (chance <= _RISK / (num_classes * (num_classes - 1) / 2))


def _connect(pairs: Iterable[Iterable[int]]) -> list[set[int]]:
    """The connected sets of class numbers."""
    groups: list[set[int]] = []
    for pair in map(set, pairs):
        touching = [group for group in groups if group & pair]
        groups = [group for group in groups if not group & pair] + [pair.union(*touching)]
    return groups


def _describe(
    group: set[int],
    evaluation: EvaluationResult,
    sizes: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    mistakes: np.ndarray,
) -> LookAlikes:
    numbers = np.array(sorted(group))
    inside = np.isin(truth, numbers) & np.isin(predicted, numbers)
    total = float(sizes[numbers].sum())
    share = metrics.wilson_interval(min(float(mistakes[inside].sum()), total), total)
    return LookAlikes(names=tuple(evaluation.class_names[number] for number in numbers), confused=share)
