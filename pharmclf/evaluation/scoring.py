"""Predictions of labelled sets, scored, and the files that keep them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pharmclf.data.image_set import ImageSet
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.datasets import EvalDataset
from pharmclf.evaluation.evaluate import Evaluation, evaluate, predictions_table
from pharmclf.evaluation.predict import predict


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredDataset:
    """A labelled set with what a model said of it."""

    images: EvalDataset
    probabilities: np.ndarray
    """(n, classes) float32, as the model gives them."""
    table: pd.DataFrame
    """One row per image: row, path, label, predicted, confidence, abstain."""
    evaluation: Evaluation


def predict_datasets(
    models: Sequence[str],
    sets: Sequence[EvalDataset],
    image_size: int,
    *,
    actors: int,
    gpus: bool,
    check: Callable[[], None] = lambda: None,
) -> list[tuple[EvalDataset, np.ndarray]]:
    """Probabilities of all images of some sets, through one pipeline.

    Args:
        models: locations of saved models.
        sets: what they are tested on.
        image_size: S, side of their input in pixels.
        actors: processes that predict; 0: this one.
        gpus: whether each of them takes a GPU.
        check: called all the time; what it raises ends the work.

    Returns:
        Each set without the images whose files are not what the manifest says, as its last note tells; and of the
        others (images, models, classes) float32.

    Raises:
        ConfigError: a set has no image left.
    """
    files = ImageSet.join([images.files for images in sets])
    probabilities, bad = predict(models, files, image_size, actors=actors, gpus=gpus, check=check)
    ends = np.cumsum([len(images.rows) for images in sets])[:-1]
    parts = zip(sets, np.split(probabilities, ends), np.split(bad, ends), strict=True)
    return [(images.without(reasons.tolist()), part[reasons == ""]) for images, part, reasons in parts]


def score_dataset(
    images: EvalDataset, probabilities: np.ndarray, class_names: Sequence[str], decision: AbstentionPolicy | None
) -> ScoredDataset:
    """Score a set.

    Args:
        images: n labelled images.
        probabilities: (n, classes), as the model gives them.
        class_names: in the order of the model's outputs.
        decision: the model's temperature and threshold, if it has them.
    """
    table = predictions_table(images.rows, images.paths, images.labels, probabilities, class_names, decision)
    evaluation = evaluate(table, class_names, groups=images.groups, probabilities=probabilities, decision=decision)
    return ScoredDataset(images=images, probabilities=probabilities, table=table, evaluation=evaluation)


def evenly_spaced_indices(count: int, most: int) -> np.ndarray:
    """(at most `most`,) places, evenly over 0..count-1."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int)
