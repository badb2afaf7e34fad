"""Predicts and scores labelled sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from pharmclf.data.image_set import ImageSet
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.datasets import EvalDataset
from pharmclf.evaluation.evaluate import evaluate, predictions_table
from pharmclf.evaluation.gradcam import Explainer
from pharmclf.evaluation.predict import predict
from pharmclf.evaluation.results import EvaluationResult


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredDataset:
    """A labelled set with the predictions of a model and their scores."""

    images: EvalDataset
    probabilities: np.ndarray
    """(n, classes) float32, as the model gives them."""
    table: pd.DataFrame
    """One row per image: row, path, label, predicted, confidence, abstain."""
    evaluation: EvaluationResult


def predict_datasets(
    models: Sequence[str],
    sets: Sequence[EvalDataset],
    image_size: int,
    locator_size: int = 0,
    *,
    actors: int,
    gpus: bool,
    check: Callable[[], None] = lambda: None,
    explainer: Explainer | None = None,
) -> list[tuple[EvalDataset, np.ndarray]]:
    """Predict all images of some sets in one stream.

    Args:
        models: locations of saved models.
        image_size: S, side of the images that the models classify, in pixels.
        locator_size: as in `PredictSpec`.
        actors: Ray actors that predict; 0: this process.
        gpus: whether each of them uses a GPU.
        check: called before each block; an exception that it raises ends the prediction.
        explainer: as in `predict`.

    Returns:
        Each set without the images whose files differ from the manifest, which its last note names, and with the part
        of each that was looked at; and the probabilities of the other images, (images, models, classes) float32.

    Raises:
        ConfigError: a set has no image left.
    """
    files = ImageSet.join([images.files for images in sets])
    found = predict(models, files, image_size, locator_size, actors=actors, gpus=gpus, check=check, explainer=explainer)
    ends = np.cumsum([len(images.rows) for images in sets])[:-1]
    parts = zip(sets, *(np.split(column, ends) for column in found), strict=True)
    return [
        (images.with_crops(crops).without(reasons.tolist()), part[reasons == ""])
        for images, part, reasons, crops in parts
    ]


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
