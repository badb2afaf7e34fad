"""The classifier on the pooled features, and the model that is saved for inference."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers

from pharmclf.config import HeadConfig
from pharmclf.models.fold_norm import fold_normalization


def build_head(config: HeadConfig, num_features: int, num_classes: int, seed: int) -> keras.Model:
    """Build the head: pooled features -> logits in float32.

    The initial weights are a function of the seed alone.

    Args:
        num_features: width of the pooled features.
        seed: any seed; layer i draws from seed + i.

    Returns:
        A functional model, (batch, num_features) -> (batch, num_classes).
    """
    inputs = keras.Input((num_features,), name="features")
    x = inputs
    for index, units in enumerate(config.dense):
        initial = keras.initializers.HeUniform(seed=seed + index)
        x = layers.Dense(units, activation="relu", kernel_initializer=initial, name=f"head_dense{index}")(x)
        x = layers.Dropout(config.dropout, name=f"head_dropout{index}")(x)
    if not config.dense:
        x = layers.Dropout(config.dropout, name="head_dropout")(x)
    initial = keras.initializers.GlorotUniform(seed=seed + len(config.dense))
    logits = layers.Dense(num_classes, kernel_initializer=initial, dtype="float32", name="head_logits")(x)
    return keras.Model(inputs, logits, name="head")


def dropout_shapes(head: keras.Model) -> list[tuple[int, float]]:
    """Width and rate of each dropout layer, in order."""
    return [(layer.output.shape[-1], layer.rate) for layer in head.layers if isinstance(layer, layers.Dropout)]


def apply_head(head: keras.Model, features: Any, keep: list[Any]) -> Any:
    """Run the head in training with the given dropout masks.

    So dropout is a pure function of (seed, step, row of the global batch): a resumed run and any number of workers
    apply the same masks, and no generator state is saved.

    Args:
        features: (batch, num_features).
        keep: one (batch, units) tensor per dropout layer, 0 where a unit is dropped and 1 / (1 - rate) elsewhere.

    Returns:
        (batch, num_classes) float32 logits.
    """
    masks = iter(keep)
    x = features
    for layer in head.layers[1:]:
        x = x * keras.ops.cast(next(masks), x.dtype) if isinstance(layer, layers.Dropout) else layer(x)
    return x


def build_inference_model(backbone: keras.Model, head: keras.Model, name: str = "pharmclf") -> keras.Model:
    """The saved model: (batch, S, S, 3) raw 0..255 RGB -> (batch, classes) float32 probabilities.

    It consists of Keras layers only, so it loads without this package; normalisation is folded into its convolutions.
    """
    logits = head(backbone.output)
    probabilities = layers.Softmax(dtype="float32", name="probabilities")(logits)
    return fold_normalization(keras.Model(backbone.input, probabilities, name=name))
