"""Adds the strangeness of an image to the outputs of a model, so that an exported file computes it by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pharmclf.core.compat.keras import computation_order
from pharmclf.evaluation.strangeness import ClassDistance, Strangeness
from pharmclf.export.formats import STRANGENESS

if TYPE_CHECKING:
    import keras


def add_strangeness(model: keras.Model, strangeness: Strangeness) -> keras.Model:
    """The model with a second output: (batch,) float32 strangeness of each image, as `Strangeness` scores it."""
    import keras
    from keras import layers, ops

    from pharmclf.models.backbones import CLASSIFIER, inner_model  # both import TensorFlow
    from pharmclf.models.head import feature_outputs

    classifier = inner_model(model, CLASSIFIER)
    features = feature_outputs(classifier)
    parts = [_distance(part, each) for part, each in zip(features, strangeness.distances, strict=True)]
    score = layers.Identity(name=STRANGENESS)(ops.sum(ops.stack(parts, axis=1), axis=1))
    both = keras.Model(classifier.inputs[0], [classifier.outputs[0], score], name=classifier.name)
    if classifier is model:
        return both
    pixels = next(sources[0] for _, operation, sources in computation_order(model) if operation is classifier)
    return keras.Model(model.inputs[0], both(pixels), name=model.name)


def _distance(features: Any, distance: ClassDistance) -> Any:
    """(batch, d) features of unit length -> (batch,), as `ClassDistance` computes it."""
    from keras import ops

    means, directions = (np.asarray(part, np.float64) for part in (distance.means, distance.directions))
    saved = 1.0 / distance.rest - 1.0 / distance.variances.astype(np.float64)
    centre = means.mean(axis=0)  # float32 has too few digits for differences of large numbers
    means -= centre
    x = features - centre.astype(np.float32)
    nearest = ops.min(
        _square_distances(x, means, np.ones(means.shape[1])) / np.float32(distance.rest)
        - _square_distances(ops.matmul(x, directions.astype(np.float32)), means @ directions, saved),
        axis=1,
    )
    return (nearest - np.float32(distance.centre)) / np.float32(distance.spread)


def _square_distances(x: Any, means: np.ndarray, weights: np.ndarray) -> Any:
    """(batch, classes) weighted square distances of (batch, d) points from (classes, d) points."""
    from keras import ops

    square = ops.sum(ops.square(x) * weights.astype(np.float32), axis=1, keepdims=True)
    product = ops.matmul(x, (2.0 * means * weights).T.astype(np.float32))
    return square - product + ((means * means) @ weights).astype(np.float32)[None]
