"""Predicts and scores labelled sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from pharmclf.data.image_set import ImageSet
from pharmclf.evaluation.abstention_policy import AbstentionPolicy
from pharmclf.evaluation.datasets import EvalDataset
from pharmclf.evaluation.evaluate import ABSTAIN, UNKNOWN, evaluate, predictions_table
from pharmclf.evaluation.gradcam import Explainer
from pharmclf.evaluation.metrics import Estimate, proportion
from pharmclf.evaluation.predict import predict
from pharmclf.evaluation.results import EvaluationResult


class PredictedDataset(NamedTuple):
    """A labelled set with the predictions of one or more models."""

    images: EvalDataset
    """n images: those whose files are what the manifest says."""
    probabilities: np.ndarray
    """(n, models, classes) float32."""
    features: tuple[np.ndarray, ...]
    """As `Predictions`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredDataset:
    """A labelled set with the predictions of a model and their scores."""

    images: EvalDataset
    probabilities: np.ndarray
    """(n, classes) float32, as the model gives them."""
    table: pd.DataFrame
    """One row per image: row, path, label, predicted, confidence, abstain, and with a strangeness that and unknown."""
    evaluation: EvaluationResult


@dataclass(frozen=True, kw_only=True, eq=False)
class UnknownScores:
    """What a model makes of images of products that it does not know."""

    images: EvalDataset
    table: pd.DataFrame
    """As in `ScoredDataset`; the label is the product of the set, or its name."""
    answered: Estimate
    """Share of the images that it answers all the same, 0..1: each of these answers is wrong."""
    unknown: Estimate | None
    """Share that it calls unknown; None: its decision has no limit for that."""
    products: tuple[tuple[str, int, Estimate], ...]
    """(product, images, share answered), the most answered first."""


def predict_datasets(
    models: Sequence[str],
    sets: Sequence[EvalDataset],
    image_size: int,
    locator_size: int = 0,
    *,
    actors: int,
    gpus: bool,
    with_features: bool = False,
    check: Callable[[], None] = lambda: None,
    explainer: Explainer | None = None,
) -> list[PredictedDataset]:
    """Predict all images of some sets in one stream.

    Args:
        models: locations of saved models.
        image_size: S, side of the images that the models classify, in pixels.
        locator_size: as in `PredictSpec`.
        actors: Ray actors that predict; 0: this process.
        gpus: whether each of them uses a GPU.
        with_features, check, explainer: as in `predict`.

    Returns:
        Each set without the images whose files differ from the manifest, which its last note names, and with the part
        of each that was looked at.

    Raises:
        ConfigError: a set has no image left.
    """
    files = ImageSet.join([images.files for images in sets])
    found = predict(
        models,
        files,
        image_size,
        locator_size,
        actors=actors,
        gpus=gpus,
        with_features=with_features,
        check=check,
        explainer=explainer,
    )
    predicted, last = [], 0
    for images in sets:
        first, last = last, last + len(images.rows)
        reasons = found.bad[first:last]
        good = np.flatnonzero(reasons == "") + first
        left = images.with_crops(found.crops[first:last]).without(reasons.tolist())
        features = tuple(part[good] for part in found.features)
        predicted.append(PredictedDataset(left, found.probabilities[good], features))
    return predicted


def score_dataset(
    images: EvalDataset,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    decision: AbstentionPolicy | None,
    strangeness: np.ndarray | None = None,
) -> ScoredDataset:
    """Score a set.

    Args:
        images: n labelled images.
        probabilities: (n, classes), as the model gives them.
        class_names: in the order of the model's outputs.
        decision: the model's temperature and threshold, if it has them.
        strangeness: (n,) scores, where the decision has a limit for them.
    """
    table = predictions_table(
        images.rows, images.paths, images.labels, probabilities, class_names, decision, strangeness
    )
    evaluation = evaluate(table, class_names, groups=images.groups, probabilities=probabilities, decision=decision)
    return ScoredDataset(images=images, probabilities=probabilities, table=table, evaluation=evaluation)


def score_unknown(
    predicted: PredictedDataset,
    class_names: Sequence[str],
    decision: AbstentionPolicy,
    strangeness: np.ndarray | None = None,
) -> UnknownScores:
    """Score images of unknown products.

    Args:
        predicted: n images.
        class_names: of the model, in the order of its outputs.
        strangeness: (n,) scores, where the decision has a limit for them.
    """
    images, probabilities = predicted.images, predicted.probabilities[:, 0]
    table = predictions_table(
        images.rows, images.paths, images.labels, probabilities, class_names, decision, strangeness
    )
    answered, groups = ~table[ABSTAIN].to_numpy(bool), images.groups
    rows_of = table.groupby("label", sort=True).indices
    products = [(str(name), len(rows), proportion(answered[rows], groups[rows])) for name, rows in rows_of.items()]
    return UnknownScores(
        images=images,
        table=table,
        answered=proportion(answered, groups),
        unknown=proportion(table[UNKNOWN].to_numpy(bool), groups) if UNKNOWN in table else None,
        products=tuple(sorted(products, key=lambda item: (-item[2].value, item[0]))),
    )
