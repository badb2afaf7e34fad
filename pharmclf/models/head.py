"""The classifier on the pooled features, and the model that is saved for inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from pharmclf.config import HeadConfig
from pharmclf.core.compat.keras import computation_order, flatten_layers
from pharmclf.core.errors import ConfigError
from pharmclf.models.backbone_split import split_tensors
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


def load_head(head: keras.Model, source: keras.Model, known: Sequence[str], class_names: Sequence[str]) -> None:
    """Take over the hidden layers of a trained model's head, and its logits of the labels that both know.

    Args:
        head: changed; logits of other labels keep their initial weights.
        source: a saved model.
        known: its labels, in the order of its outputs.
        class_names: labels of the head, in the order of its outputs.

    Raises:
        ConfigError: the heads have other layers; nothing is changed.
    """
    sources = {layer.name: layer.get_weights() for layer in flatten_layers(source) if layer.weights}
    *hidden, logits = (layer for layer in head.layers if layer.weights)
    kernel, bias = logits.get_weights()
    old_kernel, old_bias = sources.get(logits.name, (kernel[:0], bias[:0]))
    shapes = [[weight.shape for weight in layer.get_weights()] for layer in hidden]
    theirs = [[weight.shape for weight in sources.get(layer.name, ())] for layer in hidden]
    if shapes != theirs or old_kernel.shape[0] != kernel.shape[0]:
        widths = [sources[name][0].shape[1] for name in sorted(sources) if name.startswith("head_dense")]
        raise ConfigError(
            f"--init-from: received a model with hidden layers {widths} behind its backbone, expected "
            f"{[layer.units for layer in hidden]} as in head.dense. Give its --head.dense, or take over the backbone "
            "alone: --weights FILE"
        )
    for layer in hidden:
        layer.set_weights(sources[layer.name])
    here, there = np.array([(n, known.index(x)) for n, x in enumerate(class_names) if x in known], int).reshape(-1, 2).T
    kernel[:, here], bias[here] = old_kernel[:, there], old_bias[there]
    logits.set_weights([kernel, bias])


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


def compared_tensors(classifier: keras.Model) -> list[Any]:
    """The tensors of a saved model in which images are compared: before its last block, and its pooled features.

    Returns:
        (batch, channels) each, means over all places; none for a model that `build_inference_model` did not make.
    """
    pooled = [sources[0] for _, operation, sources in computation_order(classifier) if operation.name == "head"]
    if not pooled:
        return []
    before = split_tensors(keras.Model(classifier.inputs[0], pooled[0]))[1]
    return [before if len(before.shape) == 2 else layers.GlobalAveragePooling2D()(before), pooled[0]]


def feature_outputs(classifier: keras.Model) -> list[Any]:
    """The `compared_tensors` with the length 1 for every image."""
    return [layers.UnitNormalization(dtype="float32")(tensor) for tensor in compared_tensors(classifier)]
