"""The same model in operations that every converter knows.

Keras runs a convolution in groups through XLA, and makes GELU with a complementary error function; tf2onnx knows
neither, and takes the constants of a normalisation for inputs of the model. ConvNeXt has all three, EfficientNet the
last. Where there is one group per channel, the convolution is a depthwise one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras


def make_convertible(model: keras.Model) -> keras.Model:
    """The model itself, or, where it has such layers, a copy that computes the same without them."""
    import keras

    if not any(_is_depthwise(layer) or _is_gelu(layer) or _is_normalisation(layer) for layer in _layers(model)):
        return model
    copy = keras.models.clone_model(model, clone_function=_replace_layer, recursive=True)
    for source, target in zip(_layers(model), _layers(copy), strict=True):
        if _is_normalisation(source):
            continue  # its settings are in the copy's configuration
        weights = source.get_weights()
        if _is_depthwise(source):  # (height, width, 1, channels) -> (height, width, channels, 1)
            weights[0] = weights[0].transpose(0, 1, 3, 2)
        target.set_weights(weights)
    return copy


def _layers(model: keras.Model) -> Iterator[Any]:
    """The layers of a model and of the models inside of it, as one that crops has them."""
    import keras

    for layer in model.layers:
        yield from _layers(layer) if isinstance(layer, keras.Model) else (layer,)


def _is_depthwise(layer: Any) -> bool:
    import keras

    return type(layer) is keras.layers.Conv2D and 1 < layer.groups == layer.filters == layer.input.shape[-1]


def _is_gelu(layer: Any) -> bool:
    import keras

    return type(layer) is keras.layers.Activation and layer.activation is keras.activations.gelu


def _is_normalisation(layer: Any) -> bool:
    import keras

    if type(layer) is not keras.layers.Normalization or layer.invert:
        return False
    rank = len(layer.input.shape)
    return {axis % rank for axis in layer.axis} == {rank - 1}  # a mean for each channel, and for nothing else


def _gelu(x: Any) -> Any:
    import keras

    return 0.5 * x * (1.0 + keras.ops.erf(x * math.sqrt(0.5)))


def _replace_layer(layer: Any) -> Any:
    import keras

    if _is_gelu(layer):
        return keras.layers.Activation(_gelu, name=layer.name)
    if _is_depthwise(layer):
        shared = ("name", "kernel_size", "strides", "padding", "dilation_rate", "activation", "use_bias")
        config = layer.get_config()
        return keras.layers.DepthwiseConv2D(**{key: config[key] for key in shared})
    if _is_normalisation(layer):  # (x - mean) / deviation
        mean, variance = (np.ravel(keras.ops.convert_to_numpy(value)) for value in (layer.mean, layer.variance))
        scale = 1.0 / np.maximum(np.sqrt(variance), keras.config.epsilon())
        return keras.layers.Rescaling(scale.tolist(), offset=(-mean * scale).tolist(), name=layer.name)
    return type(layer).from_config(layer.get_config())
